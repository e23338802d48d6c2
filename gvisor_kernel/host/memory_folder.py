"""A private folder in memory, for what must not get on the disk.

    /dev/shm/gvisor-kernel-<random>/    locked by the process that uses it

Other users may write in ``/dev/shm``, so no name is used twice: whoever has taken one has it, and
nobody can rename or fill what is this user's. No kernel sees any of ``/dev``. A folder is removed
at the end, and by the next ``sweep_memory`` if its process was killed. Like all memory it may be
swapped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host.cgroups import find_room
from gvisor_kernel.host.locks import locked_file
from gvisor_kernel.host.private_directories import NotPrivate, check_parents
from gvisor_kernel.shown_text import describe_size

# by path: folders of this user in a sticky one

SHARED = "/dev/shm"  # noqa: S108 - a folder of one's own is made there
PREFIX = "gvisor-kernel-"


@contextmanager
def memory_folder(needed: int, groups: Iterable[Path], beside: int = 0) -> Iterator[Path]:
    """Yield an empty folder for ``needed`` bytes, which processes in ``groups`` (cgroups) write.
    They take ``beside`` bytes more of the machine's memory meanwhile.

    :raises SnapshotError: when there is no such folder, or too little memory
    """
    with ExitStack() as stack:
        try:
            place = _make(stack, needed, groups, beside)
        except (OSError, NotPrivate, ValueError, LookupError) as error:
            raise SnapshotError(f"{SHARED} cannot be used: {error}.") from error
        yield place


def _make(stack: ExitStack, needed: int, groups: Iterable[Path], beside: int) -> Path:
    if not _is_memory(SHARED):
        raise SnapshotError(
            f"There is no tmpfs at {SHARED}, so a kernel cannot be encrypted without its memory on"
            " the disk.",
            f"mount one: mount -t tmpfs -o mode=1777 tmpfs {SHARED}",
        )
    check_parents(Path(SHARED, PREFIX))
    sweep_memory()
    there = os.statvfs(SHARED)
    free = min(find_room(groups) - beside, there.f_bavail * there.f_frsize)
    if needed > free:
        raise SnapshotError(
            f"The kernel's memory is in {SHARED} while it is encrypted or decrypted. That takes up"
            f" to {describe_size(needed)}, and {describe_size(max(0, free))} are free.",
            f"end other programs, or make {SHARED} larger (docker run --shm-size).",
        )
    while True:
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SHARED))  # 0700
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        with suppress(FileNotFoundError):
            fd = stack.enter_context(_locked(place, fcntl.LOCK_EX))
            if os.fstat(fd).st_nlink:  # no sweep has seen it before it was locked
                return place


def sweep_memory() -> None:
    """Remove what killed processes have left. Never raises."""
    with suppress(OSError):
        for place in Path(SHARED).glob(f"{PREFIX}*"):
            with suppress(OSError):
                if place.lstat().st_uid == os.geteuid():
                    with _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _locked(place: Path, how: int) -> Iterator[int]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with locked_file(fd, how):
        yield fd


def _is_memory(path: str) -> bool:
    """Return whether a tmpfs is mounted at ``path``."""
    place = os.path.realpath(path)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[4] == place]
    return kinds[-1:] == ["tmpfs"]
