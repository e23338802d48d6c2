"""The folder on disk: looked at and changed by descriptors, and no link is followed.

A sandbox, or another user, may change it meanwhile. So each step opens the folder that a path is
in, does everything by that descriptor, and compares what it has replaced or removed with what it
was to be, before it is given up.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from gvisor_kernel.changes.change import OnDisk
from gvisor_kernel.host.folders import Opened, open_below

_libc = ctypes.CDLL(None, use_errno=True)
_NOREPLACE, _EXCHANGE = 1, 2
PART = 1024 * 1024
PREFIX = ".gvisor-kernel-"
"""Of the names of files that are being written."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


class Changed(OSError):
    """What is on disk is not what it was to be; nothing was done."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ESTALE, "it has changed on disk meanwhile", path)


def look(root: Opened, path: str) -> OnDisk | None:
    """Return what the folder has at ``path``; None if there is nothing.

    :raises OSError: when that cannot be seen, as a part of the path is a link
    """
    try:
        with open_parent(root, path) as parent:
            return _look_at(parent, name_of(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_files(root: Opened, path: str, limit: int) -> Iterator[tuple[str, OnDisk]]:
    """Yield what is below a folder, at most ``limit`` entries, those of a folder after it.

    :raises OSError: when it cannot be read
    """
    left = [path]
    while left:
        folder = left.pop()
        with open_below(root, folder) as opened:
            fd = opened.read()
            try:
                names = os.listdir(fd)  # noqa: PTH208 - by descriptor
            finally:
                os.close(fd)
            for name in names:
                found = _look_at(opened, name)
                if found is None:
                    continue
                limit -= 1
                if limit < 0:
                    return
                yield f"{folder}/{name}", found
                if found.type == "folder":
                    left.append(f"{folder}/{name}")


def open_file(root: Opened, path: str) -> IO[bytes]:
    """Open a regular file for reading.

    :raises OSError: when it cannot be opened, or is none
    """
    with open_parent(root, path) as parent:
        return _open_regular(parent, name_of(path))


def find_digest(root: Opened, path: str, limit: int) -> str | None:
    """Return the SHA-256 of a file; None if it has more than ``limit`` bytes or cannot be read."""
    digest = hashlib.sha256()
    with suppress(OSError), open_file(root, path) as file:
        while data := file.read(PART):
            limit -= len(data)
            if limit < 0:
                return None
            digest.update(data)
        return digest.hexdigest()
    return None


def make_folder(root: Opened, path: str) -> OnDisk:
    """Make a folder.

    :raises OSError: when there is something, or it cannot be made
    """
    name = name_of(path)
    with open_parent(root, path) as parent:
        os.mkdir(name, dir_fd=parent.fd)
        return _require(_look_at(parent, name), path)


def write_new(root: Opened, path: str, content: IO[bytes], mode: int | None = None) -> OnDisk:
    """Write a file where there is none.

    :raises OSError: when there is something, or it cannot be written
    """
    name = name_of(path)
    with open_parent(root, path) as parent, _temporary(parent, content, None, mode) as written:
        _rename(parent, written, name, _NOREPLACE)
        return _require(_look_at(parent, name), path)


def replace_file(root: Opened, path: str, content: IO[bytes], expected: OnDisk) -> OnDisk:
    """Write a file in place of ``expected``, with its owner and rights.

    :raises Changed: when that is not there any more
    :raises OSError: when it cannot be written
    """
    name = name_of(path)
    with open_parent(root, path) as parent:
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        if _make_facts(status) != expected:
            raise Changed(path)
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            raise OSError(errno.EPERM, f"it belongs to another user (uid {status.st_uid})", path)
        with _temporary(parent, content, status, None) as written:
            try:
                _rename(parent, written, name, _EXCHANGE)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                _rename_over(parent, written, name, expected, path)
                return _require(_look_at(parent, name), path)
            if not _is_same(_look_at(parent, written), expected):
                _rename(parent, written, name, _EXCHANGE)
                raise Changed(path)
            return _require(_look_at(parent, name), path)


def remove(root: Opened, path: str, expected: OnDisk) -> None:
    """Remove the file ``expected``, or an empty folder.

    :raises Changed: when another one is there
    :raises OSError: when it cannot be removed
    """
    name = name_of(path)
    with open_parent(root, path) as parent:
        found = _look_at(parent, name)
        if found is None or found.text != expected.text:
            raise Changed(path)
        if expected.type == "folder":
            os.rmdir(name, dir_fd=parent.fd)
            return
        taken = f"{PREFIX}{secrets.token_hex(8)}"
        os.rename(name, taken, src_dir_fd=parent.fd, dst_dir_fd=parent.fd)
        if not _is_same(_look_at(parent, taken), expected):
            _rename(parent, taken, name, _NOREPLACE)
            raise Changed(path)
        os.unlink(taken, dir_fd=parent.fd)


def name_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def open_parent(root: Opened, path: str) -> Opened:
    """Open the folder that ``path`` is in.

    :raises OSError: when it cannot be opened; ELOOP if a part of the path is a link
    """
    above = path.rpartition("/")[0]
    return open_below(root, above) if above else root.duplicate()


# -- inner -----------------------------------------------------------------------------------------


def _look_at(parent: Opened, name: str) -> OnDisk | None:
    try:
        return _make_facts(os.stat(name, dir_fd=parent.fd, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _make_facts(status: os.stat_result) -> OnDisk:
    mode = status.st_mode
    return OnDisk(
        type="folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other",
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        modified=status.st_mtime_ns,
        changed=status.st_ctime_ns,
    )


def _is_same(found: OnDisk | None, expected: OnDisk) -> bool:
    """Whether a file is the one that was looked at; a new name has changed its time of change."""
    if found is None:
        return False
    names = ("type", "device", "inode", "size", "modified")
    return all(getattr(found, name) == getattr(expected, name) for name in names)


def _require(found: OnDisk | None, path: str) -> OnDisk:
    if found is None:
        raise Changed(path)
    return found


def _open_regular(parent: Opened, name: str) -> IO[bytes]:
    fd = os.open(name, _READ, dir_fd=parent.fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", name)
    return os.fdopen(fd, "rb")


@contextlib.contextmanager
def _temporary(
    parent: Opened, content: IO[bytes], old: os.stat_result | None, mode: int | None
) -> Iterator[str]:
    """Write a file with a name that nothing has; at the end what has that name is removed."""
    name = f"{PREFIX}{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o666 if old is None else 0o600, dir_fd=parent.fd)
    try:
        with os.fdopen(fd, "wb") as file:
            while data := content.read(PART):
                file.write(data)
            file.flush()
            if os.geteuid() == 0:  # whose folder it is, not root's
                owner = parent.status() if old is None else old
                os.fchown(fd, owner.st_uid, owner.st_gid)
            if old is not None:
                os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)
            elif mode is not None:
                os.fchmod(fd, mode & 0o777)
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent.fd)


def _rename(parent: Opened, name: str, target: str, flags: int) -> None:
    """Call renameat2(2).

    :raises OSError: with the error of the system call
    """
    call = getattr(_libc, "renameat2", None)
    code = errno.ENOSYS
    if call is not None:
        if call(parent.fd, os.fsencode(name), parent.fd, os.fsencode(target), flags) == 0:
            return
        code = ctypes.get_errno()
    if flags == _NOREPLACE and code in _NOT_SUPPORTED:
        os.link(name, target, src_dir_fd=parent.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        os.unlink(name, dir_fd=parent.fd)
        return
    raise OSError(code, os.strerror(code), target)


def _rename_over(parent: Opened, written: str, name: str, expected: OnDisk, path: str) -> None:
    """Replace a file where two names cannot be exchanged: a change just now is lost."""
    if _look_at(parent, name) != expected:
        raise Changed(path)
    os.rename(written, name, src_dir_fd=parent.fd, dst_dir_fd=parent.fd)
