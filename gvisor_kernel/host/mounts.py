"""Linux's system calls for mounts, by descriptor. What is mounted where is decided in ``stage.py``.

:raises OSError: in each function, with the name of the system call in its text
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_IDMAP = 1, 2, 4, 0x00100000

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442  # the same on all architectures
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def unshare(flags: int) -> None:
    """Move this thread to new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare", "")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    """Mount ``source`` at ``target``, as mount(2) does.

    :raises OSError: with ``target`` as its file name
    """
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )
    _check(result, "mount", target)


def clone_tree(fd: int, path: str) -> int:
    """Clone the mount at the open ``fd``, with all mounts below it. ``path`` is for the error.

    :return: a descriptor of a detached mount, which is removed when the descriptor is closed
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    return _check(_libc.syscall(_SYS_OPEN_TREE, fd, b"", ctypes.c_uint(flags)), "open_tree", path)


def move_tree(tree: int, target: int | str) -> None:
    """Attach a detached mount at ``target``: a descriptor, or a path that no other process can
    change."""
    directory, path = (target, b"") if isinstance(target, int) else (_AT_FDCWD, os.fsencode(target))
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_T_EMPTY_PATH if path == b"" else 0)
    result = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", directory, path, ctypes.c_uint(flags))
    _check(result, "move_mount", str(target))


def set_attributes(
    at: int | str, *, add: int = 0, clear: int = 0, namespace: int | None = None, recursive: bool
) -> None:
    """Change attributes of a detached mount (a descriptor) or of the mount at a path."""
    structure = _MountAttr(attr_set=add, attr_clr=clear, userns_fd=namespace or 0)
    directory, path = (at, b"") if isinstance(at, int) else (_AT_FDCWD, os.fsencode(at))
    flags = (_AT_EMPTY_PATH if isinstance(at, int) else 0) | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        directory,
        path,
        ctypes.c_uint(flags),
        ctypes.byref(structure),
        ctypes.c_size_t(ctypes.sizeof(structure)),
    )
    _check(result, "mount_setattr", str(at))


def _check(result: int, call: str, path: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", path)
    return int(result)
