"""A root file system that is being written, by paths that strangers chose.

Every path is resolved inside the tree by the kernel, and every file is made anew, so nothing
outside is reached, whatever links the tree holds. All belongs to one owner, who may read all and
enter every folder: a sandbox of an ordinary user knows no other. No set-uid file, no device and
no extended attribute is ever made.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.archive.scoped import open_folder, open_in, sync_file_system
from gvisor_kernel.archive.tar import CHUNK, MAX_DEPTH, show

Parts: TypeAlias = tuple[str, ...]

_IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """The tree below ``directory``, which exists: a path that nobody else can change, or an open
    descriptor, which stays its owner's. ``owner``: the uid and gid of all in it, if it is not to be
    this process's; ``group``: another gid. Methods raise Refused for what cannot be, else OSError.
    """

    def __init__(self, directory: Path | int, owner: int | None, group: int | None = None) -> None:
        self._owner = owner
        self._group = owner if group is None else group
        path = f"/proc/self/fd/{directory}" if isinstance(directory, int) else str(directory)
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder: tuple[Parts, int] | None = None
        """The folder that was used last: most entries lie beside the one before."""
        self._times: dict[Parts, int] = {}
        """Folders get theirs at the end: what is made in one changes it."""
        self._depth_most = _find_path(self._root).count("/") + MAX_DEPTH
        self._own(self._root, ".")

    @property
    def root(self) -> int:
        """A descriptor of the directory, for ``scoped``'s functions."""
        return self._root

    def close(self) -> None:
        self._forget()
        os.close(self._root)

    # -- making ----------------------------------------------------------------------------------

    def put_folder(self, parts: Parts, mode: int, mtime: int) -> None:
        """A folder, or what is to be different of the one that is there."""
        if parts:
            folder, name = self._parent(parts)
            if not self._is_folder(folder, name):
                folder, name = self._place(parts)
                self._make_folder(folder, name, 0o700)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        else:
            fd = self._read_root()
        try:
            os.fchmod(fd, (mode & 0o1777) | 0o700)
        finally:
            os.close(fd)
        self._times[parts] = mtime

    def put_file(self, parts: Parts, mode: int, mtime: int, read: Callable[[int], bytes]) -> None:
        """A file with what ``read(size)`` gives until it gives nothing."""
        folder, name = self._place(parts)
        fd = os.open(name, _NEW, 0o600, dir_fd=folder)
        try:
            while data := read(CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            if self._owner is not None and self._group is not None:
                os.fchown(fd, self._owner, self._group)
            os.fchmod(fd, (mode & 0o777) | 0o400)
            os.utime(fd, (mtime, mtime))
        finally:
            os.close(fd)

    def put_symlink(self, parts: Parts, target: str, mtime: int) -> None:
        folder, name = self._place(parts)
        os.symlink(target, name, dir_fd=folder)
        self._own(folder, name)
        os.utime(name, (mtime, mtime), dir_fd=folder, follow_symlinks=False)

    def put_hard_link(self, parts: Parts, target: Parts) -> None:
        """One more name of a file that is there."""
        where = f"the hard link {show('/'.join(parts))}"
        try:
            source = open_folder(self._root, target[:-1])
        except OSError as error:
            raise Refused(f"{where} leads to what is not there") from error
        try:
            try:
                kind = self._lstat(source, target[-1]).st_mode
            except FileNotFoundError:
                raise Refused(f"{where} leads to what is not there") from None
            if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                raise Refused(f"{where} leads to what is no file")
            if parts == target:
                raise Refused(f"{where} leads to itself")
            folder, name = self._place(parts)
            try:
                os.link(
                    target[-1],
                    name,
                    src_dir_fd=source,
                    dst_dir_fd=folder,
                    follow_symlinks=False,
                )
            except FileNotFoundError:  # it was the same file, by another way
                raise Refused(f"{where} leads to itself") from None
        finally:
            os.close(source)

    # -- removing --------------------------------------------------------------------------------

    def remove(self, parts: Parts) -> None:
        """What is there, if anything is, with all that is in it."""
        with suppress(OSError):
            folder = open_folder(self._root, parts[:-1])
            try:
                self._clear(folder, parts[-1])
            finally:
                os.close(folder)
        self._forget()

    def remove_children(self, parts: Parts, keep: Callable[[str], bool]) -> None:
        """All that is in a folder but the names to ``keep``."""
        with suppress(OSError):
            folder = open_in(self._root, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name in os.listdir(folder):  # noqa: PTH208 - a descriptor
                    if not keep(name):
                        self._clear(folder, name)
            finally:
                os.close(folder)
        self._forget()

    def finish(self) -> None:
        """Give the folders that are left their times, and wait until all is on the disk."""
        self._forget()
        for parts, mtime in sorted(self._times.items(), reverse=True):
            with suppress(OSError):  # it was removed, or is something else now
                fd = open_folder(self._root, parts[:-1])
                try:
                    os.utime(
                        parts[-1] if parts else ".",
                        (mtime, mtime),
                        dir_fd=fd,
                        follow_symlinks=False,
                    )
                finally:
                    os.close(fd)
        fd = self._read_root()
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)

    # -- inner -----------------------------------------------------------------------------------

    def _read_root(self) -> int:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)

    def _parent(self, parts: Parts) -> tuple[int, str]:
        """A descriptor of the folder that ``parts`` are in, made if need be; and the last part."""
        folder = parts[:-1]
        if self._folder is None or self._folder[0] != folder:
            self._forget()
            self._folder = (folder, self._reach(folder))
        return self._folder[1], parts[-1]

    def _place(self, parts: Parts) -> tuple[int, str]:
        """Likewise, with nothing of the name there any more."""
        folder, name = self._parent(parts)
        with suppress(FileNotFoundError):
            self._clear(folder, name)
            self._forget()  # it may have been a part of the way to the folder
        return self._parent(parts)

    def _reach(self, parts: Parts) -> int:
        try:
            return open_folder(self._root, parts)
        except FileNotFoundError:
            above = self._reach(parts[:-1])
            try:
                self._make_folder(above, parts[-1], 0o755)
            except FileExistsError:  # a link that leads nowhere
                raise Refused(
                    f"{show('/'.join(parts))} is a link that leads nowhere, and has files below it"
                ) from None
            finally:
                os.close(above)
            return open_folder(self._root, parts)
        except OSError as error:
            if error.errno in _IN_THE_WAY:
                shown = show("/".join(parts))
                raise Refused(f"{shown} is no folder, and has files below it") from None
            raise

    def _make_folder(self, folder: int, name: str, mode: int) -> None:
        # By way of links a folder may lie deeper than its name is long; all must be removed again.
        if _find_path(folder).count("/") > self._depth_most:
            raise Refused(f"the folder {show(name)} lies too deep")
        os.mkdir(name, mode, dir_fd=folder)
        self._own(folder, name)

    def _is_folder(self, folder: int, name: str) -> bool:
        with suppress(FileNotFoundError):
            return stat.S_ISDIR(self._lstat(folder, name).st_mode)
        return False

    def _clear(self, folder: int, name: str) -> None:
        """Raises FileNotFoundError where there is nothing."""
        if stat.S_ISDIR(self._lstat(folder, name).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)

    def _forget(self) -> None:
        if self._folder is not None:
            os.close(self._folder[1])
            self._folder = None

    @staticmethod
    def _lstat(folder: int, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def _own(self, folder: int, name: str) -> None:
        if self._owner is not None and self._group is not None:
            os.chown(name, self._owner, self._group, dir_fd=folder, follow_symlinks=False)


def _find_path(fd: int) -> str:
    """Where an open folder is now. To count with, and to no other end."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())
