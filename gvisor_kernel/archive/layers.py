"""Archives and folders applied to a tree: the layers of an image one over the other, or one root.

What is refused, left out and changed of an image is decided here; docs/images.md lists it.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.archive.tar import Entry, Kind, Stream, TarReader, check_target, show, split_name
from gvisor_kernel.archive.tree import Parts, Tree
from gvisor_kernel.config.validators import GIB, MIB

MAX_ENTRIES = 600_000
"""Files, folders and links, in all layers. One with an office suite and TeX has half."""
MAX_BYTES = 64 * GIB
DISK_SPARE = 256 * MIB
"""What an import leaves free on its disk."""
ENTRY_COST = 4096
"""Bytes that an entry takes on the disk besides its content."""

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
WHITEOUT_OTHER = ".wh..wh."
DEVICE_FOLDERS = ("dev",)
"""Here base images have a few device nodes, which a sandbox replaces by its own."""


@dataclass
class Budget:
    """What may still be taken, of all that one import reads; and what of it was left out."""

    entries: int = MAX_ENTRIES
    bytes: int = MAX_BYTES
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_disk(cls, directory: Path) -> Budget:
        free = shutil.disk_usage(directory).free - DISK_SPARE
        return cls(bytes=max(min(MAX_BYTES, free), 0))

    def take(self, size: int) -> None:
        """An entry with ``size`` bytes. Raises Refused."""
        self.entries -= 1
        self.bytes -= size + ENTRY_COST
        if self.entries < 0:
            raise Refused(f"it has more than {MAX_ENTRIES} files, folders and links")
        if self.bytes < 0:
            raise Refused(
                "its files take more space than there is for it",
                f"make room on the disk, of which {DISK_SPARE // MIB} MiB stay free; an image may"
                f" have {MAX_BYTES // GIB} GiB.",
            )

    def leave_out(self, kind: Kind) -> None:
        name = f"{kind.value}s"
        self.left_out[name] = self.left_out.get(name, 0) + 1


def apply_archive(stream: Stream, tree: Tree, budget: Budget, *, is_layer: bool) -> None:
    """Unpack a tar archive over what the tree has. Raises Refused, OSError.

    ``is_layer``: names that begin with ``.wh.`` say what of the layers below is not there any
    more, wherever in the archive they stand. Else they are names.
    """
    reader = TarReader(stream)
    names = _Names(budget)
    for entry in reader:
        budget.take(entry.size)
        parts = entry.parts
        if is_layer and parts and parts[-1].startswith(WHITEOUT):
            if parts[-1] == OPAQUE:
                names.find(parts[:-1]).opaque = True
            elif not parts[-1].startswith(WHITEOUT_OTHER):
                hidden = (*parts[:-1], parts[-1].removeprefix(WHITEOUT))
                _check_whiteout(hidden)
                names.note(hidden, None)
                tree.remove(hidden)
            continue
        if names.note(parts, entry.kind):
            tree.put_folder(parts, entry.mode, entry.mtime)
            continue
        _put(tree, entry, reader, budget)
    names.hide_below(tree)


def _check_whiteout(hidden: Parts) -> None:
    if hidden[-1] in ("", ".", ".."):
        raise Refused(f"it removes {show('/'.join(hidden))}, which is no name")


class _Name:
    """``kind``: None while only what is below it was named. ``removed``: by this archive."""

    __slots__ = ("below", "kind", "opaque", "removed")

    def __init__(self) -> None:
        self.below: dict[str, _Name] = {}
        self.kind: Kind | None = None
        self.removed = False
        self.opaque = False


class _Names:
    """What one archive has named, as a tree: all of it is gone through once, whatever it says."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._root = _Name()

    def find(self, parts: Parts) -> _Name:
        """What is noted of a name. A folder that is only on the way to it counts as an entry:
        it will be made. Raises Refused."""
        name = self._root
        for part in parts:
            below = name.below.get(part)
            if below is None:
                below = name.below[part] = _Name()
                self._budget.take(0)
            name = below
        return name

    def note(self, parts: Parts, kind: Kind | None) -> bool:
        """Note an entry, or None for what is removed. True for a folder that was noted before.

        Raises Refused for any other second entry of one name.
        """
        above = self.find(parts[:-1])
        name = above.below.setdefault(parts[-1], _Name()) if parts else above
        if name.kind is None and not name.removed:
            name.kind, name.removed = kind, kind is None
            return False
        if name.kind is Kind.DIRECTORY and kind is Kind.DIRECTORY:
            return True
        shown = show("/".join(parts))
        if kind is None or name.removed:
            raise Refused(f"one layer both has and removes {shown}")
        raise Refused(f"there are two entries named {shown}")

    def hide_below(self, tree: Tree) -> None:
        """Take away what the layers below have in opaque folders, however deep; keep this layer's
        own."""
        waiting: list[tuple[Parts, _Name, bool]] = [((), self._root, False)]
        while waiting:
            parts, name, hides = waiting.pop()
            hides = hides or name.opaque
            if hides:
                tree.remove_children(parts, name.below.__contains__)
            waiting.extend(
                ((*parts, part), below, hides)
                for part, below in name.below.items()
                if not below.removed and below.kind in (None, Kind.DIRECTORY)
            )


def _put(tree: Tree, entry: Entry, reader: TarReader, budget: Budget) -> None:
    match entry.kind:
        case Kind.DIRECTORY:
            tree.put_folder(entry.parts, entry.mode, entry.mtime)
        case Kind.FILE:
            tree.put_file(entry.parts, entry.mode, entry.mtime, reader.read)
        case Kind.SYMLINK:
            tree.put_symlink(entry.parts, entry.target, entry.mtime)
        case Kind.HARD_LINK:
            tree.put_hard_link(entry.parts, entry.target_parts)
        case _:
            _leave_out(entry.parts, entry.kind, budget)


def _leave_out(parts: Parts, kind: Kind, budget: Budget) -> None:
    """Devices where a sandbox has its own, and pipes, whose use somebody has to make anew."""
    if kind is Kind.DEVICE and parts[:1] != DEVICE_FOLDERS:
        raise Refused(f"{show('/'.join(parts))} is a device that is not in /dev")
    budget.leave_out(kind)


# Folders.


def apply_folder(directory: Path, tree: Tree, budget: Budget) -> None:
    """Copy the root file system in ``directory``, of which nothing is followed.

    Raises Refused, OSError.
    """
    with ExitStack() as stack:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        status = os.fstat(root)
        tree.put_folder((), stat.S_IMODE(status.st_mode), int(status.st_mtime))
        waiting: list[Parts] = [()]
        links: dict[tuple[int, int], Parts] = {}
        while waiting:
            parts = waiting.pop()
            folder = _open_folder(root, parts)
            try:
                for name in sorted(os.listdir(folder)):  # noqa: PTH208 - a descriptor
                    entry, status = _look(folder, name, (*parts, name))
                    budget.take(entry.size)
                    if entry.kind is Kind.DIRECTORY:
                        if status.st_dev == os.fstat(root).st_dev:
                            waiting.append(entry.parts)
                        tree.put_folder(entry.parts, entry.mode, entry.mtime)
                    elif entry.kind is Kind.FILE:
                        first = links.get((status.st_dev, status.st_ino))
                        if first is not None:
                            tree.put_hard_link(entry.parts, first)
                            continue
                        _copy(tree, entry, folder, name)
                        if status.st_nlink > 1:
                            links[status.st_dev, status.st_ino] = entry.parts
                    elif entry.kind is Kind.SYMLINK:
                        tree.put_symlink(entry.parts, entry.target, entry.mtime)
                    else:
                        _leave_out(entry.parts, entry.kind, budget)
            finally:
                os.close(folder)


def _open_folder(root: int, parts: Parts) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(".", flags, dir_fd=root)
    for part in parts:
        try:
            below = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _look(folder: int, name: str, parts: Parts) -> tuple[Entry, os.stat_result]:
    split_name("/".join(parts))
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise Refused(f"{show('/'.join(parts))} is a socket, or something as unusual")
    target = ""
    if kind is Kind.SYMLINK:
        target = check_target(os.readlink(name, dir_fd=folder), name)
    size = status.st_size if kind is Kind.FILE else 0
    mode = stat.S_IMODE(status.st_mode)
    return Entry(parts, kind, mode, max(int(status.st_mtime), 0), size, target), status


def _copy(tree: Tree, entry: Entry, folder: int, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused(f"{show(entry.name)} changed while it was copied")
        left = entry.size

        def read(size: int) -> bytes:
            nonlocal left
            data = os.read(fd, min(size, left))
            left -= len(data)
            return data

        tree.put_file(entry.parts, entry.mode, entry.mtime, read)
    finally:
        os.close(fd)


_KINDS: dict[int, Kind] = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.DEVICE,
    stat.S_IFBLK: Kind.DEVICE,
    stat.S_IFIFO: Kind.FIFO,
}
