"""Directories for the Unix sockets of kernels, and the removal of those that dead processes left.

Each process has one directory below a private root. Its name is the pid and the start time, so
that a sweep can tell whether the owner is alive. If that path is too long for a Unix socket, a
directory with an unpredictable name in /tmp is used, and a symbolic link to it takes its place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import StateError

# by path: below the state directory, whose parents only this user can change

SHORT_ROOT = Path("/tmp")  # noqa: S108 - mkdtemp makes an unpredictable, private name in it
SHORT_PREFIX = "gvk-"

MAX_BASE = 107 - len("/12345678/l-65535")
"""Bytes in the path of a process's directory, so that a kernel's directory and socket fit below."""


def owner_name(pid: int) -> str | None:
    """Return ``PID-STARTTIME``, or None for a dead process (field 22 of stat in proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return f"{pid}-{int(stat.rpartition(b')')[2].split()[19])}"


def make_base(root: Path) -> Path:
    """Create this process's directory below ``root`` with mode 0700, and return it.

    :raises StateError: when it cannot be created or belongs to another user
    """
    name = owner_name(os.getpid())
    assert name is not None
    base = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.fsencode(base)) <= MAX_BASE:
            base.mkdir(mode=0o700, exist_ok=True)
        elif not base.is_symlink():
            base.symlink_to(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=SHORT_ROOT))
        resolved = base.resolve(strict=True)
        if resolved.stat().st_uid != os.geteuid():
            raise PermissionError(f"{resolved} belongs to another user")
    except OSError as error:
        raise StateError(
            f"The directory for kernel sockets cannot be used: {error}.",
            f"make {root} a directory that you own, with mode 0700, on a disk with free space.",
        ) from error
    return resolved


def remove_base(root: Path, name: str) -> None:
    """Remove the directory ``name`` of a process below ``root``. Never raises."""
    base = root / name
    with suppress(OSError):
        if base.is_symlink():
            target = base.readlink()
            if target.parent == SHORT_ROOT and target.name.startswith(SHORT_PREFIX):
                shutil.rmtree(target, ignore_errors=True)
            base.unlink()
        else:
            shutil.rmtree(base, ignore_errors=True)


def sweep_bases(root: Path) -> int:
    """Remove the directories of dead processes below ``root``; return how many. Never raises."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return 0
    removed = 0
    for name in names:
        pid, _, start = name.partition("-")
        if pid.isdecimal() and start.isdecimal() and owner_name(int(pid)) != name:
            remove_base(root, name)
            removed += not os.path.lexists(root / name)
    return removed
