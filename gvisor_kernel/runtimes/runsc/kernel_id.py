"""Which uid a kernel has inside its sandbox: one of its own, where root's sandbox can have it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gvisor_kernel.runtimes.mounts.host_python import World
from gvisor_kernel.spec.layout import is_within
from gvisor_kernel.spec.oci import KERNEL_ID


def choose_kernel_id(world: World) -> int:
    """The uid and gid of a kernel, as the sandbox counts them: KERNEL_ID, or 0, which is PID 1's.

    0 for an ordinary user, whose sandbox has no other; and where what PID 1 begins with, the
    interpreter and its paths, is for its owner alone: files have one owner inside, and that has to
    be both. A root image belongs to PID 1, so a kernel with another uid could not read all of it.
    """
    if os.geteuid() != 0 or world.tree is not None:
        return 0
    return KERNEL_ID if all(map(_is_public, _find_beginnings(world))) else 0


def _find_beginnings(world: World) -> Iterator[str]:
    """What an interpreter reads before it runs anything, and the folders that lead there inside."""
    paths = [world.python, os.path.realpath(world.python), *world.roots]
    for prefix in world.prefixes:
        paths += [f"{prefix}/pyvenv.cfg", f"{prefix}/lib"]
        paths += map(str, Path(prefix).glob("lib/python*/*-packages/*.pth"))
    for path in dict.fromkeys(paths):
        for place in (path, *map(str, Path(path).parents)):
            if any(is_within(place, root) for root in world.roots):
                yield place


def _is_public(path: str) -> bool:
    """Whether everybody may read it, and enter or run it; also where there is no such file."""
    try:
        status = Path(path).stat()
    except OSError:
        return True
    runs = stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR
    needed = stat.S_IROTH | (stat.S_IXOTH if runs else 0)
    return status.st_mode & needed == needed
