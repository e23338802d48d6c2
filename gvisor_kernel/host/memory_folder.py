"""A private folder in memory, for what must not get on the disk.

    /dev/shm/gvisor-kernel-UID/new-<random>/    locked by the process that uses it

It is removed at the end, and by the next ``sweep_memory`` if its process was killed. Like all
memory it may be swapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host.cgroups import find_room
from gvisor_kernel.host.private_directories import (
    NotPrivate,
    locked_directory,
    make_directories,
    new_entry,
    sweep,
)
from gvisor_kernel.shown_text import describe_size

# by path: below a folder of this user in a sticky one

SHARED = "/dev/shm"  # noqa: S108 - a folder of one's own is made there


def own_memory() -> Path:
    """Return this user's folder. Kernels see nothing of it (``runtimes/mounts/covers.py``)."""
    return Path(f"{SHARED}/gvisor-kernel-{os.geteuid()}")


@contextmanager
def memory_folder(needed: int, groups: Iterable[Path]) -> Iterator[Path]:
    """Yield an empty folder for ``needed`` bytes, which processes in ``groups`` (cgroups) write.

    :raises SnapshotError: when there is no such folder, or too little memory
    """
    with ExitStack() as stack:
        yield _make(stack, needed, groups)


def _make(stack: ExitStack, needed: int, groups: Iterable[Path]) -> Path:
    try:
        if not _is_memory(SHARED):
            raise SnapshotError(
                f"There is no tmpfs at {SHARED}, so a kernel cannot be encrypted without its memory"
                " on the disk.",
                f"mount one: mount -t tmpfs -o mode=1777 tmpfs {SHARED}",
            )
        make_directories(own_memory())
        sweep_memory()
        there = os.statvfs(own_memory())
        free = min(find_room(groups), there.f_bavail * there.f_frsize)
        if needed > free:
            raise SnapshotError(
                f"The kernel's memory is in {SHARED} while it is encrypted or decrypted. That takes"
                f" up to {describe_size(needed)}, and {describe_size(max(0, free))} are free.",
                f"end other programs, or make {SHARED} larger (docker run --shm-size).",
            )
        entry = stack.enter_context(new_entry(own_memory()))
        (entry / "plain").mkdir(mode=0o700)
    except (OSError, NotPrivate, ValueError, LookupError) as error:
        raise SnapshotError(f"{SHARED} cannot be used: {error}.") from error
    return entry / "plain"


def sweep_memory() -> None:
    """Remove what killed processes have left. Never raises."""
    with suppress(OSError), locked_directory(own_memory()):
        sweep(own_memory())


def _is_memory(path: str) -> bool:
    """Return whether a tmpfs is mounted at ``path``."""
    place = os.path.realpath(path)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[4] == place]
    return kinds[-1:] == ["tmpfs"]
