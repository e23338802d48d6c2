"""Whose a file is: changes the owner of an open file, and makes files and folders as their owner.

Works by descriptor, as ``folders`` does. Which files a sandbox may own is decided in
``runtimes/state/sweep.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from gvisor_kernel.host.folders import Opened, open_below

_AT_EMPTY_PATH = 0x1000

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
