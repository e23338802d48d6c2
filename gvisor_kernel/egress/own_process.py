"""Limits that a process of this package sets itself, and how it fails.

A process that has no memory left ends: whatever was going on when an allocation failed may be half
done, and another process takes its place at the next request. So nothing goes on in a state that
nobody has thought of.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import traceback
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
SHORT = 0.75
"""The part of its memory from which on a process takes no more work."""
NO_THREAD = "can't start new thread"
"""Text of the RuntimeError that Python raises where there is no memory for a thread's stack."""


def protect() -> None:
    """Let no core dump, and no other process of this user, show the memory of this one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(parent: int, signal_number: int) -> bool:
    """Get a signal when the thread that has started this process ends. Return whether it lives.

    The kernel sends the signal, so it also reaches a process that is busy or stopped.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    return os.getppid() == parent


def limit_memory(size: int) -> None:
    """Let this process have ``size`` bytes: its heap, its stacks and what it maps to write.

    An allocation over it raises MemoryError. Files that are mapped to be read do not count.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    # A process that this one starts may have more: so the hard limit stays.
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))


def is_memory_short() -> bool:
    """Return whether this process has used SHORT of what ``limit_memory`` allows."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return False
    with open("/proc/self/statm", "rb") as file:  # by path: a file of the host's kernel
        pages = int(file.read().split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE") > SHORT * limit


def limit_time(seconds: int) -> None:
    """Let this process use the CPU for so long from now on; then SIGXCPU ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error says that memory is missing, or was caused by one that does."""
    seen: set[int] = set()
    found = [error]
    while found:
        one = found.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, MemoryError) or (
            isinstance(one, RuntimeError) and str(one) == NO_THREAD
        ):
            return True
        seen.add(id(one))
        found += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            found += one.exceptions
    return False


def end_if_out_of_memory(error: BaseException | None) -> None:
    """Kill this process if ``error`` says that it has no memory left."""
    try:
        ends = is_out_of_memory(error)
    except MemoryError:  # not even for that
        ends = True
    if ends:
        os.write(2, b"the process needs more memory than it may have, and ends\n")
        os.kill(os.getpid(), signal.SIGKILL)


def describe_error(error: BaseException | None) -> str:
    """Return kind and place of an error. Not its text: it may quote a header with a credential."""
    if error is None:
        return "an unknown error"
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__} at {places or 'an unknown place'}"
