"""A store: a private directory of this user, with one entry for each thing that is kept.

    lock             locked while names change
    <name>/          an entry: all of it was written to the disk before it got its name
    new-<random>/    being written, as long as its lock is held; ``scratch`` is not kept
    gone-<random>/   being removed

All processes of the user share it. What an entry contains, what it is called and when it is removed
is decided by the store of each kind. ``measure_tree`` computes the digest of a tree.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host import private_directories
from gvisor_kernel.host.private_directories import (
    mark_for_removal,
    new_entry,
    own_data,
    remove_at_any_depth,
)

# by path: below a private store of this user

T = TypeVar("T")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Draft:
    """An entry that is being written."""

    directory: Path

    @property
    def tree(self) -> Path:
        """The folder of what is kept."""
        return self.directory / "tree"

    @property
    def scratch(self) -> Path:
        """The folder for what is not. A sandbox may have filled it."""
        return self.directory / "scratch"


class DigestStore(ABC, Generic[T]):
    """A store whose entries have the names of their digests.

    Its methods may block for seconds: do not call them from an event loop.

    :raises OSError: (methods that write) when the directory cannot be used
    """

    FOLDER: ClassVar[str]
    """Its name below this user's data directory."""
    BELOW: ClassVar[tuple[str, ...]] = ()
    """Names of further private directories in it."""
    ERROR: ClassVar[type[GvisorKernelError]]
    """Raised when its directory is not private to this user."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls) -> Self:
        """Open the store of this user; create it if it does not exist.

        :raises GvisorKernelError: (``ERROR``) when its directory is not private to this user
        """
        data = own_data()
        root = data / cls.FOLDER
        try:
            below = (root / name for name in cls.BELOW)
            private_directories.make_directories(data, root, *below)
        except private_directories.NotPrivate as error:
            raise cls.ERROR(
                str(error),
                "make it a directory that only you can access, or set XDG_DATA_HOME to another"
                " place.",
            ) from error
        return cls(root)

    @abstractmethod
    def load(self, directory: Path) -> T:
        """Read an entry.

        :raises OSError, ValueError: when it cannot be read, or is none
        """

    def read(self, digest: str) -> T | None:
        """Return the entry of this digest; None if there is none that can be read."""
        if DIGEST.fullmatch(digest):
            with suppress(OSError, ValueError):
                return self.load(self.root / digest)
        return None

    def entries(self) -> list[T]:
        """Return all entries that can be read."""
        found = (self.read(name) for name in os.listdir(self.root))  # noqa: PTH208
        return [entry for entry in found if entry is not None]

    def locked(self) -> AbstractContextManager[int]:
        """Hold the lock of the store: no other process changes names in it."""
        return private_directories.locked_directory(self.root)

    @contextmanager
    def write(self) -> Iterator[Draft]:
        """Yield a new, unfinished entry. At the end it is removed, unless it was published."""
        self.sweep()
        with new_entry(self.root) as directory:
            draft = Draft(directory)
            draft.tree.mkdir(mode=0o755)
            draft.scratch.mkdir(mode=0o700)
            try:
                yield draft
            finally:
                remove_at_any_depth(draft.scratch)

    def publish(self, draft: Draft, digest: str) -> None:
        """Give an entry its name, unless there is such an entry already. Needs ``locked``."""
        remove_at_any_depth(draft.scratch)
        if self.read(digest) is None:
            mark_for_removal(self.root / digest)
            draft.directory.rename(self.root / digest)

    def sweep(self) -> None:
        """Remove what processes that have ended have left unfinished."""
        with self.locked():
            self._sweep()

    def _sweep(self) -> None:
        for name in os.listdir(self.root):  # noqa: PTH208
            if name.startswith((private_directories.NEW, private_directories.GONE)):
                draft, how = Draft(self.root / name), fcntl.LOCK_EX | fcntl.LOCK_NB
                lock = private_directories.lock(draft.directory / "lock", how, create=True)
                with suppress(OSError), lock:
                    remove_at_any_depth(draft.scratch)
        private_directories.sweep(self.root)


@dataclass(frozen=True)
class Measure:
    """``digest`` is SHA-256 in hexadecimal digits, ``size`` is in bytes on the disk."""

    digest: str
    size: int
    entries: int


def measure_tree(directory: Path, environment: Mapping[str, str]) -> Measure:
    """Compute the digest and the size of a root file system. Reads every file. Blocks.

    The digest covers the environment, and names, kinds, modes, contents and link targets of all
    files, and the modification times of regular files, because compiled Python modules depend on
    them. Owners and inodes are not covered.

    :raises OSError: when a file cannot be read
    """
    total = hashlib.sha256(json.dumps(dict(environment), sort_keys=True).encode())
    contents: dict[tuple[int, int], str] = {}
    size = entries = 0
    waiting = [b"."]
    root = os.fsencode(directory)
    while waiting:
        place = waiting.pop()
        with os.scandir(os.path.join(root, place)) as found:  # noqa: PTH118 - bytes
            items = sorted(found, key=lambda item: item.name)
        for item in items:
            status = item.stat(follow_symlinks=False)
            path = place + b"/" + item.name
            kind, detail = stat.S_IFMT(status.st_mode), ""
            inode = (status.st_dev, status.st_ino)
            if kind == stat.S_IFDIR:
                waiting.append(path)
            elif kind == stat.S_IFREG:
                if inode not in contents:
                    contents[inode] = _digest(os.path.join(root, path))  # noqa: PTH118
                detail = f"{int(status.st_mtime)} {contents[inode]}"
            elif kind == stat.S_IFLNK:
                detail = os.fsdecode(os.readlink(os.path.join(root, path)))  # noqa: PTH115, PTH118
            line = f"{kind:o} {stat.S_IMODE(status.st_mode):o} {os.fsdecode(path)}\0{detail}\0"
            total.update(os.fsencode(line))
            if kind == stat.S_IFDIR or inode not in contents or status.st_nlink == 1:
                size += status.st_blocks * 512
            else:
                size += status.st_blocks * 512 // status.st_nlink
            entries += 1
    return Measure(total.hexdigest(), size, entries)


def _digest(path: bytes) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
