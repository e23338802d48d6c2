"""Which uid a kernel has inside its sandbox: another one than PID 1's where that is possible."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.runtimes.mounts.host_python import World
from gvisor_kernel.spec.oci import KERNEL_ID


def choose_kernel_id(world: World) -> int:
    """Return the uid and gid of a kernel inside the sandbox: KERNEL_ID, or 0, which is also PID
    1's.

    0 for an ordinary user, whose sandbox has no other uid. 0 also where only its owner may read the
    interpreter or the files that it reads first: a file has one owner inside, and both PID 1 and
    the kernel must read it. 0 in a root image, whose files belong to PID 1, as a kernel with
    another uid could not read all of them.
    """
    if os.geteuid() != 0 or world.tree is not None:
        return 0
    return KERNEL_ID if all(map(_is_public, _find_first_files(world))) else 0


def _find_first_files(world: World) -> Iterator[str]:
    """Yield what an interpreter reads before it runs code, and the shown folders above it."""
    paths = [world.python, os.path.realpath(world.python), *world.roots]
    for prefix in world.prefixes:
        paths += [f"{prefix}/pyvenv.cfg", f"{prefix}/lib"]
        paths += map(str, Path(prefix).glob("lib/python*/*-packages/*.pth"))
    for path in dict.fromkeys(paths):
        for place in (path, *map(str, Path(path).parents)):
            if any(is_within(place, root) for root in world.roots):
                yield place


def _is_public(path: str) -> bool:
    """Return whether everybody may read ``path`` (and enter or run it), or it does not exist."""
    try:
        status = Path(path).stat()
    except OSError:
        return True
    runs = stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR
    needed = stat.S_IROTH | (stat.S_IXOTH if runs else 0)
    return status.st_mode & needed == needed
