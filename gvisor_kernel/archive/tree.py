"""A directory tree that is written at untrusted paths: a root file system, or outputs.

The host's kernel resolves every path inside the tree, and every file is created anew. So nothing
outside is reached, whatever symbolic links the tree contains. All files have one owner, who may
read them and enter all directories, because an ordinary user's sandbox has no second user. Set-uid
files, devices and extended attributes are never created.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from gvisor_kernel.archive.tar import CHUNK, MAX_DEPTH, quote_name
from gvisor_kernel.errors import ArchiveError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import open_folder, open_in

# by path: below a folder that is held open

Parts: TypeAlias = tuple[str, ...]

_libc = ctypes.CDLL(None, use_errno=True)
_NOT_A_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """Writes files below an existing directory. Not thread-safe; the methods block.

    ``directory`` is a path that nobody else can change, or an open descriptor, which the caller
    closes. ``owner`` is the uid and gid of all files, ``group`` another gid; None leaves those of
    this process.

    :raises ArchiveError: (methods) when the entry cannot be part of the tree
    :raises OSError: (methods) when a system call fails
    """

    def __init__(self, directory: Path | int, owner: int | None, group: int | None = None) -> None:
        self._owner = owner
        self._group = owner if group is None else group
        path = f"/proc/self/fd/{directory}" if isinstance(directory, int) else str(directory)
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._last_parent: tuple[Parts, int] | None = None
        """The directory used last, kept open: most entries are where the one before is."""
        self._times: dict[Parts, int] = {}
        """Modification times of directories, set at the end: each new file changes them."""
        self._max_depth = _find_path(self._root).count("/") + MAX_DEPTH
        self._chown(self._root, ".")

    @property
    def root(self) -> int:
        """The descriptor of the directory, for ``open_in`` and ``open_folder``."""
        return self._root

    def close(self) -> None:
        """Close the descriptors. The tree cannot be used afterwards."""
        self._close_parent()
        os.close(self._root)

    # -- writing ---------------------------------------------------------------------------------

    def put_folder(self, parts: Parts, mode: int, mtime: int) -> None:
        """Create a directory, or set mode and time of an existing one."""
        if parts:
            folder, name = self._open_parent(parts)
            if not self._is_folder(folder, name):
                folder, name = self._make_place(parts)
                self._make_folder(folder, name, 0o700)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        else:
            fd = self._read_root()
        with closing_fd(fd):
            os.fchmod(fd, (mode & 0o1777) | 0o700)
        self._times[parts] = mtime

    def put_file(self, parts: Parts, mode: int, mtime: int, read: Callable[[int], bytes]) -> None:
        """Create a file with what ``read(size)`` returns until it returns nothing."""
        folder, name = self._make_place(parts)
        with closing_fd(os.open(name, _NEW, 0o600, dir_fd=folder)) as fd:
            while data := read(CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            if self._owner is not None and self._group is not None:
                os.fchown(fd, self._owner, self._group)
            os.fchmod(fd, (mode & 0o777) | 0o400)
            os.utime(fd, (mtime, mtime))

    def put_symlink(self, parts: Parts, target: str, mtime: int) -> None:
        """Create a symbolic link with the text ``target``, which may lead anywhere.

        :raises ArchiveError: when its parent cannot be a directory
        :raises OSError: when it cannot be written
        """
        folder, name = self._make_place(parts)
        os.symlink(target, name, dir_fd=folder)
        self._chown(folder, name)
        os.utime(name, (mtime, mtime), dir_fd=folder, follow_symlinks=False)

    def put_hard_link(self, parts: Parts, target: Parts) -> None:
        """Create one more name of an existing file or symbolic link."""
        where = f"the hard link {quote_name('/'.join(parts))}"
        try:
            source = open_folder(self._root, target[:-1])
        except OSError as error:
            raise ArchiveError(f"{where} has a missing target") from error
        with closing_fd(source):
            try:
                kind = self._lstat(source, target[-1]).st_mode
            except FileNotFoundError:
                raise ArchiveError(f"{where} has a missing target") from None
            if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                raise ArchiveError(f"{where} has a target that is not a file")
            if parts == target:
                raise ArchiveError(f"{where} is its own target")
            folder, name = self._make_place(parts)
            try:
                os.link(
                    target[-1],
                    name,
                    src_dir_fd=source,
                    dst_dir_fd=folder,
                    follow_symlinks=False,
                )
            except FileNotFoundError:  # the same file at another path: _make_place has removed it
                raise ArchiveError(f"{where} is its own target") from None

    # -- removing --------------------------------------------------------------------------------

    def remove(self, parts: Parts) -> None:
        """Remove a file, or a directory with its content. Does nothing if it does not exist."""
        with suppress(OSError), closing_fd(open_folder(self._root, parts[:-1])) as folder:
            self._delete(folder, parts[-1])
        self._close_parent()

    def remove_children(self, parts: Parts, keep: Callable[[str], bool]) -> None:
        """Remove the content of a directory, except the names that ``keep`` returns True for."""
        with suppress(OSError):
            folder = open_in(self._root, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY)
            with closing_fd(folder):
                for name in os.listdir(folder):  # noqa: PTH208 - a descriptor
                    if not keep(name):
                        self._delete(folder, name)
        self._close_parent()

    def finish(self) -> None:
        """Set the modification times of the directories, and write all files to the disk."""
        self._close_parent()
        for parts, mtime in sorted(self._times.items(), reverse=True):
            # it may have been removed or replaced
            with suppress(OSError), closing_fd(open_folder(self._root, parts[:-1])) as fd:
                name = parts[-1] if parts else "."
                os.utime(name, (mtime, mtime), dir_fd=fd, follow_symlinks=False)
        with closing_fd(self._read_root()) as fd:
            sync_file_system(fd)

    # -- helpers ---------------------------------------------------------------------------------

    def _read_root(self) -> int:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)

    def _open_parent(self, parts: Parts) -> tuple[int, str]:
        """Open the parent directory of ``parts``, created if missing. Also return the last part."""
        folder = parts[:-1]
        if self._last_parent is None or self._last_parent[0] != folder:
            self._close_parent()
            self._last_parent = (folder, self._open_or_make(folder))
        return self._last_parent[1], parts[-1]

    def _make_place(self, parts: Parts) -> tuple[int, str]:
        """Like ``_open_parent``, but first remove what has the name."""
        folder, name = self._open_parent(parts)
        with suppress(FileNotFoundError):
            self._delete(folder, name)
            self._close_parent()  # the removed file may have been part of the path to the parent
        return self._open_parent(parts)

    def _open_or_make(self, parts: Parts) -> int:
        try:
            return open_folder(self._root, parts)
        except FileNotFoundError:
            above = self._open_or_make(parts[:-1])
            try:
                self._make_folder(above, parts[-1], 0o755)
            except FileExistsError:  # a dangling symbolic link
                raise ArchiveError(
                    f"{quote_name('/'.join(parts))} is a dangling symbolic link with files below it"
                ) from None
            finally:
                os.close(above)
            return open_folder(self._root, parts)
        except OSError as error:
            if error.errno in _NOT_A_DIRECTORY:
                shown = quote_name("/".join(parts))
                raise ArchiveError(f"{shown} is not a directory, but has files below it") from None
            raise

    def _make_folder(self, folder: int, name: str, mode: int) -> None:
        # Through symbolic links a directory can lie deeper than its name says, and too deep to be
        # removed again.
        if _find_path(folder).count("/") > self._max_depth:
            raise ArchiveError(f"the directory {quote_name(name)} is nested too deep")
        os.mkdir(name, mode, dir_fd=folder)
        self._chown(folder, name)

    def _is_folder(self, folder: int, name: str) -> bool:
        with suppress(FileNotFoundError):
            return stat.S_ISDIR(self._lstat(folder, name).st_mode)
        return False

    def _delete(self, folder: int, name: str) -> None:
        """Remove what has the name.

        :raises FileNotFoundError: when nothing has it
        """
        if stat.S_ISDIR(self._lstat(folder, name).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)

    def _close_parent(self) -> None:
        if self._last_parent is not None:
            os.close(self._last_parent[1])
            self._last_parent = None

    @staticmethod
    def _lstat(folder: int, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def _chown(self, folder: int, name: str) -> None:
        if self._owner is not None and self._group is not None:
            os.chown(name, self._owner, self._group, dir_fd=folder, follow_symlinks=False)


def _find_path(fd: int) -> str:
    """Return the present path of an open directory. Used only to count its depth."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def sync_file_system(fd: int) -> None:
    """Write the file system of ``fd`` to the disk. Blocks.

    :raises OSError: when writing fails
    """
    if _libc.syncfs(fd) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
