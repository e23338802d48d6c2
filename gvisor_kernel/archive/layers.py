"""Apply archives and directories to a tree: the layers of an image in order, or one root.

This module decides what of an image is refused, left out and changed; docs/images.md lists it.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gvisor_kernel.archive.tar import (
    Entry,
    Kind,
    Stream,
    TarReader,
    check_target,
    quote_name,
    split_name,
)
from gvisor_kernel.archive.tree import Parts, Tree
from gvisor_kernel.config.validators import GIB, MIB
from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.host.descriptors import closing_fd

# by path: below a folder that is held open

MAX_ENTRIES = 600_000
"""Files, directories and links of all layers together. An image with an office suite and TeX has
half as many."""
MAX_BYTES = 64 * GIB
"""Bytes that one import may read."""
DISK_SPARE = 256 * MIB
"""Bytes that an import leaves free on its disk."""
ENTRY_COST = 4096
"""Bytes that an entry takes on the disk in addition to its content."""

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
WHITEOUT_OTHER = ".wh..wh."
DEVICE_FOLDERS = ("dev",)
"""Base images have a few device nodes here. A sandbox has its own."""


@dataclass
class Budget:
    """The entries and bytes that one import may still read, and counts of those that it left out.

    ``what``: what is imported, for messages. ``most_entries``, ``most_bytes``: the whole budget.
    """

    entries: int = MAX_ENTRIES
    bytes: int = MAX_BYTES
    left_out: dict[str, int] = field(default_factory=dict)
    what: str = "the image"
    most_entries: int = MAX_ENTRIES
    most_bytes: int = MAX_BYTES

    @classmethod
    def of_disk(
        cls,
        directory: Path,
        what: str = "the image",
        *,
        entries: int = MAX_ENTRIES,
        most: int = MAX_BYTES,
    ) -> Budget:
        """Make a budget of the free disk space in ``directory``, less DISK_SPARE.

        ``most``: bytes at most. ``entries``: entries at most.
        """
        free = shutil.disk_usage(directory).free - DISK_SPARE
        return cls(
            entries=entries,
            bytes=max(min(most, free), 0),
            what=what,
            most_entries=entries,
            most_bytes=most,
        )

    def charge(self, size: int) -> None:
        """Count an entry with ``size`` bytes of content.

        :raises ArchiveError: when the budget is used up
        """
        self.entries -= 1
        self.bytes -= size + ENTRY_COST
        if self.entries < 0:
            raise ArchiveError(
                f"{self.what} has more than {self.most_entries} files, directories and links"
            )
        if self.bytes < 0:
            raise ArchiveError(
                f"{self.what} needs more disk space than is available",
                f"free some disk space ({DISK_SPARE // MIB} MiB always stay free). It may have at"
                f" most {self.most_bytes // GIB} GiB.",
            )

    def count_left_out(self, kind: Kind) -> None:
        """Count an entry that is not unpacked, by its kind."""
        name = f"{kind.value}s"
        self.left_out[name] = self.left_out.get(name, 0) + 1


def apply_archive(stream: Stream, tree: Tree, budget: Budget, *, is_layer: bool) -> None:
    """Unpack a tar archive over what the tree contains.

    In a layer (``is_layer``), names that begin with ``.wh.`` remove files of the layers below,
    wherever in the archive they are. Otherwise they are ordinary names.

    :raises ArchiveError: when an entry is not accepted
    :raises OSError: when the tree cannot be written
    """
    reader = TarReader(stream)
    names = _Names(budget)
    for entry in reader:
        budget.charge(entry.size)
        parts = entry.parts
        if is_layer and parts and parts[-1].startswith(WHITEOUT):
            if parts[-1] == OPAQUE:
                names.find(parts[:-1]).opaque = True
            elif not parts[-1].startswith(WHITEOUT_OTHER):
                hidden = (*parts[:-1], parts[-1].removeprefix(WHITEOUT))
                _check_whiteout(hidden)
                names.record(hidden, None)
                tree.remove(hidden)
            continue
        if names.record(parts, entry.kind):
            tree.put_folder(parts, entry.mode, entry.mtime)
            continue
        _put_entry(tree, entry, reader, budget)
    names.clear_opaque(tree)


def _check_whiteout(hidden: Parts) -> None:
    if hidden[-1] in ("", ".", ".."):
        raise ArchiveError(
            f"a whiteout names {quote_name('/'.join(hidden))}, which is not a valid file name"
        )


class _Name:
    """``kind`` is None while only names below it were seen. ``removed`` means: by this archive."""

    __slots__ = ("below", "kind", "opaque", "removed")

    def __init__(self) -> None:
        self.below: dict[str, _Name] = {}
        self.kind: Kind | None = None
        self.removed = False
        self.opaque = False


class _Names:
    """The names of one archive, as a tree. It is walked once, whatever the archive contains."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._root = _Name()

    def find(self, parts: Parts) -> _Name:
        """Return the node of a name. A new parent directory counts as an entry, as unpacking
        creates it.

        :raises ArchiveError: when the budget is used up
        """
        name = self._root
        for part in parts:
            below = name.below.get(part)
            if below is None:
                below = name.below[part] = _Name()
                self._budget.charge(0)
            name = below
        return name

    def record(self, parts: Parts, kind: Kind | None) -> bool:
        """Record an entry, or the removal of a name (None). Return whether it is a directory that
        was recorded before.

        :raises ArchiveError: when the archive has any other second entry of the name
        """
        above = self.find(parts[:-1])
        name = above.below.setdefault(parts[-1], _Name()) if parts else above
        if name.kind is None and not name.removed:
            name.kind, name.removed = kind, kind is None
            return False
        if name.kind is Kind.DIRECTORY and kind is Kind.DIRECTORY:
            return True
        shown = quote_name("/".join(parts))
        if kind is None or name.removed:
            raise ArchiveError(f"a layer both contains and removes {shown}")
        raise ArchiveError(f"the archive has two entries named {shown}")

    def clear_opaque(self, tree: Tree) -> None:
        """Remove what the layers below have in opaque directories, at any depth. Entries of this
        layer stay."""
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


def _put_entry(tree: Tree, entry: Entry, reader: TarReader, budget: Budget) -> None:
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
    """Count a pipe or a device in /dev. Programs create pipes anew, and a sandbox has a /dev."""
    if kind is Kind.DEVICE and parts[:1] != DEVICE_FOLDERS:
        raise ArchiveError(f"{quote_name('/'.join(parts))} is a device outside of /dev")
    budget.count_left_out(kind)


# Directories.


def apply_folder(directory: Path, tree: Tree, budget: Budget) -> None:
    """Copy the root file system in ``directory`` without following symbolic links.

    :raises ArchiveError: when a file is not accepted
    :raises OSError: when the directory cannot be read or the tree cannot be written
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
            with closing_fd(_open_folder(root, parts)) as folder:
                for name in sorted(os.listdir(folder)):  # noqa: PTH208 - a descriptor
                    entry, status = _stat_entry(folder, name, (*parts, name))
                    budget.charge(entry.size)
                    if entry.kind is Kind.DIRECTORY:
                        if status.st_dev == os.fstat(root).st_dev:
                            waiting.append(entry.parts)
                        tree.put_folder(entry.parts, entry.mode, entry.mtime)
                    elif entry.kind is Kind.FILE:
                        first = links.get((status.st_dev, status.st_ino))
                        if first is not None:
                            tree.put_hard_link(entry.parts, first)
                            continue
                        _copy_file(tree, entry, folder, name)
                        if status.st_nlink > 1:
                            links[status.st_dev, status.st_ino] = entry.parts
                    elif entry.kind is Kind.SYMLINK:
                        tree.put_symlink(entry.parts, entry.target, entry.mtime)
                    else:
                        _leave_out(entry.parts, entry.kind, budget)


def _open_folder(root: int, parts: Parts) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(".", flags, dir_fd=root)
    for part in parts:
        with closing_fd(fd):
            below = os.open(part, flags, dir_fd=fd)
        fd = below
    return fd


def _stat_entry(folder: int, name: str, parts: Parts) -> tuple[Entry, os.stat_result]:
    split_name("/".join(parts))
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise ArchiveError(
            f"{quote_name('/'.join(parts))} is a socket or another unsupported kind of file"
        )
    target = ""
    if kind is Kind.SYMLINK:
        target = check_target(os.readlink(name, dir_fd=folder), name)
    size = status.st_size if kind is Kind.FILE else 0
    mode = stat.S_IMODE(status.st_mode)
    return Entry(parts, kind, mode, max(int(status.st_mtime), 0), size, target), status


def _copy_file(tree: Tree, entry: Entry, folder: int, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with closing_fd(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ArchiveError(f"{quote_name(entry.name)} changed while it was copied")
        left = entry.size

        def read(size: int) -> bytes:
            nonlocal left
            # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
            data = os.read(fd, min(size, left))
            left -= len(data)
            return data

        tree.put_file(entry.parts, entry.mode, entry.mtime, read)


_KINDS: dict[int, Kind] = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.DEVICE,
    stat.S_IFBLK: Kind.DEVICE,
    stat.S_IFIFO: Kind.FIFO,
}
