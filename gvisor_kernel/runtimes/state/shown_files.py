"""The programs and libraries of this machine that a sandbox has open, and that are mapped in it.

A kernel that goes on maps them again by their paths: half of another version would end it hours
later. So they are noted while it lives, by what the host's kernel says of the sentry, and compared
before it goes on. Nothing inside the sandbox is asked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.runtimes.base import MountView

Stamps: TypeAlias = dict[str, tuple[int, int, int]]
"""Size, modification time in nanoseconds and inode, by the path on the host."""
Held: TypeAlias = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""Names of files and folders that are open in a sandbox, and of those that it writes: a few. And
the paths of what it has open elsewhere on the host."""
MAX_HELD, MAX_OPENED = 5, 2000
MAX_FILES = 20_000
"""A kernel with pandas has 1,500 open, and 250 of them are libraries."""
ELF = b"\x7fELF"
"""How programs and libraries begin. Others are read, and not mapped, whatever their names are."""
ROOT = "/root"
"""Where the sentry sees the sandbox's files."""
_programs: dict[tuple[int, int, int, int], bool] = {}
"""Whether files are programs or libraries, by their devices and stamps."""


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

    :raises SnapshotError: when one was replaced since it was opened, or the sandbox has ended
    """
    found: Stamps = {}
    for entry, path in _find_shown(sentry, sources):
        with suppress(OSError):
            status = os.stat(entry)  # noqa: PTH116 - often, so fast
            if stat.S_ISREG(status.st_mode) and _is_program(entry, status):
                # whatever else was read is in the kernel's memory
                found[path] = stamp(status)
    change = find_change(found)
    if change is not None:
        raise SnapshotError(
            f"{change} since the kernel has opened it, so its state cannot be saved.",
            "restart the kernel to use what is there now.",
        )
    return found


def _find_shown(sentry: int, sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the descriptors of a sentry for what is in ``sources``, and the paths on the host."""
    targets = sorted(sources, key=len, reverse=True)
    for entry, link in _read_open(sentry):
        inside = link.removesuffix(" (deleted)").removeprefix(ROOT)
        target = next((one for one in targets if is_within(inside, one)), None)
        if target is not None:
            yield entry, sources[target] + inside.removeprefix(target)


def _read_open(sentry: int) -> Iterator[tuple[str, str]]:
    """Yield the descriptors of a sentry, as paths in /proc, and what they lead to.

    :raises SnapshotError: when the sandbox has ended
    """
    folder, names = f"/proc/{sentry}/fd", list[str]()
    with suppress(OSError):
        names = os.listdir(folder)  # noqa: PTH208 - often, so fast
    if not names:
        raise SnapshotError("The sandbox has ended.")
    for name in names[:MAX_FILES]:
        with suppress(OSError):
            yield f"{folder}/{name}", os.readlink(f"{folder}/{name}")  # noqa: PTH115 - often


def _is_program(entry: str, status: os.stat_result) -> bool:
    """Return whether a file that another process has open is a program or library.

    :raises OSError: when it cannot be read
    """
    known = (status.st_dev, *stamp(status))
    is_program = _programs.get(known)
    if is_program is None:
        # by path: a descriptor in /proc; only read
        fd = os.open(entry, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with closing_fd(fd):
            is_program = stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(ELF), 0) == ELF
        if len(_programs) >= MAX_FILES:
            _programs.clear()
        _programs[known] = is_program
    return is_program


def find_held(sentry: int, target: str, sources: Mapping[str, str]) -> Held:
    """Return which files and folders a sandbox needs to go on: below ``target``; in ``sources``,
    see ``find_shown_files``.

    Only right after its checkpoint, for which runsc gives up those that nobody inside has open.

    :raises SnapshotError: when the sandbox has ended
    """
    held, written = set[str](), set[str]()
    root = f"{ROOT}{target}/"
    for entry, link in _read_open(sentry):
        if not link.startswith(root):
            continue
        with suppress(OSError):
            inside = link.removeprefix(root)
            flags = int(Path(entry.replace("/fd/", "/fdinfo/")).read_text().split()[3], 8)
            held.add(inside)
            if not flags & os.O_PATH and flags & os.O_ACCMODE:
                written.add(inside)
    opened = sorted({path for _, path in _find_shown(sentry, sources)})[:MAX_OPENED]
    return tuple(sorted(held)[:MAX_HELD]), tuple(sorted(written)[:MAX_HELD]), tuple(opened)


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Return what tells a file from another one at its path."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def find_change(stamps: Stamps) -> str | None:
    """Return which of the files is another one now, as a clause; None if none is."""
    for path, before in stamps.items():
        try:
            if stamp(os.stat(path)) != before:  # noqa: PTH116 - often, so fast
                return f"{path} was changed"
        except OSError:
            return f"{path} is gone"
    return None
