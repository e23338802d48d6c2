"""How much of a kernel's own stdout and stderr reaches the host's log."""

from __future__ import annotations

import time

LOG_BURST = 256 * 1024
LOG_PER_SECOND = 32 * 1024
"""Of what the kernel writes to stdout and stderr outside of Jupyter, this much is forwarded."""


class LogBudget:
    """How many bytes of log may pass now: a bucket that fills with time."""

    def __init__(self) -> None:
        self._left = float(LOG_BURST)
        self._at = time.monotonic()
        self.dropped = 0

    def take(self, size: int) -> bool:
        now = time.monotonic()
        self._left = min(float(LOG_BURST), self._left + (now - self._at) * LOG_PER_SECOND)
        self._at = now
        if self._left < size:
            self.dropped += size
            return False
        self._left -= size
        return True
