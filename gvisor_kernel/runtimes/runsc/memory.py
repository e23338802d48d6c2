"""How much of the host's memory a sandbox of runsc holds: one way of counting, for all who ask.

Looks from outside, ends nothing. What a program inside has in memory is in the sentry's memory
file. What it makes the host spend beside it is counted as well: names of files, pipes, sockets and
the like are in the sentry's own memory; the page tables of its address spaces belong to the
processes in which the sentry runs its code, one for each process inside (gVisor calls them stubs);
and for each of those, each open file and each mapping the host's kernel has something of its own,
which it tells nobody about, so that is reckoned.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.processes import ProcessId, is_alive

MEMORY_FILE = "/memfd:runsc-memory"

BYTES_OF_STUB = 80 * 1024
"""Of the host's kernel for one stub: stack, task, address space (measured: 83 KiB)."""
BYTES_OF_FILE = 1024
"""Likewise for one file that the sentry has open, with its inode (measured: 870)."""
BYTES_OF_MAPPING = 200
"""Likewise for one mapping of a stub (measured: 191)."""
MIN_SENTRY_BYTES_OF_MAPPING = 500
"""The sentry itself holds so much for each (measured: 606): so there cannot be more than that."""
MAX_MAPPINGS = 65536
"""Of one process: ``vm.max_map_count``, as no distribution of today has it lower."""

WHOLE_SECONDS = 1.0
"""The longest time for which what was counted of the stubs holds: there may be thousands."""
MAX_UNSEEN = 16 * 1024**2
"""By so much the page tables of the whole machine may grow meanwhile; then all is counted anew."""

_PAGE = os.sysconf("SC_PAGESIZE")
_STATUS = re.compile(rb"^(PPid|FDSize|VmSize|VmPTE|VmSwap|RssAnon):\s*(\d+)", re.MULTILINE)
_PAGE_TABLES = re.compile(rb"^PageTables:\s*(\d+) kB", re.MULTILINE)
READ_SIZE = 1024 * 1024


class HostMemory:
    """Of one sandbox, from its start until ``close``. For any thread.

    The directory ``/proc/<pid>`` of the sentry is held open: it belongs to that one process for
    ever, also when the pid is another's. The memory file is not: that would keep it alive.
    """

    def __init__(self, directory: int, sentry: int, name: str, inode: tuple[int, int]) -> None:
        self.gofer: ProcessId | None = None
        """Counted too, once it is known."""
        self._directory = directory
        self._sentry = sentry
        self._name = name
        self._inode = inode
        self._lock = ThreadLock()
        self._others = 0
        """What the processes beside the sentry hold, when they were last looked at."""
        self._mappings = 0
        """So many they can have had then."""
        self._looked: float | None = None
        self._page_tables = 0
        """Of the machine, at most since then the least."""

    @classmethod
    def find(cls, sentry: int) -> HostMemory | None:
        """None where ``sentry`` is gone, or has no memory file yet."""
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
        """Bytes; None when the sandbox is gone."""
        with self._lock:
            if self._directory < 0:
                return None
            try:
                file = os.stat(self._name, dir_fd=self._directory)
                sentry = _read_status("status", self._directory)
                open_files = os.stat("fd", dir_fd=self._directory).st_size
                if self._is_old():
                    self._look_at_others()
            except OSError:
                return None
        if (file.st_dev, file.st_ino) != self._inode:
            return None
        own = _held(sentry)
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
        with self._lock:
            os.close(self._directory)
            self._directory = -1

    def _is_old(self) -> bool:
        """Whether the stubs have to be looked at again. Remembers the machine's page tables."""
        found = _PAGE_TABLES.search(_read("/proc/meminfo"))
        now = None if found is None else int(found[1]) * 1024
        old = (
            self._looked is None
            or now is None
            or now > self._page_tables + MAX_UNSEEN
            or time.monotonic() > self._looked + WHOLE_SECONDS
        )
        if now is not None:
            self._page_tables = now if old else min(now, self._page_tables)
        return old

    def _look_at_others(self) -> None:
        held = mappings = 0
        for pid in self._find_stubs():
            with suppress(OSError):  # it has ended
                stub = _read_status(f"/proc/{pid}/status")
                if stub.get(b"PPid") == self._sentry:
                    held += _held(stub) + BYTES_OF_STUB
                    mappings += min(stub.get(b"VmSize", 0) * 1024 // _PAGE, MAX_MAPPINGS)
        if self.gofer is not None and is_alive(self.gofer):
            with suppress(OSError):
                held += _held(_read_status(f"/proc/{self.gofer.pid}/status"))
        self._others, self._mappings = held, mappings
        self._looked = time.monotonic()

    def _find_stubs(self) -> Iterator[int]:
        """The sentry's children. Theirs are further threads of the same address spaces."""
        for thread in _list(self._directory, "task"):
            with suppress(OSError):
                path = f"task/{thread}/children"
                with open(path, "rb", opener=self._open) as file:
                    yield from map(int, file.read().split())

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, dir_fd=self._directory)


def _held(status: dict[bytes, int]) -> int:
    """Bytes that are a process's alone: anonymous memory, swapped out or not, and page tables."""
    return sum(status.get(name, 0) for name in (b"RssAnon", b"VmSwap", b"VmPTE")) * 1024


def _read_status(path: str, directory: int | None = None) -> dict[bytes, int]:
    """Numbers of a process, as the host's kernel gives them: of memory in KiB."""
    return {name: int(value) for name, value in _STATUS.findall(_read(path, directory))}


def _read(path: str, directory: int | None = None) -> bytes:
    """A file of the host's kernel, up to READ_SIZE, or to what that gives at once."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, READ_SIZE)
    finally:
        os.close(fd)


def _list(directory: int, name: str) -> list[str]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)  # noqa: PTH208 - an open directory
    finally:
        os.close(fd)
