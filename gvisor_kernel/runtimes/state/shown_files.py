"""The programs and libraries of this machine that a sandbox has open, and that are mapped in it.

A kernel that goes on maps them again by their paths: half of another version would end it hours
later. So they are noted while it lives, by what the host's kernel says of the sentry, and compared
before it goes on. Nothing inside the sandbox is asked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.base import MountView

Stamps: TypeAlias = dict[str, tuple[int, int, int]]
"""Size, modification time in nanoseconds and inode, by the path on the host."""
Held: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of files and folders that are open in a sandbox, and of those that it writes: a few."""
MAX_HELD = 5
MAX_FILES = 20_000
"""A kernel with pandas has 1,500 open, and 250 of them are libraries."""
ELF = b"\x7fELF"
"""How programs and libraries begin. Others are read, and not mapped, whatever their names are."""
ROOT = "/root"
"""Where the sentry sees the sandbox's files."""


def find_sources(mounts: Iterable[MountView], directory: Path) -> dict[str, str]:
    """Return the sources of read-only mounts by their targets, but for those in ``directory``."""
    return {
        mount.target: mount.source
        for mount in mounts
        if mount.read_only and not is_within(mount.source, str(directory))
    }


def find_shown_files(sentry: int, sources: Mapping[str, str]) -> Stamps:
    """Return the programs and libraries that a sandbox has open.

    ``sources``: the paths of the host in which they lie, by those inside. Blocks for milliseconds.

    :raises SnapshotError: when one was replaced since it was opened
    """
    found: Stamps = {}
    folder = Path(f"/proc/{sentry}/fd")
    with suppress(OSError):
        for entry in list(folder.iterdir())[:MAX_FILES]:
            with suppress(OSError):
                link = str(entry.readlink()).removesuffix(" (deleted)")
                inside = link.removeprefix(ROOT)
                target = max((t for t in sources if is_within(inside, t)), key=len, default=None)
                status = entry.stat()
                if target is None or not stat.S_ISREG(status.st_mode) or not _is_elf(entry):
                    continue  # whatever else was read is in the kernel's memory
                path = sources[target] + inside.removeprefix(target)
                found[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    change = find_change(found)
    if change is not None:
        raise SnapshotError(
            f"{change} since the kernel has opened it, so its state cannot be saved.",
            "restart the kernel to use what is there now.",
        )
    return found


def _is_elf(entry: Path) -> bool:
    """Return whether a descriptor of another process is of a program or library.

    :raises OSError: when it cannot be read
    """
    # by path: a descriptor in /proc; only read
    fd = os.open(entry, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(ELF), 0) == ELF
    finally:
        os.close(fd)


def find_held(sentry: int, target: str) -> Held:
    """Return which files and folders below ``target`` a sandbox needs to go on.

    Only right after its checkpoint, for which runsc gives up those that nobody inside has open.
    """
    held: list[str] = []
    written: list[str] = []
    for entry in list(Path(f"/proc/{sentry}/fd").iterdir())[:MAX_FILES]:
        with suppress(OSError):
            inside = str(entry.readlink()).removeprefix(f"{ROOT}{target}/")
            if inside.startswith("/") or not entry.readlink().is_relative_to(f"{ROOT}{target}"):
                continue
            flags = int(Path(f"/proc/{sentry}/fdinfo/{entry.name}").read_text().split()[3], 8)
            held.append(inside)
            if not flags & os.O_PATH and flags & os.O_ACCMODE:
                written.append(inside)
    return tuple(sorted(set(held))[:MAX_HELD]), tuple(sorted(set(written))[:MAX_HELD])


def find_change(stamps: Stamps) -> str | None:
    """Return which of the files is another one now, as a clause; None if none is."""
    for path, stamp in stamps.items():
        try:
            status = os.stat(path)  # noqa: PTH116 - often, so fast
        except OSError:
            return f"{path} is gone"
        if (status.st_size, status.st_mtime_ns, status.st_ino) != stamp:
            return f"{path} was changed"
    return None
