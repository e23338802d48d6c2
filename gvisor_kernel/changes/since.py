"""Files that were applied from one kernel since a time, and are undone when the kernel goes back.

An apply has kept the old files (``backups``). Outputs have none: the kernel writes them itself. All
functions block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.backups import Backups, is_busy
from gvisor_kernel.changes.change import ChangesError, RefusedChange, Undone
from gvisor_kernel.errors import StateError


@dataclass(frozen=True)
class UndoableApply:
    """An apply whose old files are kept. ``undo``: its id. ``time``: Unix time. ``paths``: of the
    files that it has written or removed, chosen by the sandbox."""

    undo: str
    time: float
    paths: tuple[str, ...]


def find_applies(directory: Path | None, since: float = 0.0) -> list[UndoableApply]:
    """Return the applies from the sandbox in ``directory`` that have ended, the last one first."""
    found = []
    with suppress(StateError, ChangesError):
        for backup in Backups.open().newest_first():
            is_ours = directory is not None and backup.head.sandbox == directory.name
            if is_ours and backup.began > since and not is_busy(backup.directory):
                with suppress(OSError):  # its record cannot be read; it has its id all the same
                    paths = tuple(dict.fromkeys(move.path for move in backup.left()))
                    found += [UndoableApply(backup.id, backup.began, paths)] if paths else []
    return found


def undo_applies(
    applies: Sequence[UndoableApply], is_stopping: Callable[[], bool] = lambda: False
) -> Undone:
    """Undo applies, the last one first; what has changed since then is refused, and stays."""
    folder, undone, refused = "", list[str](), list[RefusedChange]()
    for one in applies:
        try:
            done = undo_apply(one.undo, is_stopping)
        except (ChangesError, StateError) as error:
            refused += [RefusedChange(path, error.fact) for path in one.paths]
        else:
            folder = done.folder
            undone += done.undone
            refused += done.refused
    return Undone(folder, tuple(dict.fromkeys(undone)), tuple(refused))
