"""Pauses all other processes for a moment, so that an interrupted kernel can handle the signal.

Where hundreds of processes compete for the CPU, each is scheduled after seconds only, and again for
each of its system calls. A kernel needs many system calls to handle an interrupt, so all other
processes wait meanwhile. With few processes nothing is paused: a program may not expect to be
stopped, such as a shell that waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Optional

from gvisor_kernel.guest import linux
from gvisor_kernel.guest.process import KernelProcess

MIN_CROWD_THREADS = 64
"""Number of threads in the sandbox from which other processes are paused."""
HOLD_SECONDS = 2.0
"""Seconds for which they are paused."""


class Crowd:
    """All processes of the sandbox except PID 1 and the kernel."""

    def __init__(self) -> None:
        self._paused_until: Optional[float] = None

    @property
    def wait_ms(self) -> Optional[int]:
        """Milliseconds until ``update`` must be called; None while nothing is paused."""
        if self._paused_until is None:
            return None
        return max(0, int((self._paused_until - time.monotonic()) * 1000) + 1)

    def pause_others(self, kernel: KernelProcess) -> None:
        """Let only ``kernel`` run for HOLD_SECONDS, if there are many other threads."""
        if os.getpid() != 1 or linux.count_tasks() < MIN_CROWD_THREADS:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
            os.kill(kernel.pid, signal.SIGCONT)
        self._paused_until = time.monotonic() + HOLD_SECONDS

    def update(self) -> None:
        """Continue the paused processes once their time is over."""
        if self._paused_until is not None and time.monotonic() >= self._paused_until:
            self._paused_until = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGCONT)
