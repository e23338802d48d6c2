"""Many processes at once: held back for a moment, so that an interrupted kernel can notice.

Where hundreds of processes compete, each gets its turn after seconds, and again for each of its
system calls: a kernel needs many for what an interrupt asks of it. All others wait while it does
that. With few processes nothing of this happens: a program may mind being stopped, as a shell does
that waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Optional

from gvisor_kernel.guest import linux
from gvisor_kernel.guest.process import KernelProcess

MANY = 64
"""Threads of all processes, from which on they are a crowd."""
HOLD_SECONDS = 2.0


class Crowd:
    """All processes of the sandbox but PID 1 and the kernel itself."""

    def __init__(self) -> None:
        self._until: Optional[float] = None

    @property
    def wait_ms(self) -> Optional[int]:
        """After how long to ``look``; None while nobody is held back."""
        if self._until is None:
            return None
        return max(0, int((self._until - time.monotonic()) * 1000) + 1)

    def hold_back(self, kernel: KernelProcess) -> None:
        """Let only ``kernel`` run for HOLD_SECONDS, if there are many others."""
        if os.getpid() != 1 or linux.count_tasks() < MANY:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
            os.kill(kernel.pid, signal.SIGCONT)
        self._until = time.monotonic() + HOLD_SECONDS

    def look(self) -> None:
        """Let them go on, once it is time."""
        if self._until is not None and time.monotonic() >= self._until:
            self._until = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGCONT)
