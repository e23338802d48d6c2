"""Copies of folders and files that stay as they are when packages are upgraded or removed.

    kept/  keeping             locked while copies are made or looked for
           <digest>/part.json  what it is a copy of
                    tree       a folder or a file

Files are hard links where the system and their owners allow that: package managers replace files
by others of the same name. Otherwise they are copied, which costs no space where the file system
shares blocks. Which copies are needed, and by which kernels, is known in ``kept_packages``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX
from functools import cached_property
from io import FileIO
from pathlib import Path

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.host.private_directories import (
    GONE,
    NEW,
    lock,
    locked_directory,
    mark_for_removal,
    new_entry,
    own_state,
    read_file,
    sweep,
    write_file,
)
from gvisor_kernel.typed_json import read_json, write_json

# by path: below the state directory, whose parents only this user can change

TREE, PART = "tree", "part.json"
MAX_PART = 16 * 1024
"""Bytes of part.json: a path, and a digest."""
MAX_FILES, MAX_DEPTH = 400_000, 64
"""Entries of a folder that is copied. One with 300 packages has 60,000."""
SECONDS = 60.0
"""Seconds that one copy may take. A hard link of 12,000 files takes one to three."""
MAX_COPIED, DISK_SHARE = 4 * GIB, 0.2
"""Bytes of all copies that are no hard links, and their share of the disk space that is free."""
KEEP_SECONDS = 3600.0
"""Seconds after its last use until a copy that no kernel needs is removed."""
CHUNK = 16 * 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Copy:
    """A copy of what was at ``path``. ``digest``: of ``digest_tree``. ``copied``: bytes that are no
    hard links."""

    path: str
    digest: str
    copied: int


def kept_root() -> Path:
    """Return where the copies are."""
    return own_state() / "kept"


class Room:
    """Bytes that may be copied where no hard link can be made."""

    @cached_property
    def left(self) -> int:
        """How many there are."""
        copies = (read_copy(str(entry / TREE)) for entry in _find_entries())
        used = sum(copy.copied for copy in copies if copy is not None)
        return int(min(MAX_COPIED - used, DISK_SHARE * shutil.disk_usage(kept_root()).free))


@contextmanager
def locked_copies(seconds: float) -> Iterator[Room]:
    """Hold the lock of all copies, for which other processes wait.

    :raises OSError: when it cannot be had within ``seconds``
    """
    kept_root().mkdir(mode=0o700, exist_ok=True)
    with lock(kept_root() / "keeping", LOCK_EX, create=True, seconds=seconds):
        yield Room()


def read_copy(tree: str) -> Copy | None:
    """Return what the copy at ``tree`` is; None if there is none."""
    with suppress(OSError, ValueError):
        if os.path.lexists(tree):
            return read_json(read_file(Path(tree).parent / PART, MAX_PART), Copy, MAX_PART)
    return None


def digest_tree(tree: str) -> str:
    """Return a digest of the names, sizes and times of all files of a copy. What writes into a
    file of a package also writes into its hard link, and so changes this."""
    found = hashlib.sha256()
    folders = os.walk(tree) if Path(tree).is_dir() else [("", [], [tree])]
    for folder, names, files in folders:
        names.sort()
        for name in sorted(files):
            status = os.lstat(f"{folder}/{name}" if folder else name)
            line = f"{folder}/{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            found.update(line.removeprefix(tree).encode(errors="surrogateescape"))
    return found.hexdigest()


def make_copy(path: str, name: str, room: Room) -> str:
    """Copy what is at ``path`` as the entry ``name``, if there is none, and return its tree.

    ``name``: a digest. One whose files were changed in place is left to kernels that run with it.

    :raises OSError: when it cannot be copied, or there is no room for it; nothing is left then
    """
    root = kept_root()
    while (entry := root / name).is_dir():
        tree = entry / TREE
        known = read_copy(str(tree))
        if known is not None and known.digest == digest_tree(str(tree)):
            os.utime(entry)
            return str(tree)
        name = hashlib.sha256(name.encode()).hexdigest()
    with new_entry(root) as draft:
        tree, copier = draft / TREE, _Copier(path, room)
        copier.copy(tree)
        if copier.copied:
            os.sync()
        part = Copy(path, digest_tree(str(tree)), copier.copied)
        write_file(draft / PART, write_json(part))
        with locked_directory(root):
            draft.rename(entry)
    return str(entry / TREE)


def remove_copies(used: Collection[str]) -> None:
    """Remove the copies that have no name in ``used``, and were not used for KEEP_SECONDS. The
    caller holds ``locked_copies``.

    :raises OSError: when that fails; another sweep will come
    """
    root = kept_root()
    with locked_directory(root):
        for entry in _find_entries():
            unused = time.time() - entry.stat().st_mtime
            if entry.name not in used and not 0 <= unused < KEEP_SECONDS:
                mark_for_removal(entry)
        sweep(root)


def _find_entries() -> Iterator[Path]:
    for entry in kept_root().iterdir():
        if entry.is_dir() and not entry.name.startswith((NEW, GONE)):
            yield entry


class _Copier:
    """Copies ``path``, once."""

    def __init__(self, path: str, room: Room) -> None:
        self.copied = 0
        self._path = path
        self._room = room
        self._is_measured = False
        self._count = 0
        self._deadline = time.monotonic() + SECONDS

    def copy(self, tree: Path) -> None:
        above, name = os.path.split(self._path)
        source, target = os.open(above, _FOLDER), os.open(tree.parent, _FOLDER)
        try:
            self._copy(source, name, target, tree.name, 0)
        finally:
            os.close(source)
            os.close(target)

    def _copy(self, source: int, name: str, target: int, new: str, depth: int) -> None:
        self._count += 1
        if self._count > MAX_FILES or depth > MAX_DEPTH or time.monotonic() > self._deadline:
            raise OSError(f"{self._path} has too many files, or takes too long to copy")
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(new, 0o700, dir_fd=target)
            inner, copy = os.open(name, _FOLDER, dir_fd=source), -1
            try:
                copy = os.open(new, _FOLDER, dir_fd=target)
                for below in os.listdir(inner):  # noqa: PTH208 - a descriptor
                    self._copy(inner, below, copy, below, depth + 1)
                _set_facts(copy, status, 0o700)
            finally:
                os.close(inner)
                if copy >= 0:
                    os.close(copy)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=target)
        elif stat.S_ISREG(status.st_mode) and not status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            self._copy_file(source, name, target, new, status)

    def _copy_file(
        self, source: int, name: str, target: int, new: str, status: os.stat_result
    ) -> None:
        with suppress(OSError):  # another user's file, or on another file system
            os.link(name, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            now = os.stat(new, dir_fd=target, follow_symlinks=False)
            if (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns):
                return
            os.unlink(new, dir_fd=target)
        if not self._is_measured:
            self._is_measured, size = True, _measure(self._path)
            if size > self._room.left:
                raise OSError(
                    f"{self._path} has {size} bytes, and there is room for {self._room.left}"
                )
            self._room.left -= size
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        with (
            open(opened, "rb", buffering=0) as read,
            open(os.open(new, flags, 0o600, dir_fd=target), "wb", buffering=0) as write,
        ):
            _copy_content(read, write)
            _set_facts(write.fileno(), status, 0)
        self.copied += status.st_size


def _copy_content(read: FileIO, write: FileIO) -> None:
    try:
        while os.copy_file_range(read.fileno(), write.fileno(), CHUNK):
            pass
    except OSError:  # between file systems of different kinds
        read.seek(0)
        write.seek(0)
        shutil.copyfileobj(read, write, CHUNK)


def _set_facts(fd: int, status: os.stat_result, mode: int) -> None:
    """Give a copy its owner, mode and time. ``mode``: bits that it has in any case."""
    if os.geteuid() == 0:
        os.chown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode) | mode)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _measure(path: str) -> int:
    if not Path(path).is_dir():
        return Path(path).stat().st_size
    return sum(
        os.lstat(f"{folder}/{name}").st_size for folder, _, names in os.walk(path) for name in names
    )
