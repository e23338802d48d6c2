"""The saved kernel in a sandbox's directory: its places, and how it is written in one step.

    sandboxes/<id>/  kernel.json         what the kernel is, and how it was started
                     saved/kernel.json   the same, when it was saved
                     saved/image/        what the runtime wrote
                     saved.new/          the same, not complete yet
                     saved.old/          the one before, while it is replaced

What kernel.json contains is up to ``kernel/saved_kernel``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.private_directories import write_file
from gvisor_kernel.runtimes.state.records import Record

T = TypeVar("T")

# by path: below the state directory, whose parents only this user can change

SAVED, IMAGE, NOTE = "saved", "image", "kernel.json"
SEALED = ".sealed"
"""The end of the names of an image's files that are encrypted (``sealed``)."""
NEEDS = "needs.json"
"""Beside the files of an image: what another machine must have for it, of ``runsc/needs``."""
MAX_NOTE = 4 * 1024 * 1024
"""Bytes of kernel.json. It has the names of some hundred libraries, and of a kernel's comms."""
WAKE_SECONDS, WAKE_RATE = 120.0, 10 * 1024 * 1024
"""Seconds that a wake may take, as a save, and bytes of its image for which it has one more."""


def is_saved(directory: Path, record: Record) -> bool:
    """Return whether a sandbox's kernel was saved in its directory, from which it can go on."""
    return record.saved > 0 and (directory / SAVED).is_dir()


def is_kept(directory: Path, record: Record) -> bool:
    """Return whether a kernel was saved, and stays so when its owner has ended."""
    return is_saved(directory, record) and record.keeper != "nobody"


def find_wake_seconds(image: Path, start_timeout: float) -> float:
    """Return how long a restore of ``image`` may take: a kernel that took long to save does."""
    size = 0
    with suppress(OSError):  # the restore says so
        size = sum(path.stat().st_size for path in image.iterdir())
    return max(start_timeout, WAKE_SECONDS + size / WAKE_RATE)


def write_saved(
    place: Path,
    write_image: Callable[[Path], T],
    describe: Callable[[T], Mapping[str, str]],
) -> None:
    """Save a kernel as the folder ``place``: all of it is on the disk before it has its name.

    ``write_image`` fills a folder. ``describe`` takes what that returns, and returns the texts of
    kernel.json and of what else is beside the image. Blocks.

    :raises OSError: when it cannot be written, or what the functions raise; nothing is left then
    """
    saving = place.with_name(f"{place.name}.new")
    shutil.rmtree(saving, ignore_errors=True)
    try:
        saving.mkdir(mode=0o700)
        image = saving / IMAGE
        image.mkdir(mode=0o700)
        written = write_image(image)
        for path in image.iterdir():
            path.chmod(0o600)
            flush(path)
        for name, text in describe(written).items():
            write_file(saving / name, text)
        flush(image)
        flush(saving)
        put(saving, place)
        flush(place.parent)
    finally:
        shutil.rmtree(saving, ignore_errors=True)


def put(saving: Path, place: Path) -> None:
    """Give a folder its name. One that has it is there, under a name, until then.

    :raises OSError: when that fails: both are where they were
    """
    going = place.with_name(f"{place.name}.old")
    shutil.rmtree(going, ignore_errors=True)
    replaces = place.exists()
    if replaces:
        place.rename(going)
    try:
        saving.rename(place)
    except OSError:
        if replaces:
            going.rename(place)
        raise
    shutil.rmtree(going, ignore_errors=True)


def remove(place: Path) -> None:
    """Remove a folder, first its name: nobody puts back what is not complete. Never raises."""
    going = place.with_name(f"{place.name}.new")
    shutil.rmtree(going, ignore_errors=True)
    with suppress(OSError):
        place.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def mend(folder: Path) -> None:
    """Give folders in ``folder`` their names back that ``write_saved`` was about to replace as its
    process was killed, and remove what it has not finished. Nobody else writes there. Never raises.
    """
    with suppress(OSError):
        for rest in [*folder.glob("*.old"), *folder.glob("*.new")]:
            place = rest.with_suffix("")
            if rest.suffix == ".old" and not place.exists():
                rest.rename(place)
            shutil.rmtree(rest, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    with closing_fd(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        os.fsync(fd)
