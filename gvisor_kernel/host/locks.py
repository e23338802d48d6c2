"""Locks between the threads of a process, and between the processes of a user; what a fork leaves.

Two rules hold for both. A forked child does not inherit the locks of its parent, because no thread
there would release them. And no wait is unbounded: a thread holds a lock only for work that is
bounded itself; another process may be stopped while it holds one, so that wait has a time limit.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Self

MAX_LOCK_SECONDS = 60.0
"""Time limit for the lock of another process. Most are held for milliseconds; the longest one
while an image of some gigabytes is deleted."""
MAX_PAUSE = 0.05
"""Seconds between two attempts: flock() without LOCK_NB could block without a limit."""


class ThreadLock:
    """Like ``threading.Lock``, but unlocked in a child that was forked while a thread held it.

    So the data that it guards must be consistent after each step of a change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no timeout: held for a few steps that do not wait
        _thread_locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()  # no timeout: held for a few steps that do not wait

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def reset(self) -> None:
        """Unlock it, in a forked child."""
        self._lock = threading.Lock()  # no timeout: held for a few steps that do not wait


_thread_locks: weakref.WeakSet[ThreadLock] = weakref.WeakSet()
_locked_fds: set[int] = set()


@contextmanager
def locked_file(fd: int, how: int, seconds: float = MAX_LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock on the open file ``fd``, and close ``fd`` at the end. Blocks.

    ``how``: as for ``flock``.

    :raises TimeoutError: when another process holds the lock for ``seconds``
    :raises BlockingIOError: with LOCK_NB, when another process holds the lock
    :raises OSError: when the file system has no locks
    """
    _locked_fds.add(fd)
    try:
        _lock(fd, how, seconds)
        yield
    finally:
        if fd in _locked_fds:  # in a forked child it is closed already
            _locked_fds.discard(fd)
            with suppress(OSError):
                # A child may have inherited the open file: closing it here would not unlock it.
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
                    errno.ETIMEDOUT, f"{_describe_holder(fd)} has held its lock for {seconds:g} s"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)


def _describe_holder(fd: int) -> str:
    """Describe for an error who holds the lock of ``fd``; see proc_locks(5)."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    # by path: the kernel's own file systems, /proc, /sys and /dev
    with suppress(OSError), open("/proc/locks") as lines:
        for line in lines:
            words = line.split()
            if "FLOCK" in words and file in words and "->" not in words:
                return f"the process {words[words.index(file) - 1]}"
    return "another process"


def _reset_in_child() -> None:
    for lock in list(_thread_locks):
        lock.reset()
    fds = set(_locked_fds)
    _locked_fds.clear()
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


os.register_at_fork(after_in_child=_reset_in_child)


class PerProcess(ABC):
    """Base of classes of which each process has one object: made when first needed, ended when the
    process exits. A forked child gets an instance of its own: threads and child processes
    of the parent's are not in it."""

    _instance: ClassVar[Any] = None
    _lock: ClassVar[ThreadLock]

    def __init_subclass__(cls) -> None:
        cls._instance, cls._lock = None, ThreadLock()

    def __init__(self) -> None:
        self._pid = os.getpid()

    @classmethod
    def instance(cls) -> Self:
        """Return this process's instance. Any thread."""
        with cls._lock:
            instance = cls._instance
            if instance is None or instance.is_inherited:
                instance = cls._instance = cls()
                atexit.register(instance.end)
            return instance  # type: ignore[no-any-return]

    @property
    def is_inherited(self) -> bool:
        """Return whether this is a forked child's copy of its parent's instance."""
        return self._pid != os.getpid()

    @abstractmethod
    def end(self) -> None:
        """End what the instance has. Called when the process exits, also in a forked child with
        its parent's instance, which must do nothing there."""
