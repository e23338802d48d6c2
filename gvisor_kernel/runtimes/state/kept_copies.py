"""Copies of folders and files that stay as they are when packages are upgraded or removed.

    kept/  keeping             locked while copies are made or removed
           <digest>/part.json  what it is a copy of
                    tree       a folder or a file

Files are hard links where the file system and their owners allow that: package managers replace
files by others of the same name. Otherwise they are copied. Which copies are needed, and by which
kernels, is known in ``kept_packages``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX
from operator import attrgetter
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

# by path: below the state directory, whose parents only this user can change; or packages where no
# kernel writes

TREE, PART, CACHE = "tree", "part.json", "__pycache__"
MAX_PART = 16 * 1024
"""Bytes of part.json: a path, and a digest."""
MAX_FILES, SECONDS = 400_000, 300.0
"""Files of one copy, and seconds that it may take. Hard links of 12,000 files take one to three."""
MAX_COPIED, DISK_SHARE = 4 * GIB, 0.2
"""Bytes of all copies that are no hard links, and their share of the disk space that is free."""
KEEP_SECONDS = 3600.0
"""Seconds after its last use until a copy that no kernel needs is removed."""
_seen: dict[str, tuple[float, str]] = {}
"""When this process has begun to look at a path, and the copy of what was there."""


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
    for path, status in _list_files(tree):
        facts = f"{status.st_size}\0{status.st_mtime_ns}"
        if stat.S_ISLNK(status.st_mode):
            facts = os.readlink(path)  # noqa: PTH115 - often, so fast
        elif not stat.S_ISREG(status.st_mode):
            continue  # it is not copied
        line = f"{path.removeprefix(tree)}\0{facts}\n"
        found.update(line.encode(errors="surrogateescape"))
    return found.hexdigest()


def _list_files(tree: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files of a copy, or of what is copied, but for those that Python makes anew."""
    folders = [tree]
    if not Path(tree).is_dir():
        folders = []
        yield tree, os.lstat(tree)
    while folders:
        folder, below = folders.pop(), list[str]()
        for entry in _list_folder(folder, must=folder == tree):
            if _is_folder(entry):
                below += [] if entry.is_symlink() else [entry.path]
            else:
                yield entry.path, entry.stat(follow_symlinks=False)
        folders += reversed(below)


def _list_folder(folder: str, *, must: bool) -> list[os.DirEntry[str]]:
    """Return what is in a folder, in order; nothing if that cannot be read, unless it ``must``."""
    try:
        with os.scandir(folder) as entries:
            return sorted((it for it in entries if it.name != CACHE), key=attrgetter("name"))
    except OSError:
        if must:
            raise
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself, or to where this user may not look
        return entry.is_dir()
    return False


def make_copy(path: str, since: float, is_wanted: Callable[[], bool]) -> str:
    """Copy what is at ``path``, if there is no copy of it as it is; return the copy's tree.

    The caller has locked the copies. ``since``: by ``time.monotonic``; a copy will do if this
    process has looked at ``path`` after that. ``is_wanted``: called often; False ends it.

    :raises OSError: when it cannot be copied, or there is no room for it; nothing is left then
    """
    began, (seen, tree) = time.monotonic(), _seen.get(path, (0.0, ""))
    if seen < since or not Path(tree).parent.is_dir():
        tree = _copy(path, is_wanted)
        _seen[path] = began, tree
    os.utime(Path(tree).parent)
    return tree


def _copy(path: str, is_wanted: Callable[[], bool]) -> str:
    root, digest = kept_root(), digest_tree(path)
    entry = root / hashlib.sha256(f"{path}\n{digest}".encode(errors="replace")).hexdigest()
    if entry.is_dir():  # whether it was written into is looked at before it is shown
        return str(entry / TREE)
    copied, count, deadline = 0, 0, time.monotonic() + SECONDS

    def copy(source: str, target: str) -> None:
        nonlocal copied, count
        count += 1
        if not is_wanted():
            raise InterruptedError("the kernel has gone on")
        if count > MAX_FILES or time.monotonic() > deadline:
            raise InterruptedError(f"{path} has too many files, or takes too long to copy")
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # another user's file, or on another file system
            if not copied:
                _check_room(path)
            shutil.copy2(source, target, follow_symlinks=False)
            copied += os.lstat(target).st_size

    with new_entry(root) as draft:
        tree = draft / TREE
        if Path(path).is_dir():
            _copy_folder(path, str(tree), copy)
        else:
            copy(path, str(tree))
        if digest_tree(str(tree)) != digest:
            raise OSError(f"{path} was changed meanwhile")
        write_file(draft / PART, write_json(Copy(path, digest, copied)))
        with locked_directory(root):
            draft.rename(entry)
    return str(entry / TREE)


def remove_copies(used: Collection[str]) -> None:
    """Remove the entries that are not in ``used``, and were not for KEEP_SECONDS. The caller has
    locked the copies.

    :raises OSError: when that fails; another sweep will come
    """
    with locked_directory(kept_root()):
        for entry in _find_entries():
            unused = time.time() - entry.stat().st_mtime
            if entry.name not in used and not 0 <= unused < KEEP_SECONDS:
                mark_for_removal(entry)
        sweep(kept_root())


def _check_room(path: str) -> None:
    size = sum(status.st_size for _, status in _list_files(path))
    copies = (read_copy(str(entry / TREE)) for entry in _find_entries())
    used = sum(copy.copied for copy in copies if copy is not None)
    room = int(min(MAX_COPIED - used, DISK_SHARE * shutil.disk_usage(kept_root()).free))
    if size > room:
        raise InterruptedError(f"{path} has {size} bytes, and there is room for {room}")


def locked_copies(seconds: float) -> AbstractContextManager[int]:
    """Hold the lock of all copies, for which other processes wait.

    :raises OSError: when it cannot be had within ``seconds``
    """
    kept_root().mkdir(mode=0o700, exist_ok=True)
    return lock(kept_root() / "keeping", LOCK_EX, create=True, seconds=seconds)


def _find_entries() -> Iterator[Path]:
    for entry in kept_root().iterdir():
        if entry.is_dir() and not entry.name.startswith((NEW, GONE)):
            yield entry


def _copy_folder(path: str, tree: str, copy: Callable[[str, str], None]) -> None:
    for folder, names, files in os.walk(path):
        target, status = tree + folder.removeprefix(path), os.lstat(folder)
        Path(target).mkdir(mode=0o700)
        for name in (*names, *files):
            file = Path(folder, name)
            if file.is_symlink():
                Path(target, name).symlink_to(file.readlink())
            elif name in files and file.is_file():
                copy(str(file), f"{target}/{name}")
        if os.geteuid() == 0:
            os.chown(target, status.st_uid, status.st_gid)
        Path(target).chmod(stat.S_IMODE(status.st_mode) | 0o700)
