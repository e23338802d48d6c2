"""Whose a file is: changes the owner of an open file, gives an owner the rights back that a kernel
has taken, and makes files and folders as their owner.

Works by descriptor, as ``folders`` does. Which files a sandbox may own is decided in
``runtimes/state/sweep.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shlex
import stat
from collections.abc import Iterator

from gvisor_kernel.host.folders import Opened, open_below

_AT_EMPTY_PATH = 0x1000
_READ_AND_ENTER = stat.S_IRUSR | stat.S_IXUSR

_libc = ctypes.CDLL(None, use_errno=True)


def make_folder(parent: Opened, name: str) -> Opened:
    """Make a new folder that belongs to the owner of ``parent``.

    Root makes it as that user: a chown afterwards could hit another file that was put in its place.

    :raises FileExistsError: when ``name`` exists
    :raises OSError: when it cannot be made
    """
    owner = parent.status()
    with acting_as(owner.st_uid, owner.st_gid):
        os.mkdir(name, 0o755, dir_fd=parent.fd)
    return open_below(parent, name)


def change_owner(fd: int, uid: int, gid: int) -> None:
    """Change the owner of the file that ``fd`` (O_PATH) refers to, whatever its name leads to now.

    :raises OSError: when that is not permitted
    """
    if _libc.fchownat(fd, b"", uid, gid, _AT_EMPTY_PATH) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def restore_access(folder: Opened) -> bool:
    """Let this user read and enter a folder of its own again: a kernel that may write a folder can
    take the rights of its owner away, as with ``chmod 0``. Return whether they were missing.

    :raises OSError: when they cannot be changed
    """
    status = folder.status()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if status.st_mode & _READ_AND_ENTER == _READ_AND_ENTER:
        return False
    # by path: the kernel's own file systems, /proc, /sys and /dev; the file of a descriptor
    os.chmod(f"/proc/self/fd/{folder.fd}", stat.S_IMODE(status.st_mode) | stat.S_IRWXU)  # noqa: PTH101
    return True


def check_access(folder: Opened, *, read: bool = False) -> None:
    """Check that this user may enter a folder; with ``read`` also that it may list it.

    :raises PermissionError: when it may not; says what its owner can do
    """
    if not folder.is_folder:
        return
    try:
        flags = os.O_RDONLY if read else os.O_PATH
        os.close(os.open(".", flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fd))
    except PermissionError as error:
        path, owner = shlex.quote(folder.path), folder.status().st_uid
        text = f"its owner, uid {owner}, has to allow it: chmod u+rwx {path}"
        raise PermissionError(error.errno, text, folder.path) from error


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Let this thread, if it is root's, create files as that user. Other threads are not affected.

    :raises PermissionError: when this user namespace has no such user
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    try:
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        # Neither call reports an error: read the ids back.
        if (_libc.setfsuid(-1), _libc.setfsgid(-1)) != (uid, gid):
            raise PermissionError(errno.EPERM, f"root may not act as uid {uid}, gid {gid}")
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(os.getegid())
