"""The processes of a sandbox as PID 1 sees them in /proc, and those that it stops for a moment.

Whether a sandbox is idle is decided here, whatever the kernel says. How a kernel is started, and
signalled for the host, is in ``process``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from gvisor_kernel.guest import linux
from gvisor_kernel.guest.process import KernelProcess
from gvisor_kernel.link import Stats

MAX_IDLE_TICKS = 2
"""Clock ticks of 10 ms that an idle process may be charged with. The clock is sampled: a process
that runs at a tick is charged a whole one."""


class SandboxActivity:
    """Compares the state of the sandbox with that of the last call."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def check_idle(self, kernel: int) -> bool:
        """Return whether process ``kernel`` sleeps, and has done nothing since the last call."""
        ticks = _read_ticks_if_asleep(kernel)
        last, self._last = self._last, None if ticks is None else (kernel, ticks)
        if ticks is None or last is None or last[0] != kernel:
            return False
        return ticks - last[1] <= MAX_IDLE_TICKS


def _read_ticks_if_asleep(pid: int) -> int | None:
    """Return the CPU ticks of a process; None if one of its threads is awake or it has ended."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            if _read_stat(f"/proc/{pid}/task/{thread}")[0] != b"S":
                return None
        fields = _read_stat(f"/proc/{pid}")
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None


def has_other_process(kernel: int) -> bool:
    """Return whether there is a living process except PID 1 and ``kernel``."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, kernel):
            try:
                if _read_stat(f"/proc/{name}")[0] != b"Z":
                    return True
            except (OSError, IndexError):
                continue  # the process has ended meanwhile
    return False


def _read_stat(folder: str) -> list[bytes]:
    """Return the fields of a stat file after the name, which may contain anything."""
    with open(f"{folder}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


# -- numbers for people --------------------------------------------------------------------------

MAX_INSPECTED = 48
"""Number of processes above which PID 1 does not read the stat file of each. A process answers
only when it is scheduled, and PID 1 would do nothing else while hundreds compete for the CPU."""


def count_processes() -> Stats:
    """Count processes, threads and resident bytes of the sandbox, PID 1 included.

    If there are too many processes, each counts as one thread without memory.
    """
    processes = threads = pages = 0
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    if len(names) > MAX_INSPECTED:
        return Stats(len(names), len(names), 0)
    for name in names:
        try:
            fields = _read_stat(f"/proc/{name}")
            threads += int(fields[17])
            pages += int(fields[21])
        except (OSError, IndexError, ValueError):
            continue  # the process has ended meanwhile
        processes += 1
    return Stats(processes, threads, pages * os.sysconf("SC_PAGE_SIZE"))


# -- pauses ----------------------------------------------------------------------------------------

MIN_PAUSE_THREADS = 64
"""Number of threads in the sandbox from which other processes are paused."""
HANDLED_SECONDS = 2.0
"""Seconds without a word of the kernel, after its first one: then it has handled the signal."""
MAX_HOLD_SECONDS = 30.0
"""Seconds for which they are paused at most: a kernel that ignores the signal may say nothing.
It takes 2 s where little else runs; each process must run once more before it stops."""


class OtherProcesses:
    """All processes of the sandbox except PID 1 and the kernel: they are paused for a moment, so
    that an interrupted kernel can handle the signal.

    Where hundreds of processes compete for the CPU, each is scheduled after seconds only, and again
    for each of its system calls. A kernel needs many system calls to handle an interrupt, so all
    other processes wait until it has: beside a fork bomb an interrupt took minutes otherwise. With
    few processes nothing is paused: a program may not expect to be stopped, such as a shell that
    waits for it.
    """

    def __init__(self) -> None:
        self._paused_until: float | None = None
        self._hold_end = 0.0

    @property
    def wait_ms(self) -> int | None:
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


STOP_ABOVE = 64 * 1024 * 1024
RESUME_BELOW = 16 * 1024 * 1024
"""Bytes of output that wait for the host: above STOP_ABOVE the kernel is stopped, below
RESUME_BELOW it is continued."""
SIGNAL_GRACE = 0.5
"""Seconds that a kernel may run after a signal although its output waits, to handle the signal."""


class Pace:
    """Slows a relayed kernel to the speed of its clients, with SIGSTOP and SIGCONT.

    So a slow client slows its kernel and loses nothing. A kernel that speaks frames itself is
    slowed by credit instead. One instance per kernel process.
    """

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
