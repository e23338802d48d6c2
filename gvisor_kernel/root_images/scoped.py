"""Paths inside a root file system, which the host's kernel resolves as if that were the root.

No link in it, and no ``..``, leads out; and nobody can change a path between a look and its use.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

_SYS_OPENAT2 = 437  # on all architectures
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def open_in(root: int, path: str, flags: int) -> int:
    """A descriptor of ``path``, absolute or not, in the root file system ``root``. Raises OSError.

    Needs Linux 5.6.
    """
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    result = _libc.syscall(
        _SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(24)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return int(result)


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


def sync_file_system(directory: Path) -> None:
    """Wait until all that was written to the file system of ``directory`` is on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(directory))
    finally:
        os.close(fd)
