"""What the host's log gets from inside: PID 1's words, and a kernel's within a budget."""

from __future__ import annotations

import time

from gvisor_kernel.link import Connection, LogSource

LOG_BURST = 256 * 1024
LOG_PER_SECOND = 32 * 1024
"""Of what a kernel writes, or makes PID 1 write, this much is forwarded."""


class LogBudget:
    """How many bytes of log may pass now: a bucket that fills with time."""

    def __init__(self) -> None:
        self._left = float(LOG_BURST)
        self._at = time.monotonic()
        self.dropped = 0

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes may pass. Once something did not, nothing does before there is
        room for half a second's: that much was dropped takes a line, too."""
        now = time.monotonic()
        self._left = min(float(LOG_BURST), self._left + (now - self._at) * LOG_PER_SECOND)
        self._at = now
        if self._left < (max(size, LOG_PER_SECOND // 2) if self.dropped else size):
            self.dropped += size
            return False
        self._left -= size
        return True


class GuestLog:
    """Lines for the log, over the link."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._budget = LogBudget()

    def say(self, text: str) -> None:
        self._connection.send_log(LogSource.GUEST, text)

    def complain(self, text: str) -> None:
        """Of what a kernel causes, no more than of what it writes itself."""
        if self._may_pass(len(text)):
            self.say(text)

    def pass_on(self, source: LogSource, data: bytes) -> None:
        """What the kernel wrote to its stdout or stderr; said to be dropped, where it is."""
        if self._may_pass(len(data)):
            self._connection.send_log(source, data.decode("utf-8", "replace"))

    def _may_pass(self, size: int) -> bool:
        if not self._budget.take(size):
            return False
        if self._budget.dropped:
            self.say(f"{self._budget.dropped} bytes of output were not logged.\n")
            self._budget.dropped = 0
        return True
