"""The disk space that all saved kernels of this user may have, and how long each one is kept.

Removes the oldest of those that ended processes have left, and remembers for a week which ones:
nobody is to look for a state in vain.

    removed.json   of the state directory: what was removed
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import SnapshotError, StateError
from gvisor_kernel.host.private_directories import (
    lock,
    own_state,
    read_file,
    replace_file,
    state_root,
)
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import sweep_kept
from gvisor_kernel.runtimes.state.saved import IMAGE, SAVED, is_saved
from gvisor_kernel.runtimes.state.sweep import remove_orphan
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.snapshots.snapshot import measure
from gvisor_kernel.typed_json import read_json, write_json

log = logging.getLogger(__name__)

KEEP_SECONDS = 30 * 86400.0
"""Seconds that a kernel is kept which no process has taken over."""
MAX_SIZE, DISK_SHARE = 50 * GIB, 0.2
"""Bytes of all saved kernels, and their share of the disk space that would be free without."""
WARN_SECONDS, WARN_SHARE = 7 * 86400.0, 0.9
"""How long before, and from which part of the room on, a person is told."""
REMEMBER_SECONDS, MAX_REMEMBERED = 7 * 86400.0, 50
REMOVED, MAX_FILE = "removed.json", 1024 * 1024


@dataclass(frozen=True)
class Removed:
    """A saved kernel that was removed, at a Unix time: the id and the folder of its sandbox."""

    id: str
    folder: str
    created: float
    removed: float


def check_room(sandbox: SavedSandbox) -> None:
    """Check that there is room for the kernel of ``sandbox`` beside all that are saved.

    :raises SnapshotError: when there is not; a person may save it all the same
    """
    with suppress(StateError, OSError):
        _, total, room = _look_at_all()
        size = sandbox.memory_used() or 0
        if total + size > room:
            raise SnapshotError(
                f"Saved kernels have {describe_size(total)}, this one has {describe_size(size)},"
                f" and all may have {describe_size(int(room))}.",
                "give saved kernels up, or let it hibernate by hand.",
            )


def _look_at_all() -> tuple[list[tuple[int, Path, records.Record]], int, float]:
    """Return bytes on disk, directory and record of each saved kernel, the oldest first; then how
    many bytes all of them have, and how many they may have."""
    saved = (
        (place, record) for place, record in records.find_sandboxes() if is_saved(place, record)
    )
    found = [(measure(place / SAVED / IMAGE), place, record) for place, record in saved]
    total = sum(size for size, _, _ in found)
    room = min(MAX_SIZE, DISK_SHARE * (total + shutil.disk_usage(state_root()).free))
    return sorted(found, key=lambda it: it[2].saved), total, room


def remove_old() -> None:
    """Remove what nobody has let go on for KEEP_SECONDS, and the oldest of what is too much.

    Only of processes that have ended. Never raises.
    """
    with suppress(StateError, OSError):
        found, total, room = _look_at_all()
        path = own_state() / REMOVED
        for size, directory, record in found:
            age = time.time() - record.saved
            is_kept = age < KEEP_SECONDS and total <= room
            if is_kept or not records.is_orphan(record) or not remove_orphan(directory):
                continue
            log.warning(
                "Removed the saved kernel %s of %s, %.0f days old, %s",
                *(record.container_id, record.folder, age / 86400, describe_size(size)),
            )
            total -= size
            it = Removed(record.container_id, record.folder, record.created, time.time())
            with lock(path.with_suffix(".lock"), fcntl.LOCK_EX, create=True):
                replace_file(path, write_json((*find_removed(), it)[-MAX_REMEMBERED:]))
    sweep_kept()


def find_removed() -> tuple[Removed, ...]:
    """Return what was removed in the last REMEMBER_SECONDS, the oldest first."""
    known: list[Removed] = []
    with suppress(OSError, ValueError, StateError):
        known = read_json(read_file(own_state() / REMOVED, MAX_FILE), list[Removed], MAX_FILE)
    return tuple(one for one in known if 0 <= time.time() - one.removed < REMEMBER_SECONDS)


def find_next() -> set[str]:
    """Return the sandboxes of saved kernels that are removed before long: within WARN_SECONDS, or
    first of all as there is hardly any room. Blocks for milliseconds.
    """
    next_ones: set[str] = set()
    with suppress(StateError, OSError):
        found, total, room = _look_at_all()
        left = [record for _, _, record in found if records.is_orphan(record)]
        latest = time.time() - KEEP_SECONDS + WARN_SECONDS
        is_full = total > WARN_SHARE * room
        next_ones = {
            it.container_id for it in left if it.saved < latest or (is_full and it is left[0])
        }
    return next_ones
