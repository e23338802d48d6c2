"""Where a process keeps the Unix sockets of its kernels, and what dead processes left there.

A directory a process, below a private root, named by pid and start time, so that a sweep can tell
whose owner is gone. Where that path is too long for a socket, a directory of an unpredictable name
in /tmp serves, and a link to it stands in its place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import StateError

SHORT_ROOT = Path("/tmp")  # noqa: S108 - mkdtemp makes an unpredictable, private name in it
SHORT_PREFIX = "gvk-"

LONGEST_BASE = 107 - len("/12345678/l-65535")
"""Bytes a base may have, so that a kernel's directory and socket fit below it."""


def owner_name(pid: int) -> str | None:
    """``PID-STARTTIME`` of a living process, None of a dead one (proc(5), field 22 of stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return f"{pid}-{int(stat.rpartition(b')')[2].split()[19])}"


def make_base(root: Path) -> Path:
    """This process's directory below ``root`` (made 0700). Raises StateError."""
    name = owner_name(os.getpid())
    assert name is not None
    base = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.fsencode(base)) <= LONGEST_BASE:
            base.mkdir(mode=0o700, exist_ok=True)
        elif not base.is_symlink():
            base.symlink_to(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=SHORT_ROOT))
        resolved = base.resolve(strict=True)
        if resolved.stat().st_uid != os.geteuid():
            raise PermissionError(f"{resolved} belongs to another user")
    except OSError as error:
        raise StateError(
            f"The directory for kernels' sockets cannot be used: {error}.",
            f"make {root} a directory of yours with mode 0700, on a disk with room.",
        ) from error
    return resolved


def remove_base(root: Path, name: str) -> None:
    """Remove what the process ``name`` had below ``root``. Never raises."""
    base = root / name
    with suppress(OSError):
        if base.is_symlink():
            target = base.readlink()
            if target.parent == SHORT_ROOT and target.name.startswith(SHORT_PREFIX):
                shutil.rmtree(target, ignore_errors=True)
            base.unlink()
        else:
            shutil.rmtree(base, ignore_errors=True)


def sweep_bases(root: Path) -> None:
    """Remove what dead processes left below ``root``. Never raises."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return
    for name in names:
        pid, _, start = name.partition("-")
        if pid.isdecimal() and start.isdecimal() and owner_name(int(pid)) != name:
            remove_base(root, name)
