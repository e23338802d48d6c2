"""Locks among the threads of a process, and among a user's processes.

Two rules hold for both. A forked child has none of its parent's: nobody there would give it back.
And none is waited for without end: a thread holds one for work that is bounded itself, and a
process may be stopped while it holds one, so that is waited for so long and no longer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MAX_LOCK_SECONDS = 60.0
"""How long a lock of another process is waited for. Most are held for milliseconds; the longest
while a removed image of some gigabytes is deleted."""
MAX_PAUSE = 0.05
"""Between two looks: nothing tells of a lock's end but a call without end."""


class ThreadLock:
    """Like ``threading.Lock``, and free in a child that was forked while a thread held it.

    What it guards must be right between any two steps of who changes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _thread_locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Free, whoever held it."""
        self._lock = threading.Lock()


_thread_locks: weakref.WeakSet[ThreadLock] = weakref.WeakSet()
_files: set[int] = set()


@contextmanager
def locked_file(fd: int, how: int, seconds: float = MAX_LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock on the open file ``fd``, which is closed at the end. ``how`` as for ``flock``.

    Raises TimeoutError, an OSError, after ``seconds``; BlockingIOError with LOCK_NB.
    """
    _files.add(fd)
    try:
        _lock(fd, how, seconds)
        yield
    finally:
        if fd in _files:  # a forked child has let it go already
            _files.discard(fd)
            with suppress(OSError):
                # Closed alone, it would last for as long as a child has the open file, too.
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def _lock(fd: int, how: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if how & fcntl.LOCK_NB:
                raise
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"{_holder(fd)} has held its lock for {seconds:g} s"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)


def _holder(fd: int) -> str:
    """Who holds the lock of ``fd``, for people: as proc_locks(5) has it."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError), open("/proc/locks") as lines:
        for line in lines:
            words = line.split()
            if "FLOCK" in words and file in words and "->" not in words:
                return f"the process {words[words.index(file) - 1]}"
    return "another process"


def _in_child() -> None:
    for lock in list(_thread_locks):
        lock.renew()
    files = set(_files)
    _files.clear()
    for fd in files:
        with suppress(OSError):
            os.close(fd)


os.register_at_fork(after_in_child=_in_child)
