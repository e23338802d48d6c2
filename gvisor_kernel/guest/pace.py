"""Slows a relayed kernel to the speed of its clients, with SIGSTOP and SIGCONT.

So a slow client slows its kernel and loses nothing. A kernel that speaks frames itself is slowed by
credit instead.
"""

from __future__ import annotations

import signal
import time

from gvisor_kernel.guest.process import KernelProcess

STOP_ABOVE = 64 * 1024 * 1024
RESUME_BELOW = 16 * 1024 * 1024
"""Bytes of output that wait for the host: above STOP_ABOVE the kernel is stopped, below
RESUME_BELOW it is continued."""
SIGNAL_GRACE = 0.5
"""Seconds that a kernel may run after a signal although its output waits, to handle the signal."""


class Pace:
    """One instance per kernel process."""

    def __init__(self, kernel: KernelProcess) -> None:
        self._kernel = kernel
        self._stopped = False
        self._grace_end = 0.0

    def update(self, waiting: int) -> None:
        """Stop or continue the kernel. ``waiting``: bytes of its output that wait for the host."""
        if self._stopped:
            if waiting < RESUME_BELOW:
                self._continue()
        elif waiting > STOP_ABOVE and time.monotonic() >= self._grace_end:
            self._kernel.signal_group(signal.SIGSTOP)
            self._stopped = True

    def run_for_signal(self) -> None:
        """Let a stopped kernel run for SIGNAL_GRACE, to handle a signal that it was sent."""
        self._grace_end = time.monotonic() + SIGNAL_GRACE
        if self._stopped:
            self._continue()

    def _continue(self) -> None:
        self._kernel.signal_group(signal.SIGCONT)
        self._stopped = False
