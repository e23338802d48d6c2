"""Measures the host's memory that a sandbox of runsc holds. All callers count in this one way.

Reads from outside and ends nothing. Counted are:

- the sentry's memory file, which holds the memory of the programs inside;
- the sentry's own memory, which holds file names, pipes, sockets and the like;
- the page tables of the stubs: the processes in which the sentry runs code, one for each process
  inside;
- an estimate of what the host's kernel holds for each stub, open file and mapping, as it reports
  that nowhere.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, suppress

from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.processes import ProcessId, is_alive
from gvisor_kernel.runtimes.state.records import Record

# by path: the kernel's own file systems, /proc, /sys and /dev

MEMORY_FILE = "/memfd:runsc-memory"

BYTES_OF_STUB = 80 * 1024
"""Bytes of the host's kernel for one stub: stack, task, address space (measured: 83 KiB)."""
BYTES_OF_FILE = 1024
"""Bytes of the host's kernel for one open file of the sentry, with its inode (measured: 870)."""
BYTES_OF_MAPPING = 200
"""Bytes of the host's kernel for one mapping of a stub (measured: 191)."""
MIN_SENTRY_BYTES_OF_MAPPING = 500
"""Bytes of the sentry itself for each mapping, at least (measured: 606). So its own memory bounds
how many mappings there can be."""
MAX_MAPPINGS = 65536
"""Mappings that one process can have: ``vm.max_map_count``, which no current distribution sets
lower."""

WHOLE_SECONDS = 1.0
"""The longest time for which the numbers of the stubs are used again: there may be thousands of
stubs."""
MAX_UNSEEN = 16 * 1024**2
"""Bytes by which the page tables of the machine may grow before the stubs are counted again."""

_PAGE = os.sysconf("SC_PAGESIZE")
_STATUS = re.compile(rb"^(PPid|FDSize|VmSize|VmPTE|VmSwap|RssAnon):\s*(\d+)", re.MULTILINE)
_PAGE_TABLES = re.compile(rb"^PageTables:\s*(\d+) kB", re.MULTILINE)
READ_SIZE = 1024 * 1024
"""Bytes; larger than any file of /proc that is read here."""


class HostMemory:
    """Counts the memory of one sandbox, from its start until ``close``. Any thread.

    The directory ``/proc/<pid>`` of the sentry is held open: it belongs to that one process for
    ever, even when another process gets the pid. The memory file is not held open, as that would
    keep its memory alive.
    """

    def __init__(self, directory: int, sentry: int, name: str, inode: tuple[int, int]) -> None:
        self.gofer: ProcessId | None = None
        """Counted too, once it is set."""
        self._directory = directory
        self._sentry = sentry
        self._name = name
        self._inode = inode
        self._lock = ThreadLock()
        self._others = 0
        """Bytes that the processes beside the sentry held when they were read last."""
        self._mappings = 0
        """The number of mappings they can have had then."""
        self._counted_at: float | None = None
        self._page_tables = 0
        """Bytes of page tables of the whole machine: the least since then."""

    @classmethod
    def find(cls, sentry: int) -> HostMemory | None:
        """Return the counter of ``sentry``, or None if that has ended or has no memory file yet."""
        try:
            directory = os.open(f"/proc/{sentry}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        with suppress(OSError):
            for entry in _list(directory, "fd"):
                name = f"fd/{entry}"
                with suppress(OSError):
                    if os.readlink(name, dir_fd=directory).startswith(MEMORY_FILE):
                        status = os.stat(name, dir_fd=directory)
                        return cls(directory, sentry, name, (status.st_dev, status.st_ino))
        os.close(directory)
        return None

    def read(self) -> int | None:
        """Return the bytes that the sandbox holds, or None when it has ended. Does not block."""
        with self._lock:
            if self._directory < 0:
                return None
            try:
                file = os.stat(self._name, dir_fd=self._directory)
                sentry = _read_status("status", self._directory)
                open_files = os.stat("fd", dir_fd=self._directory).st_size
                if self._is_stale():
                    self._count_others()
            except OSError:
                return None
        if (file.st_dev, file.st_ino) != self._inode:
            return None
        own = _sum_private(sentry)
        # Linux before 6.2 does not say how many there are, only for how many there is room.
        files = open_files or sentry.get(b"FDSize", 0)
        mappings = min(self._mappings, own // MIN_SENTRY_BYTES_OF_MAPPING)
        return (
            file.st_blocks * 512
            + own
            + self._others
            + files * BYTES_OF_FILE
            + mappings * BYTES_OF_MAPPING
        )

    def close(self) -> None:
        """Close the descriptor. ``read`` must not be called afterwards."""
        with self._lock:
            os.close(self._directory)
            self._directory = -1

    def _is_stale(self) -> bool:
        """Return whether the stubs must be counted again. Remembers the machine's page tables."""
        found = _PAGE_TABLES.search(_read("/proc/meminfo"))
        now = None if found is None else int(found[1]) * 1024
        old = (
            self._counted_at is None
            or now is None
            or now > self._page_tables + MAX_UNSEEN
            or time.monotonic() > self._counted_at + WHOLE_SECONDS
        )
        if now is not None:
            self._page_tables = now if old else min(now, self._page_tables)
        return old

    def _count_others(self) -> None:
        held = mappings = 0
        for pid in self._find_stubs():
            with suppress(OSError):  # it has ended
                stub = _read_status(f"/proc/{pid}/status")
                if stub.get(b"PPid") == self._sentry:
                    held += _sum_private(stub) + BYTES_OF_STUB
                    mappings += min(stub.get(b"VmSize", 0) * 1024 // _PAGE, MAX_MAPPINGS)
        if self.gofer is not None and is_alive(self.gofer):
            with suppress(OSError):
                held += _sum_private(_read_status(f"/proc/{self.gofer.pid}/status"))
        self._others, self._mappings = held, mappings
        self._counted_at = time.monotonic()

    def _find_stubs(self) -> Iterator[int]:
        """Yield the sentry's children; their children are threads of the same address spaces."""
        for thread in _list(self._directory, "task"):
            with suppress(OSError):
                path = f"task/{thread}/children"
                with open(path, "rb", opener=self._open) as file:
                    yield from map(int, file.read().split())

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, dir_fd=self._directory)


def measure_sandbox(record: Record) -> int | None:
    """Return the memory that a sandbox of this machine holds, by its record; None if it has ended,
    or its processes are not known yet."""
    sentry = record.processes.get("sentry")
    memory = None if sentry is None else HostMemory.find(sentry.pid)
    if sentry is None or memory is None:
        return None
    with closing(memory):
        memory.gofer = record.processes.get("gofer")
        return memory.read() if is_alive(sentry) else None


def _sum_private(status: dict[bytes, int]) -> int:
    """Sum up the memory of one process alone: anonymous, swapped out or not, and page tables."""
    return sum(status.get(name, 0) for name in (b"RssAnon", b"VmSwap", b"VmPTE")) * 1024


def _read_status(path: str, directory: int | None = None) -> dict[bytes, int]:
    """Read numbers of a process from ``status``; those of memory are in KiB."""
    return {name: int(value) for name, value in _STATUS.findall(_read(path, directory))}


def _read(path: str, directory: int | None = None) -> bytes:
    """Read a file of /proc: at most READ_SIZE bytes, or what one read returns."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, READ_SIZE)  # no timeout: a file of /proc
    finally:
        os.close(fd)


def _list(directory: int, name: str) -> list[str]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)  # noqa: PTH208 - an open directory
    finally:
        os.close(fd)
