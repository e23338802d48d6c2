"""Memory and CPU time of groups of processes, measured on the host.

A kernel's processes are those that appeared below this process when it was started. This process
adopts orphans (``adopt_orphans``), so that they are found after their parent has ended, and
therefore has to reap them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+) (\d+) *(.*)$")


def adopt_orphans() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def bury_orphans(own: Iterable[int]) -> None:
    """Reap adopted children that have ended, except ``own``, which their starter reaps."""
    keep = set(own)
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE and process.pid not in keep:
                os.waitpid(process.pid, os.WNOHANG)


def descendants(pid: int | None = None) -> set[psutil.Process]:
    """Return all processes below ``pid`` (None: this process)."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


@dataclass(frozen=True)
class Memory:
    """Bytes of proportional memory (PSS) and of memory files.

    ``unseen``: the number of processes that could not be read.
    """

    processes: int
    files: int
    unseen: int

    @property
    def mib(self) -> float:
        return (self.processes + self.files) / 1024**2


def memory(processes: Iterable[psutil.Process]) -> Memory:
    """Return the PSS of ``processes``, and the whole size of each memory file, counted once.

    A sandbox's memory is in an unnamed file, of which the sentry and its stubs map parts. PSS
    would count only the pages that are mapped at the moment, so these mappings are left out, and
    the blocks of the file are added.
    """
    total = unseen = 0
    files: dict[tuple[int, int], int] = {}
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            try:
                opened = dict(_memory_files(process.pid))
                mappings = list(read_smaps(Path(f"/proc/{process.pid}/smaps").read_text()))
            except PermissionError:
                unseen += 1
                continue
            files.update(opened)
            inodes = {inode for _, inode in opened}
            for name, inode, pss in mappings:
                if not (name.startswith("/memfd:") and inode in inodes):
                    total += pss
    return Memory(total, sum(files.values()), unseen)


def _memory_files(pid: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield (device, inode) and bytes of each memory file that ``pid`` has open."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(path.readlink()).startswith("/memfd:"):
                status = path.stat()
                yield (status.st_dev, status.st_ino), status.st_blocks * 512


def read_smaps(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, inode and PSS in bytes of each mapping."""
    name, inode = "", 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            yield name, inode, int(line.split()[1]) * 1024
        elif found := MAPPING.match(line):
            name, inode = found[3], int(found[2])


@dataclass(frozen=True)
class Usage:
    """CPU time in seconds, and page faults."""

    cpu: float
    faults: int


def usage(processes: Iterable[psutil.Process]) -> Usage:
    """Return what ``processes``, those below them, and their children that have ended used."""
    pids = {p.pid for process in processes for p in (process, *descendants(process.pid))}
    ticks = faults = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            faults += sum(map(int, values[7:11]))
            ticks += sum(map(int, values[11:15]))
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), faults)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU time of ``processes`` so far, from schedstat's nanoseconds."""
    total = 0
    for process in processes:
        for _, _, spent in thread_times(process.pid):
            total += spent
    return total / 1e9


def thread_times(pid: int) -> Iterator[tuple[int, str, int]]:
    """Yield thread id, name and nanoseconds of CPU time of each thread of ``pid``."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            spent = int((task / "schedstat").read_text().split()[0])
            yield int(task.name), (task / "comm").read_text().strip(), spent
