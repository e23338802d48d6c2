"""The disk that all saved kernels may have, and which are removed. All functions block."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import SnapshotError, StateError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import sweep_kept
from gvisor_kernel.runtimes.state.saved import IMAGE, SAVED, is_saved
from gvisor_kernel.runtimes.state.sweep import remove_orphan
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.snapshots.snapshot import measure

log = logging.getLogger(__name__)

KEEP_SECONDS = 30 * 86400.0
"""Seconds that a kernel is kept which no process has taken over."""
MAX_SIZE, DISK_SHARE = 50 * GIB, 0.2
"""Bytes of all saved kernels, and their share of the disk space that would be free without."""


def check_room(sandbox: SavedSandbox) -> None:
    """Check that there is room for the kernel of ``sandbox`` beside all that are saved.

    :raises SnapshotError: when there is not; a person may save it all the same
    """
    with suppress(StateError, OSError):
        total, room = _measure_all(_find_all())
        size = sandbox.memory_used() or 0
        if total + size > room:
            raise SnapshotError(
                f"Saved kernels have {describe_size(total)}, this one has {describe_size(size)},"
                f" and all may have {describe_size(int(room))}.",
                "give saved kernels up, or let it hibernate by hand.",
            )


def _find_all() -> list[tuple[float, int, Path, records.Record]]:
    """Return time, bytes on disk, directory and record of each saved kernel, the oldest first."""
    return sorted(
        (
            (record.saved, measure(directory / SAVED / IMAGE), directory, record)
            for directory, record in records.find_sandboxes()
            if is_saved(directory, record)
        ),
        key=itemgetter(0),
    )


def _measure_all(found: list[tuple[float, int, Path, records.Record]]) -> tuple[int, float]:
    """Return how many bytes all saved kernels have, and how many they may have."""
    total = sum(size for _, size, _, _ in found)
    return total, min(MAX_SIZE, DISK_SHARE * (total + shutil.disk_usage(state_root()).free))


def remove_old() -> None:
    """Remove what nobody has let go on for KEEP_SECONDS, and the oldest of what is too much.

    Only of processes that have ended. Says in the log what is removed. Never raises.
    """
    with suppress(StateError, OSError):
        found = _find_all()
        total, room = _measure_all(found)
        for saved, size, directory, record in found:
            age = time.time() - saved
            is_kept = age < KEEP_SECONDS and total <= room
            if is_kept or not records.is_orphan(record) or not remove_orphan(directory):
                continue
            log.warning(
                "Removed the saved kernel %s of %s, %.0f days old, %s",
                *(record.container_id, record.folder, age / 86400, describe_size(size)),
            )
            total -= size
    sweep_kept()
