"""Pauses all other processes for a moment, so that an interrupted kernel can handle the signal.

Where hundreds of processes compete for the CPU, each is scheduled after seconds only, and again for
each of its system calls. A kernel needs many system calls to handle an interrupt, so all other
processes wait until it has. With few processes nothing is paused: a program may not expect to be
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

MIN_PAUSE_THREADS = 64
"""Number of threads in the sandbox from which other processes are paused."""
HANDLED_SECONDS = 2.0
"""Seconds without a word of the kernel, after its first one: then it has handled the signal."""
MAX_HOLD_SECONDS = 30.0
"""Seconds for which they are paused at most: a kernel that ignores the signal may say nothing.
It takes 2 s where little else runs; each process must run once more before it stops."""


class OtherProcesses:
    """All processes of the sandbox except PID 1 and the kernel."""

    def __init__(self) -> None:
        self._paused_until: Optional[float] = None
        self._hold_end = 0.0

    @property
    def wait_ms(self) -> Optional[int]:
        """Milliseconds until ``update`` must be called; None while nothing is paused."""
        if self._paused_until is None:
            return None
        return max(0, int((self._paused_until - time.monotonic()) * 1000) + 1)

    def pause(self, kernel: KernelProcess) -> None:
        """Let only ``kernel`` run until it has handled a signal, if there are many threads."""
        if os.getpid() != 1 or linux.count_tasks() < MIN_PAUSE_THREADS:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
            os.kill(kernel.pid, signal.SIGCONT)
        self._paused_until = self._hold_end = time.monotonic() + MAX_HOLD_SECONDS

    def note_output(self) -> None:
        """Note that the kernel has sent something."""
        if self._paused_until is not None:
            self._paused_until = min(self._hold_end, time.monotonic() + HANDLED_SECONDS)

    def update(self) -> None:
        """Continue the paused processes once their time is over."""
        if self._paused_until is not None and time.monotonic() >= self._paused_until:
            self._paused_until = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGCONT)
