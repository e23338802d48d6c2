"""Opens files and folders that a sandbox or another user can move. They are used by descriptor.

Such a folder is opened only here. ``open_path`` walks from ``/``, one component at a time, and
follows a symbolic link only if no sandbox can have made it. ``open_below`` follows none. Both
return a descriptor, and everything is done by that descriptor: a name may lead to another folder a
moment later, a descriptor never does. ``reopen`` is for another mount namespace, where a descriptor
of this one cannot be mounted: it opens the name again and refuses another file than before.
``open_in`` takes a root file system for the root directory, so that no link leads out of it.

"Link" means symbolic link in this module. Which folders a sandbox may see is decided in
``runtimes/mounts``, by ``folders`` and ``outputs``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from gvisor_kernel.host.descriptors import closing_fd

# by path: the module that opens folders: the root, and files that are already open

_SYS_OPENAT2 = 437  # the same on all architectures
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10
_AT_FDCWD, _AT_EMPTY_PATH, _STATX_BTIME = -100, 0x1000, 0x800
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM, errno.EAGAIN)
"""Errors after which the path is walked here: Linux before 5.6, a container's seccomp filter, a
folder that was moved during the look-up."""
_MASK, _BIRTH = struct.Struct("I"), struct.Struct("qI")
"""Fields of struct statx, whose layout is the same on all architectures."""
_NOREPLACE = 1
MAX_LINKS = 40
"""Links that are followed in one path: the limit of Linux."""
MAX_DEPTH = 4096
"""Nested folders: a path cannot name deeper ones."""

_PATH = os.O_PATH | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """Device and inode of a file. They are unique as long as the file is open or exists."""

    device: int
    inode: int


class LinkRefused(OSError):
    """A symbolic link in a path that an attacker may have made.

    ``link``: its path; ``target``: its text; ``reason``: why it is not followed.
    """

    def __init__(self, link: str, target: str, reason: str) -> None:
        super().__init__(errno.ELOOP, reason, link)
        self.link = link
        self.target = target
        self.reason = reason


@dataclass(frozen=True)
class Opened:
    """An open folder or file; a context manager that closes it. ``fd`` is an O_PATH descriptor.

    ``path``: where it was when it was opened, without links; for messages and for ``reopen``.
    """

    fd: int
    path: str
    identity: Identity
    is_folder: bool

    def close(self) -> None:
        """Close the descriptor. Call it once."""
        os.close(self.fd)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def duplicate(self) -> Opened:
        """Return a duplicate with a descriptor of its own.

        :raises OSError: when there is no free descriptor
        """
        return replace(self, fd=fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3))

    def status(self) -> os.stat_result:
        """Return the status of what is open, whatever has its name now."""
        return os.fstat(self.fd)

    def read(self) -> int:
        """Open the same file for reading, even if its name leads to another one now.

        :return: a descriptor, which the caller closes
        :raises OSError: when this user may not read it
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


Writable = Callable[[str, int], bool]
"""Takes a folder's path (without links) and descriptor; tells whether a sandbox may have written
the folder."""


def never_writable(path: str, fd: int) -> bool:
    """The ``Writable`` for paths that no sandbox can write."""
    return False


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Call openat2(2).

    :raises OSError: with the error of the system call
    """
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    result = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), size)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return int(result)


def open_path(path: str, writable: Writable = never_writable) -> Opened:
    """Open the absolute ``path``, following only links that can be trusted.

    A link is refused if it is in or below a folder that is ``writable``, or if it belongs to
    another user (not root) and its target does not belong to that user.

    :raises LinkRefused: when a link is refused
    :raises OSError: when the path cannot be opened
    """
    with contextlib.suppress(OSError):  # the path has a link, or does not exist
        fd = openat2(_AT_FDCWD, path, _PATH, RESOLVE_NO_SYMLINKS)
        return _make_opened(fd, os.path.normpath(path))
    return _Walk(path, writable).resolve()


def resolve_links(path: str, writable: Writable = never_writable) -> tuple[dict[str, str], str]:
    """Resolve ``path`` as ``open_path`` does.

    :return: the links that were followed, with their texts, and the path without links
    :raises LinkRefused: when a link is refused
    :raises OSError: when the path cannot be opened
    """
    walk = _Walk(path, writable)
    with walk.resolve() as found:
        return walk.crossed, found.path


def is_in_writable_folder(path: str, writable: Writable) -> bool:
    """Return whether ``path`` leads into a ``writable`` folder, or by a link in one.

    :raises OSError: when the path cannot be opened
    """
    walk = _Walk(path, writable)
    try:
        walk.resolve().close()
    except LinkRefused:
        return True
    return walk.ends_writable


def find_ancestry(folder: Opened) -> list[Identity]:
    """Return the identities of ``folder`` and of each folder above it, up to the root.

    They do not depend on the path by which the folder was opened.

    :raises OSError: when a folder cannot be opened
    """
    if not folder.is_folder:
        with open_real(os.path.dirname(folder.path)) as parent:  # noqa: PTH120 - text
            return [folder.identity, *find_ancestry(parent)]
    found = [folder.identity]
    fd = os.dup(folder.fd)
    try:
        while True:
            above = os.open("..", _PATH | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = above
            status = os.fstat(fd)
            identity = Identity(status.st_dev, status.st_ino)
            if identity == found[-1] or len(found) > MAX_DEPTH:
                return found
            found.append(identity)
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, folder.path) from error
    finally:
        os.close(fd)


def open_below(folder: Opened, path: str) -> Opened:
    """Open the relative ``path`` in ``folder``.

    :raises OSError: when it cannot be opened; ELOOP if the path has a link, EXDEV if it leads out
    """
    path = os.path.normpath(path)
    if path.startswith(("/", "../")) or path == "..":
        raise OSError(errno.EXDEV, "the path leads out of the folder", path)
    try:
        fd = openat2(folder.fd, path, _PATH, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
        fd = _walk_below(folder.fd, path)
    return _make_opened(fd, os.path.normpath(f"{folder.path}/{path}"))


def open_real(path: str) -> Opened:
    """Open the absolute ``path``, which must not contain a link.

    :raises OSError: when it cannot be opened; ELOOP if the path has a link
    """
    try:
        fd = openat2(_AT_FDCWD, path, _PATH, RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
        with closing_fd(os.open("/", _PATH | os.O_DIRECTORY)) as root:
            fd = _walk_below(root, os.path.relpath(path, "/"))
    return _make_opened(fd, path)


def reopen(path: str, identity: Identity, *, same_boot: bool = True) -> Opened:
    """Open ``path``, which must not contain a link, if it is still the file of ``identity``.

    ``same_boot``: whether ``identity`` was read since the last boot; device numbers change with
    each boot, so otherwise only the inode is compared.

    :raises OSError: when it cannot be opened; ESTALE if it is another file
    """
    found = open_real(path)
    if found.identity != identity and (same_boot or found.identity.inode != identity.inode):
        found.close()
        raise OSError(errno.ESTALE, "it was replaced by another file", path)
    return found


def move_private(path: str, parent: Opened, name: str) -> None:
    """Move what is at ``path``, which only this user can change, to ``name`` in ``parent``, where
    nothing has that name.

    :raises OSError: when that fails: EXDEV if both are not in the same mount
    """
    names = _AT_FDCWD, os.fsencode(path), parent.fd, os.fsencode(name)
    if not hasattr(_libc, "renameat2") or _libc.renameat2(*names, _NOREPLACE) < 0:
        code = ctypes.get_errno() or errno.ENOSYS
        raise OSError(code, os.strerror(code), name)


def find_mount(folder: Opened) -> str:
    """Return the id of the mount that a folder was opened in."""
    with open(f"/proc/self/fdinfo/{folder.fd}") as file:
        return next((line for line in file if line.startswith("mnt_id:")), "")


def find_identity(path: str) -> Identity | None:
    """Return the identity of the file at ``path`` now; None if it has links or does not exist."""
    try:
        with open_real(path) as found:
            return found.identity
    except OSError:
        return None


def birth_time(fd: int) -> int:
    """Return the creation time of a file in nanoseconds; 0 if its file system does not record it.

    It tells a file from a later one that got the same inode number.
    """
    buffer = ctypes.create_string_buffer(256)
    statx = getattr(_libc, "statx", None)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) < 0:
        return 0
    (mask,), (seconds, nanoseconds) = _MASK.unpack_from(buffer), _BIRTH.unpack_from(buffer, 80)
    return seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else 0


# -- inside a root file system, or outputs --------------------------------------------------------


def open_in(root: int, path: str, flags: int) -> int:
    """Open ``path``, absolute or relative, in the root file system ``root``. Needs Linux 5.6.

    :raises OSError: when it cannot be opened
    """
    return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_folder(root: int, parts: tuple[str, ...]) -> int:
    """Open the directory at ``parts`` with O_PATH, as ``dir_fd`` for other calls.

    :raises OSError: when it cannot be opened
    """
    return open_in(root, "/".join(parts) or ".", _PATH | os.O_DIRECTORY)


def stat_in(root: int, path: str) -> os.stat_result | None:
    """Return the status of what ``path`` leads to; None if it cannot be opened."""
    try:
        with closing_fd(open_in(root, path, os.O_PATH)) as fd:
            return os.fstat(fd)
    except OSError:
        return None


def is_program(root: int, path: str) -> bool:
    """Return whether ``path`` leads to an executable file."""
    status = stat_in(root, path)
    return status is not None and stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


# -- inner -----------------------------------------------------------------------------------------


def _make_opened(fd: int, path: str) -> Opened:
    try:
        status = os.fstat(fd)
    except OSError:
        os.close(fd)
        raise
    identity = Identity(status.st_dev, status.st_ino)
    return Opened(fd, path, identity, stat.S_ISDIR(status.st_mode))


def _walk_below(folder: int, path: str) -> int:
    """Do what openat2 does: open one component after the other, none of them a link or ``..``."""
    fd = os.open(".", _PATH | os.O_DIRECTORY, dir_fd=folder)
    for part in path.split("/"):
        if part in ("", "."):
            continue
        with closing_fd(fd):
            below = os.open(part, _PATH | os.O_NOFOLLOW, dir_fd=fd)
        fd = below
        if part == ".." or stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return fd


@dataclass
class _Step:
    """An open folder on the path. ``writable``: a sandbox may write it, or a folder above it."""

    fd: int
    path: str
    status: os.stat_result
    writable: bool


class _Walk:
    """One look-up of a path. It keeps a descriptor of each folder on the path open."""

    def __init__(self, path: str, writable: Writable) -> None:
        if not path.startswith("/"):
            raise OSError(errno.EINVAL, "the path is not absolute", path)
        self._path = path
        self._writable = writable
        self._parts = list(reversed(path.split("/")))
        self._steps: list[_Step] = []
        self._links: list[tuple[int, int, str, str]] = []
        """Links of other users whose targets are being walked: how many parts are left after the
        target, the owner, the link, its text."""
        self._followed = 0
        self.ends_writable = False
        """True if the path led into a writable folder."""
        self.crossed: dict[str, str] = {}
        """The links that were followed, with their texts."""

    def resolve(self) -> Opened:
        try:
            self._go_to_root()
            while self._parts:
                part = self._parts.pop()
                if part == "..":
                    self._close_steps(keep=max(len(self._steps) - 1, 1))
                elif part not in ("", "."):
                    self._enter(part)
                self._check_owners()
            step = self._steps.pop()
            self.ends_writable = step.writable
            return _make_opened(step.fd, step.path)
        finally:
            for step in self._steps:
                os.close(step.fd)

    def _go_to_root(self) -> None:
        self._close_steps(keep=1)
        if not self._steps:
            fd = os.open("/", _PATH | os.O_DIRECTORY)
            status = os.fstat(fd)
            self._steps.append(_Step(fd, "/", status, self._writable("/", fd)))

    def _close_steps(self, keep: int) -> None:
        """Go back to the first ``keep`` folders of the path."""
        while len(self._steps) > keep:
            os.close(self._steps.pop().fd)

    def _enter(self, part: str) -> None:
        above = self._steps[-1]
        fd = os.open(part, _PATH | os.O_NOFOLLOW, dir_fd=above.fd)
        try:
            status = os.fstat(fd)
            path = f"{above.path.rstrip('/')}/{part}"
            if stat.S_ISLNK(status.st_mode):
                self._follow(path, os.readlink("", dir_fd=fd), status, above)
                return
            writable = above.writable or self._writable(path, fd)
            self._steps.append(_Step(fd, path, status, writable))
            fd = -1
        finally:
            if fd >= 0:
                os.close(fd)

    def _follow(self, link: str, target: str, status: os.stat_result, above: _Step) -> None:
        if above.writable:
            raise LinkRefused(link, target, "a kernel may have made this link")
        self._followed += 1
        self.crossed[link] = target
        if self._followed > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._path)
        if status.st_uid not in (0, os.geteuid()):
            self._links.append((len(self._parts), status.st_uid, link, target))
        if target.startswith("/"):
            self._go_to_root()
        self._parts.extend(reversed(target.split("/")))

    def _check_owners(self) -> None:
        """Refuse the link of another user if its target does not belong to that user."""
        while self._links and len(self._parts) <= self._links[-1][0]:
            _, owner, link, target = self._links.pop()
            if self._steps[-1].status.st_uid != owner:
                raise LinkRefused(
                    link, target, f"this link belongs to uid {owner}, but its target does not"
                )
