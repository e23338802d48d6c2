"""A directory of one user's alone, whose entries come and go among the user's processes.

An entry is in its place in one step, when all of it is on the disk. What half exists is called
``new-<random>``, and what is being removed ``gone-<random>``; the lock ``lock`` of the directory is
held while names change, and that in a new entry as long as somebody makes it. Nothing here follows
a link. What an entry is, and which may go, is its owner's affair.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from gvisor_kernel.host.locks import MAX_LOCK_SECONDS, locked_file

NEW, GONE = "new-", "gone-"


class NotPrivate(Exception):
    """A directory is not this user's alone, or cannot be made; the text says which and why."""


def make_directories(*directories: Path) -> None:
    """Make each, with mode 0700, in the one before it; or see that it is this user's.

    Raises NotPrivate.
    """
    try:
        directories[0].parent.mkdir(parents=True, exist_ok=True)
        for directory in directories:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            status = directory.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise NotPrivate(f"{directory} is a link, or somebody else's.")
            if status.st_mode & 0o077:
                directory.chmod(0o700)
    except OSError as error:
        raise NotPrivate(f"{error.filename} cannot be used: {error.strerror}.") from error


# -- entries of a directory ------------------------------------------------------------------------


def alone(root: Path) -> AbstractContextManager[int]:
    """Nobody else changes names in ``root`` meanwhile. Raises OSError."""
    return lock(root / "lock", fcntl.LOCK_EX, create=True)


@contextlib.contextmanager
def new_entry(root: Path) -> Iterator[Path]:
    """An entry in the making, gone at the end unless it was renamed. Raises OSError."""
    directory = root / f"{NEW}{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        with alone(root):
            directory.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            stack.enter_context(lock(directory / "lock", fcntl.LOCK_SH, create=True))
        yield directory


def take_away(entry: Path) -> None:
    """To where ``sweep`` finds it; whatever it is. Quiet where there is none. For who is alone."""
    with contextlib.suppress(FileNotFoundError):
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink()
        else:
            entry.rename(entry.parent / f"{GONE}{secrets.token_hex(8)}")


def sweep(root: Path) -> None:
    """Remove what was half made, or half removed, by processes that are gone. For who is alone."""
    for name in os.listdir(root):  # noqa: PTH208
        if name.startswith((NEW, GONE)):
            held = lock(root / name / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB, create=True)
            with contextlib.suppress(OSError), held:
                shutil.rmtree(root / name, ignore_errors=True)


# -- files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(
    path: Path, how: int, *, create: bool = False, seconds: float = MAX_LOCK_SECONDS
) -> Iterator[int]:
    """Hold a lock on ``path``, which is no link.

    Raises OSError: also when another process holds it for ``seconds``, and BlockingIOError with
    LOCK_NB.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    fd = os.open(path, flags, 0o600)
    with locked_file(fd, how, seconds):
        yield fd


def read_file(path: Path, most: int) -> bytes:
    """A file of this user's with at most ``most`` bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_size > most:
            raise PermissionError(f"{path} is somebody else's, or too large")
        return file.read()


def write_file(path: Path, text: str) -> None:
    """A new file, for this user alone, that is on the disk afterwards. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
