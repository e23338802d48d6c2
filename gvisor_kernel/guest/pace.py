"""Keeps a relayed kernel from running ahead of its clients: by SIGSTOP, and SIGCONT later.

So a slow client slows its kernel and loses nothing. A kernel that speaks frames itself has credit.
"""

from __future__ import annotations

import signal
import time

from gvisor_kernel.guest.process import KernelProcess

STOP_ABOVE = 64 * 1024 * 1024
RESUME_BELOW = 16 * 1024 * 1024
"""Output that waits for the host: above the one the kernel is stopped, below the other resumed."""
SIGNAL_GRACE = 0.5
"""Seconds that a kernel may run after a signal though its output waits: to notice it."""


class Pace:
    """Of one kernel, from its start to its end."""

    def __init__(self, kernel: KernelProcess) -> None:
        self._kernel = kernel
        self._stopped = False
        self._runs_until = 0.0

    def look(self, waiting: int) -> None:
        """Stop the kernel, or let it run, now that ``waiting`` bytes of its output wait."""
        if self._stopped:
            if waiting < RESUME_BELOW:
                self._let_run()
        elif waiting > STOP_ABOVE and time.monotonic() >= self._runs_until:
            self._kernel.signal_group(signal.SIGSTOP)
            self._stopped = True

    def let_notice(self) -> None:
        """It was sent a signal, and has to run to notice; it is stopped again if it prints on."""
        self._runs_until = time.monotonic() + SIGNAL_GRACE
        if self._stopped:
            self._let_run()

    def _let_run(self) -> None:
        self._kernel.signal_group(signal.SIGCONT)
        self._stopped = False
