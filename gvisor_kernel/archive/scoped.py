"""Paths inside a root file system, resolved by the kernel as if that were the root directory.

No symbolic link and no ``..`` leads out of it. The functions return descriptors, so nobody can
change a path between its check and its use.
"""

from __future__ import annotations

import ctypes
import os
import stat

from gvisor_kernel.host.folders import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def open_in(root: int, path: str, flags: int) -> int:
    """Open ``path``, absolute or relative, in the root file system ``root``. Needs Linux 5.6.

    :raises OSError: when it cannot be opened
    """
    return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_folder(root: int, parts: tuple[str, ...]) -> int:
    """Open the directory at ``parts`` with O_PATH, as ``dir_fd`` for other calls.

    :raises OSError: when it cannot be opened
    """
    return open_in(root, "/".join(parts) or ".", _DIRECTORY)


def stat_in(root: int, path: str) -> os.stat_result | None:
    """Return the status of what ``path`` leads to; None if it cannot be opened."""
    try:
        fd = open_in(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def is_program(root: int, path: str) -> bool:
    """Return whether ``path`` leads to an executable file."""
    status = stat_in(root, path)
    return status is not None and stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


def sync_file_system(fd: int) -> None:
    """Write the file system of ``fd`` to the disk. Blocks.

    :raises OSError: when writing fails
    """
    if _libc.syncfs(fd) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
