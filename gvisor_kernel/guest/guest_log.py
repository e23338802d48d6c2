"""Sends lines to the host's log: those of PID 1, and the kernel's output within a budget."""

from __future__ import annotations

import time

from gvisor_kernel.link import Channel, Connection, LogSource

LOG_BURST = 256 * 1024
"""Bytes of log that a kernel may cause at once."""
LOG_PER_SECOND = 32 * 1024
"""Bytes of log per second that a kernel may cause in the long run."""


class LogBudget:
    """The bytes of log that may be forwarded now: a bucket that fills with time.

    ``dropped``: bytes that were refused and not reported yet.
    """

    def __init__(self) -> None:
        self._available = float(LOG_BURST)
        self._refilled_at = time.monotonic()
        self.dropped = 0

    def spend(self, size: int) -> bool:
        """Return whether ``size`` bytes may be forwarded, and count them.

        After a refusal nothing is forwarded until there is budget for half a second: the report of
        the dropped bytes needs a line too.
        """
        now = time.monotonic()
        self._available = min(
            float(LOG_BURST), self._available + (now - self._refilled_at) * LOG_PER_SECOND
        )
        self._refilled_at = now
        if self._available < (max(size, LOG_PER_SECOND // 2) if self.dropped else size):
            self.dropped += size
            return False
        self._available -= size
        return True


class GuestLog:
    """Writes lines to the host's log over the link."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._budget = LogBudget()

    def write(self, text: str) -> None:
        """Write a line of PID 1."""
        self._connection.send_log(LogSource.GUEST, text)

    def write_limited(self, text: str) -> None:
        """Write a line that a kernel has caused; it counts in the kernel's budget."""
        if self._spend_budget(len(text)):
            self.write(text)

    def tell_refusal(self, text: str) -> None:
        """Tell whoever waits for it that a connection was refused; it counts in the budget."""
        if self._spend_budget(len(text)):
            self._connection.send_log(LogSource.REFUSED, text)

    def forward_output(self, source: LogSource, data: bytes) -> None:
        """Forward output of the kernel within its budget, with a note of what was dropped."""
        if self._spend_budget(len(data)):
            self._connection.send_log(source, data.decode("utf-8", "replace"))

    def _spend_budget(self, size: int) -> bool:
        if not self._budget.spend(size):
            return False
        if self._budget.dropped:
            self.write(f"{self._budget.dropped} bytes of output were not logged.\n")
            self._budget.dropped = 0
        return True


def explain_drop(channel: Channel, error: Exception) -> str:
    """Return the text for the person who waits for a message that is too large for the link."""
    return (
        f"A message on {channel.name.lower()} was dropped. {error} "
        "Show it in parts, or write it to a file.\n"
    )
