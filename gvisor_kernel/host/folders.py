"""Files and folders that a sandbox or another user can move: opened once, used by descriptor.

This is the only way to such a folder. ``open_path`` walks from ``/``, one component at a time, and
follows a link only where no sandbox can have made it. ``open_below`` follows none. Both return a
descriptor, and whatever is done with the folder from then on is done by that: a name may lead to
another folder a moment later, a descriptor never does. ``reopen`` is for another mount namespace,
where a descriptor of this one cannot be mounted: it opens the name again, and refuses what is not
the same file.

Nothing here decides which folders may be shown; see ``runtimes/mounts/folders.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

_SYS_OPENAT2 = 437  # on all architectures
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10
_AT_FDCWD, _AT_EMPTY_PATH, _STATX_BTIME = -100, 0x1000, 0x800
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM, errno.EAGAIN)
"""Linux before 5.6, a container's filter, a folder that was moved during the look-up."""
_MASK, _BIRTH = struct.Struct("I"), struct.Struct("qI")
"""Of struct statx, whose layout is the same on all architectures."""
MAX_LINKS = 40
"""As Linux has it."""
MAX_DEPTH = 4096
"""Of folders in each other, as deep as a path can name."""

_PATH = os.O_PATH | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """Which file it is, as long as somebody has it open: a name may change its meaning."""

    device: int
    inode: int


class LinkRefused(OSError):
    """A link on the way that may have been planted. ``link``: where it is; ``target``: its text."""

    def __init__(self, link: str, target: str, reason: str) -> None:
        super().__init__(errno.ELOOP, reason, link)
        self.link = link
        self.target = target
        self.reason = reason


@dataclass(frozen=True)
class Opened:
    """A folder or file that is held open. ``fd`` (O_PATH) belongs to whoever closes this.

    ``path`` is where it was found, without links. It is for messages and for ``reopen``.
    """

    fd: int
    path: str
    identity: Identity
    is_folder: bool

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def hold(self) -> Opened:
        """The same, to be closed by itself. Raises OSError."""
        return replace(self, fd=fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3))

    def status(self) -> os.stat_result:
        return os.fstat(self.fd)

    def read(self) -> int:
        """A new descriptor to read it with, of the same file whatever its name leads to now.

        Raises OSError.
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


Writable = Callable[[str, int], bool]
"""Whether a sandbox may have written the folder of that path (without links) and descriptor."""


def nowhere(path: str, fd: int) -> bool:
    """No folder at all is."""
    return False


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """The system call. Raises OSError."""
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    result = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), size)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return int(result)


def open_path(path: str, writable: Writable = nowhere) -> Opened:
    """What the absolute ``path`` leads to, by links that may be trusted.

    A link is refused where it lies in or below a folder that is ``writable``, and where it belongs
    to another user (not root) and leads to what is not that user's. Raises LinkRefused, OSError.
    """
    with contextlib.suppress(OSError):  # a link is on the way, or there is nothing
        fd = openat2(_AT_FDCWD, path, _PATH, RESOLVE_NO_SYMLINKS)
        return _hold(fd, os.path.normpath(path))
    return _Walk(path, writable).go()


def follow(path: str, writable: Writable = nowhere) -> tuple[dict[str, str], str]:
    """The links that are crossed on the way to ``path``, and where it really is.

    As ``open_path`` goes there, and raises what that does.
    """
    walk = _Walk(path, writable)
    with walk.go() as found:
        return walk.crossed, found.path


def lies_in(path: str, writable: Writable) -> bool:
    """Whether ``path``, or what it leads to, is in a folder that is ``writable``.

    True for what is reached by a link there. Raises OSError where it cannot be told.
    """
    walk = _Walk(path, writable)
    try:
        walk.go().close()
    except LinkRefused:
        return True
    return walk.ends_writable


def find_ancestry(folder: Opened) -> list[Identity]:
    """``folder`` and each folder above it, up to the root: the same by whatever path it was found.

    Raises OSError.
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
    finally:
        os.close(fd)


def open_below(folder: Opened, path: str) -> Opened:
    """What the relative ``path`` leads to in ``folder``. Raises OSError; ELOOP for any link."""
    path = os.path.normpath(path)
    if path.startswith(("/", "../")) or path == "..":
        raise OSError(errno.EXDEV, "it leads out of the folder", path)
    try:
        fd = openat2(folder.fd, path, _PATH, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
        fd = _walk_below(folder.fd, path)
    return _hold(fd, os.path.normpath(f"{folder.path}/{path}"))


def open_real(path: str) -> Opened:
    """The absolute ``path``, on which no link may be. Raises OSError, ELOOP for any link."""
    try:
        fd = openat2(_AT_FDCWD, path, _PATH, RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
        root = os.open("/", _PATH | os.O_DIRECTORY)
        try:
            fd = _walk_below(root, os.path.relpath(path, "/"))
        finally:
            os.close(root)
    return _hold(fd, path)


def reopen(path: str, identity: Identity, *, same_boot: bool = True) -> Opened:
    """``path``, without any link, if it still is the file of ``identity``.

    ``same_boot``: since that was taken; devices are numbered anew with each. Raises OSError; ESTALE
    where it is another file.
    """
    found = open_real(path)
    if found.identity != identity and (same_boot or found.identity.inode != identity.inode):
        found.close()
        raise OSError(errno.ESTALE, "it is another file than the one that was looked at", path)
    return found


def find_identity(path: str) -> Identity | None:
    """Which file ``path`` is now, without any link; None if there is none."""
    try:
        with open_real(path) as found:
            return found.identity
    except OSError:
        return None


def birth_time(fd: int) -> int:
    """When the file of ``fd`` was made, in nanoseconds; 0 where its file system does not say.

    With it an inode's number tells a file from a later one, which may get the same number.
    """
    buffer = ctypes.create_string_buffer(256)
    statx = getattr(_libc, "statx", None)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) < 0:
        return 0
    (mask,), (seconds, nanoseconds) = _MASK.unpack_from(buffer), _BIRTH.unpack_from(buffer, 80)
    return seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else 0


def make_folder(parent: Opened, name: str) -> Opened:
    """A new folder, which belongs to whom ``parent`` belongs to. Raises OSError, FileExistsError.

    Root makes it as that user: a change of owner afterwards could hit what has been put in its
    place.
    """
    owner = parent.status()
    with acting_as(owner.st_uid, owner.st_gid):
        os.mkdir(name, 0o755, dir_fd=parent.fd)
    return open_below(parent, name)


def change_owner(fd: int, uid: int, gid: int) -> None:
    """Of the very file that ``fd`` (O_PATH) is, whatever its name leads to. Raises OSError."""
    if _libc.fchownat(fd, b"", uid, gid, _AT_EMPTY_PATH) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """This thread makes files as that user, where it is root's; other threads do not notice.

    Raises PermissionError where there is no such user in this user namespace.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    try:
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        if (_libc.setfsuid(-1), _libc.setfsgid(-1)) != (uid, gid):  # neither reports an error
            raise PermissionError(errno.EPERM, f"root may not act as uid {uid}, gid {gid}")
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(os.getegid())


# -- inner -----------------------------------------------------------------------------------------


def _hold(fd: int, path: str) -> Opened:
    try:
        status = os.fstat(fd)
    except OSError:
        os.close(fd)
        raise
    identity = Identity(status.st_dev, status.st_ino)
    return Opened(fd, path, identity, stat.S_ISDIR(status.st_mode))


def _walk_below(folder: int, path: str) -> int:
    """As openat2 does it: one component after the other, none of them a link or ``..``."""
    fd = os.open(".", _PATH | os.O_DIRECTORY, dir_fd=folder)
    for part in path.split("/"):
        if part in ("", "."):
            continue
        try:
            below = os.open(part, _PATH | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
        if part == ".." or stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return fd


@dataclass
class _Step:
    """An open folder on the way. ``writable``: it, or one above it, is."""

    fd: int
    path: str
    status: os.stat_result
    writable: bool


class _Walk:
    """One look-up of a path, with a descriptor of each folder on the way."""

    def __init__(self, path: str, writable: Writable) -> None:
        if not path.startswith("/"):
            raise OSError(errno.EINVAL, "it is not absolute", path)
        self._path = path
        self._writable = writable
        self._parts = list(reversed(path.split("/")))
        self._steps: list[_Step] = []
        self._links: list[tuple[int, int, str, str]] = []
        """Those of other users whose targets are being walked: how many parts are left after
        them, the owner, the link, its text."""
        self._followed = 0
        self.ends_writable = False
        self.crossed: dict[str, str] = {}
        """Each link that was followed, and its text."""

    def go(self) -> Opened:
        try:
            self._begin()
            while self._parts:
                part = self._parts.pop()
                if part == "..":
                    self._leave(1)
                elif part not in ("", "."):
                    self._enter(part)
                self._check_owners()
            step = self._steps.pop()
            self.ends_writable = step.writable
            return _hold(step.fd, step.path)
        finally:
            for step in self._steps:
                os.close(step.fd)

    def _begin(self) -> None:
        """Be at the root."""
        self._leave(0)
        if not self._steps:
            fd = os.open("/", _PATH | os.O_DIRECTORY)
            status = os.fstat(fd)
            self._steps.append(_Step(fd, "/", status, self._writable("/", fd)))

    def _leave(self, keep: int) -> None:
        """``keep`` 1: go up one folder; 0: to the root."""
        lowest = max(len(self._steps) - 1, 1) if keep else 1
        while len(self._steps) > lowest:
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
            self._begin()
        self._parts.extend(reversed(target.split("/")))

    def _check_owners(self) -> None:
        """A link of another user's leads to what is that user's, or nowhere."""
        while self._links and len(self._parts) <= self._links[-1][0]:
            _, owner, link, target = self._links.pop()
            if self._steps[-1].status.st_uid != owner:
                raise LinkRefused(
                    link, target, f"this link is of uid {owner}, and leads to what is not"
                )
