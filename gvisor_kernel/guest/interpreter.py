"""The interpreter of PID 1 and of kernels, set up for gVisor, where system calls are slow.

Mapping memory, touching it for the first time and reading a file cost many times as much inside
gVisor as on Linux. Nothing here changes what a program computes. The settings are made in the
process, not by variables: those would reach every program that a cell starts, and be seen in
``os.environ``. A fork has them, a new program does not.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any


def prepare() -> None:
    """Make all settings that forks inherit. Idempotent."""
    read_quickly()
    prepare_malloc(os.environ)
    limit_malloc_arenas()


# -- switches --------------------------------------------------------------------------------------

PLAIN = "GVISOR_KERNEL_PLAIN"
"""A variable of the kernel: names, separated by spaces, of what is to be as on any Linux: a row of
the table in docs/performance.md each, or ``all``."""


def is_plain(name: str, environment: Mapping[str, str]) -> bool:
    """Return whether ``environment`` asks that what ``name`` makes quicker is left as it is."""
    return not {name, "all"}.isdisjoint(environment.get(PLAIN, "").split())


# -- files of modules ------------------------------------------------------------------------------

REST_SIZE = 64 * 1024
"""Bytes of a further read where a file is not as long as its status says."""


def read_file(path: str) -> bytes:
    """Return the content of the file ``path``.

    :raises OSError: when it cannot be read
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size + 1)
        if len(data) == size > 0:  # one byte more was asked for: this is the end
            return data
        parts = [data]
        while parts[-1]:
            parts.append(os.read(fd, REST_SIZE))
        return b"".join(parts)
    finally:
        os.close(fd)


def read_quickly() -> None:
    """Let importlib's loaders use ``read_file`` from now on, if they are as expected. Idempotent.

    CPython reads a module's file with nine system calls: a buffered stream asks whether it is a
    terminal, twice where it stands and twice how long it is. Here it is four. Nothing else changes:
    what is imported, from where, and how importlib notices that a file has changed. Without this
    the import of numpy, pandas and pyplot takes 1.06 to 1.17 times the CPU time, and a cold start
    1.04 (medians of 18 to 20 interleaved rounds, load 7 to 12).

    A loader that overrides ``get_data`` keeps its own.
    """
    external: Any = importlib._bootstrap_external
    loader = getattr(external, "FileLoader", None)
    if loader is not None and "get_data" in vars(loader):
        loader.get_data = _get_data


def _get_data(self: Any, path: Any) -> bytes:
    """Return the data from ``path`` as raw bytes."""
    return read_file(str(path))


@contextlib.contextmanager
def lone_imports() -> Iterator[None]:
    """Import without locks, and with one look at each path, while this process has one thread.

    CPython takes some five locks for each module, so that two threads do not import it at once, and
    reads the clock for each: a system call for about a second after a sandbox has booted. It also
    asks for the status of a module's file twice, and of its directory for each module. That is
    right in a kernel, where threads import and packages are installed. PID 1 has one thread, and
    its packages are read-only. Without this a cold start takes 1.05 to 1.07 times the CPU time
    (three runs of 20 to 30 interleaved rounds, load 7 to 12).

    Does nothing if this CPython's importlib lacks one of the names.
    """
    bootstrap: Any = importlib._bootstrap
    external: Any = importlib._bootstrap_external
    locks = getattr(bootstrap, "_ModuleLockManager", None)
    status = getattr(external, "_path_stat", None)
    if locks is None or status is None:
        yield
        return
    seen: dict[str, os.stat_result] = {}

    def lock(name: str) -> Any:
        return locks(name) if _thread._count() else contextlib.nullcontext()

    def look(path: str) -> Any:
        if _thread._count():  # Python has started a thread that lives
            return status(path)
        if path not in seen:
            seen[path] = status(path)
        return seen[path]

    bootstrap._ModuleLockManager, external._path_stat = lock, look
    try:
        yield
    finally:
        bootstrap._ModuleLockManager, external._path_stat = locks, status


# -- the stack -------------------------------------------------------------------------------------

CHUNK_SIZE = 1024 * 1024
"""Bytes of the chunk. CPython doubles 16 KiB until the frame and 1000 slots fit. So a frame of a
little more than half leaves the other half, 2,500 ordinary frames, to what it calls. CPython allows
1000 calls unless it is told otherwise. gVisor copies up to 2 MiB of a chunk twice at each fork."""
SLOT_SIZE = 8
"""Bytes of a slot of the interpreter's stack."""


def with_stack_room(function: Callable[[], None]) -> Callable[[], None]:
    """Return ``function`` called from a frame of half of CHUNK_SIZE. Use it once per thread.

    CPython 3.11 and newer keeps Python frames in chunks of 16 KiB, a list of them for each thread.
    A loop whose calls cross the end of a chunk maps and unmaps one at every call. That costs a
    microsecond on Linux and a hundred inside gVisor: at an unlucky depth a first completion took
    47 s instead of 2 s (measured; 254,000 pairs of mmap and munmap). A frame that asks for a large
    stack makes CPython allocate one chunk for it and everything called from it. The stack itself is
    never touched, so it costs no memory.
    """

    def call() -> None:
        function()

    if sys.version_info >= (3, 11):  # noqa: UP036  # the guest runs on 3.9 as well
        assert isinstance(call, FunctionType)
        call.__code__ = call.__code__.replace(co_stacksize=CHUNK_SIZE // 2 // SLOT_SIZE)
    return call


THREAD_CHUNK_SIZE = 256 * 1024
"""Bytes of a thread's chunk. Half is left to its code, some 600 ordinary frames; 16 KiB, which it
would begin with, are full after a hundred."""


def give_threads_room(environment: Mapping[str, str]) -> None:
    """Let each thread of ``threading`` that starts from now on have such a chunk. Idempotent.

    A call that crosses the end of the first one takes 100 to 700 µs in a thread, and 8 µs on Linux.
    Only a number changes in the code of a function that all these threads run: no frame is added.
    """
    if is_plain("threads", environment) or sys.version_info < (3, 11):
        return
    import threading

    bootstrap = getattr(threading.Thread, "_bootstrap", None)
    if isinstance(bootstrap, FunctionType):
        size = THREAD_CHUNK_SIZE // 2 // SLOT_SIZE
        bootstrap.__code__ = bootstrap.__code__.replace(co_stacksize=size)


# -- extension modules -----------------------------------------------------------------------------


def wrap_loader(name: str, wrap: Callable[[FunctionType], FunctionType]) -> None:
    """Replace the method ``name`` of importlib's loader of extension modules by ``wrap`` of it.

    Once, in the kernel's process. Nothing happens where importlib is not as expected. The new one
    looks like the old one, and a traceback leaves it out, as all frames of importlib's own file.
    """
    loader: Any = getattr(importlib._bootstrap_external, "ExtensionFileLoader", None)
    usual = vars(loader).get(name) if loader is not None else None
    if isinstance(usual, FunctionType):
        made = wrap(usual)
        made.__code__ = made.__code__.replace(co_filename=usual.__code__.co_filename)
        made.__doc__, made.__module__ = usual.__doc__, usual.__module__
        made.__qualname__ = usual.__qualname__
        setattr(loader, name, made)


# -- the process's id ------------------------------------------------------------------------------

_ask = os.getpid


def cache_pid() -> None:
    """Keep the process's own id in memory: replace ``os.getpid``. Once, in the kernel's process.

    ipykernel asks for it at each ``print``, and about 30 times for a cell. On Linux that takes
    0.1 µs, inside gVisor 2 µs, and 50 µs while the machine is busy. Without this 5,000 prints take
    8 times as much CPU time, and a ``1+1`` 1.2 times (18 interleaved rounds, load 12). The C
    library kept the id in the same way until 2017.

    A child of ``os.fork``, ``multiprocessing`` or ``subprocess`` gets its own id: Python tells of
    each fork that it makes. A child that a C library forks, and that goes on with this interpreter
    without ``PyOS_AfterFork_Child``, would get its parent's.
    """
    pid = _ask()

    def getpid() -> int:
        """Return the current process id."""
        return pid

    def renew() -> None:
        nonlocal pid
        pid = _ask()

    # Pickled by name, as a function of os: in another interpreter it is that one's own.
    getpid.__module__, getpid.__qualname__ = "os", "getpid"
    os.register_at_fork(after_in_child=renew)
    os.getpid = getpid


# -- malloc ----------------------------------------------------------------------------------------
# malloc gives each block of 128 KiB or more a mapping of its own. This limit grows up to 32 MiB
# when such blocks are freed, and to twice that the free memory at the end of the heap that is kept.
# All processes of the guest begin with these two values, so that temporary arrays reuse memory. A
# kernel that can be asked for its memory keeps more (``heap``). The heap still grows in small
# steps: with steps of 4 MiB a fork took a third more.

_libc = ctypes.CDLL(None)

MIB = 1024 * 1024
M_ARENA_MAX = -8
TUNABLES = "GLIBC_TUNABLES"
# With 4 and 8 MiB, arrays of 5 and 20 MiB took as long as without.
MALLOC_SETTINGS: dict[str, tuple[int, int]] = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * MIB),
    "MALLOC_TRIM_THRESHOLD_": (-1, 64 * MIB),
}
"""Parameters of mallopt(3), as number and value, by the variable that sets the same."""


def prepare_malloc(
    environment: Mapping[str, str], settings: Mapping[str, tuple[int, int]] = MALLOC_SETTINGS
) -> bool:
    """Make ``settings`` for this process, except those that ``environment`` makes. Idempotent.

    Returns False if one could not be made: the C library is not glibc, or a tunable is set.
    """
    if "malloc" in environment.get(TUNABLES, ""):
        return False
    if not hasattr(_libc, "gnu_get_libc_version") or not hasattr(_libc, "mallopt"):
        return False
    chosen = [value for name, value in settings.items() if name not in environment]
    done = [_libc.mallopt(*setting) == 1 for setting in chosen]
    return bool(done) and all(done)


def limit_malloc_arenas() -> None:
    """Let malloc have one arena for each CPU, for this process and its forks.

    glibc gives one to each of the first threads, eight times as many as there are CPUs, and locks
    all of them at a fork. So parent and child write to each, and gVisor copies each twice. Another
    libc has no arenas, and is left alone.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, max(2, os.cpu_count() or 1))
