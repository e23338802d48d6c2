"""Paths inside a root file system, which the host's kernel resolves as if that were the root.

No link in it, and no ``..``, leads out; and nobody can change a path between a look and its use.
"""

from __future__ import annotations

import ctypes
import os
import stat

from gvisor_kernel.host.folders import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def open_in(root: int, path: str, flags: int) -> int:
    """A descriptor of ``path``, absolute or not, in the root file system ``root``. Raises OSError.

    Needs Linux 5.6.
    """
    return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_folder(root: int, parts: tuple[str, ...]) -> int:
    """A descriptor of the folder that ``parts`` lead to, for the calls that take one."""
    return open_in(root, "/".join(parts) or ".", _DIRECTORY)


def stat_in(root: int, path: str) -> os.stat_result | None:
    """What ``path`` leads to; None if that is nothing."""
    try:
        fd = open_in(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def is_program(root: int, path: str) -> bool:
    """Whether ``path`` leads to a file that may be run."""
    status = stat_in(root, path)
    return status is not None and stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


def sync_file_system(fd: int) -> None:
    """Wait until all that was written to the file system of ``fd`` is on the disk."""
    if _libc.syncfs(fd) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
