"""Applies changes to the folder on disk, undoes that, and clears up after killed ones. Blocks.

Only regular files and folders are written. Each step is refused if what it looked at is not there
any more. The contents come from files of this process: whoever calls has fetched and compared them.
Undoing needs no sandbox: the journal of the apply says what was done (``backups``). Outputs have no
backups: the kernel writes them itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.backups import Backup, Backups, Move, is_busy
from gvisor_kernel.changes.change import (
    Applied,
    Change,
    ChangesError,
    OnDisk,
    RefusedChange,
    Undone,
)
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.folders import Opened, open_below, reopen

AGAIN = "it has changed on disk since it was looked at"
SINCE = "it has changed on disk since then"
STOPPED = "this process ends: undo it again"
UNKNOWN = "the apply was interrupted at it, and it is neither what it was nor what was applied"
_WORDS = {
    errno.ELOOP: "a part of the path is a link",
    errno.EEXIST: AGAIN,
    errno.ESTALE: AGAIN,
    errno.ENOTEMPTY: "the folder is not empty on disk",
    errno.ENOENT: "the folder that it is in is not there",
    errno.ENOSPC: "the disk is full, or has no room for another file",
    errno.EDQUOT: "your quota on the disk is used up",
    errno.EROFS: "the file system can only be read",
    errno.EIO: "the disk has an error",
    errno.ETIMEDOUT: "another apply or undo is at work, and takes long: try again",
}


class NoRecord(OSError):
    """An old file, or the record of a step, cannot be kept; so nothing was done."""

    def __init__(self, error: OSError) -> None:
        reason = explain(error)
        text = f"the old file, or a record of it, cannot be kept: {reason}"
        super().__init__(error.errno, text)


def explain(error: OSError) -> str:
    """Return why a step failed, in words."""
    if isinstance(error, (NoRecord, folder.Kept)):
        return str(error.strerror)
    return _WORDS.get(error.errno or 0) or (error.strerror or str(error))


def order(change: Change) -> tuple[int, int, str]:
    """Return the key by which changes are applied: what is removed first, the deepest first."""
    depth = change.path.count("/")
    is_folder = change.type == "folder"
    if change.kind == "removed":
        return int(is_folder), -depth, change.path
    return (2 if is_folder else 3), depth, change.path


class Applying:
    """One apply to ``root``. What it has done is in ``applied`` and ``refused``."""

    def __init__(self, root: Opened, backup: Backup) -> None:
        self._root = root
        self._backup = backup
        self.applied: list[str] = []
        self.refused: list[RefusedChange] = []

    def apply(self, change: Change, disk: OnDisk | None, content: IO[bytes] | None) -> None:
        """Apply one change. ``disk``: what is there now, and was looked at."""
        is_file = change.kind != "removed" and change.type == "file"
        try:
            with self._backup.step_lock():
                number = self._backup.next_number()
                move = Move(number, False, change.path, self._keep(number, change.path, disk))
                if change.kind == "removed":
                    _remove(self._root, self._backup, move)
                else:
                    _put(self._root, self._backup, move, content if is_file else None)
        except OSError as error:
            self.refuse(change.path, explain(error))
        else:
            self.applied.append(change.path)

    def refuse(self, path: str, reason: str) -> None:
        """Note that a change is not applied."""
        self.refused.append(RefusedChange(path, reason))

    @property
    def result(self) -> Applied:
        """Return the paths that were applied, those that were refused, and the id for ``undo``."""
        undo = self._backup.id if self.applied else None
        return Applied(tuple(self.applied), tuple(self.refused), undo)

    def _keep(self, number: int, path: str, disk: OnDisk | None) -> OnDisk | None:
        """Copy what is there, if it is a file; return its facts with its rights now."""
        if disk is None:
            return None
        if disk.type != "file":
            with open_below(self._root, path) as found:
                return msgspec.structs.replace(disk, mode=OnDisk.of(found.status()).mode)
        with folder.open_file(self._root, path) as file:
            now = OnDisk.of(os.fstat(file.fileno()))
            if (now.device, now.inode) != (disk.device, disk.inode):
                raise folder.Changed(path)
            try:
                self._backup.keep(number, file)
            except OSError as error:
                raise NoRecord(error) from error
            return msgspec.structs.replace(disk, mode=now.mode)


def undo_apply(name: str | None = None, is_stopping: Callable[[], bool] = lambda: False) -> Undone:
    """Undo an apply, by default the last one. Needs no sandbox. Blocks.

    What cannot be undone stays, and can be tried again. ``is_stopping`` is asked before each file:
    whether to leave the rest.

    :raises ChangesError: when there is none, or its folder is not there any more
    """
    store = Backups.open()
    backup = store.find(name) if name is not None else store.find_last()
    try:
        root = reopen(backup.head.folder, backup.head.identity, same_boot=False)
    except OSError as error:
        raise ChangesError(
            f"The folder {backup.head.folder} is not there any more ({error.strerror}); the old"
            f" files are in {backup.directory}."
        ) from error
    with root:
        try:
            with backup.working():
                undone, refused = undo(root, backup, is_stopping)
                if not refused:
                    backup.drop_files()
        except OSError as error:
            raise ChangesError(
                f"The apply {backup.id} cannot be undone now: {explain(error)}.",
                "it is at work itself, or another undo is: wait for its end.",
            ) from error
    return Undone(backup.head.folder, tuple(undone), tuple(refused))


def undo(
    root: Opened, backup: Backup, is_stopping: Callable[[], bool] = lambda: False
) -> tuple[list[str], list[RefusedChange]]:
    """Undo an apply, the last step first. What has changed since then is refused, and left.

    The caller has made sure that no other process is at it (``Backup.working``). ``is_stopping`` is
    asked before each step: whether the rest is to be left.
    """
    clear_interrupted(root, backup)
    half = {move.number: move for move in backup.moves() if move.undoes}
    undone: list[str] = []
    refused: list[RefusedChange] = []
    for step in reversed(backup.left()):
        if is_stopping():
            refused.append(RefusedChange(step.path, STOPPED))
            continue
        try:
            with backup.step_lock():
                if _undo_step(root, backup, step, half.get(step.number)):
                    undone.append(step.path)
        except OSError as error:
            reason = SINCE if error.errno == errno.ESTALE else explain(error)
            refused.append(RefusedChange(step.path, reason))
    return undone, refused


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


def clear_all() -> int:
    """Remove what killed applies and undos have left beside the files that they were at. Blocks.

    Their steps can still be undone. Return how many were cleared.
    """
    count = 0
    for backup in Backups.open().newest_first():
        if not backup.was_interrupted:
            continue
        with suppress(OSError):
            with (
                reopen(backup.head.folder, backup.head.identity, same_boot=False) as root,
                backup.working(0.0),
            ):
                clear_interrupted(root, backup)
            count += 1
    return count


def clear_interrupted(root: Opened, backup: Backup) -> None:
    """Remove what a killed apply or undo has left beside the files that it was at."""
    for move in backup.moves():
        if move.phase != "done" and move.aside is not None:
            with suppress(OSError), backup.step_lock():
                is_new = move.phase == "begun"
                folder.clear_aside(root, move.path, move.aside, move.before, move.after, new=is_new)


# -- inner -----------------------------------------------------------------------------------------


def _undo_step(root: Opened, backup: Backup, step: Move, half: Move | None) -> bool:
    """Undo one step. Return whether there was anything to undo.

    ``half``: the undo of it that was interrupted.
    """
    found = folder.look(root, step.path)
    move = Move(step.number, True, step.path, found)
    if half is not None and half.phase == "planned" and _is(found, half.after):
        with _noting(backup, move) as note:  # it was done, but for its record
            note("done", None, found)
        return True
    if step.phase == "planned" and not _is(found, step.after):
        if not _is(found, step.before):
            raise OSError(errno.EBUSY, UNKNOWN, step.path)
        with _noting(backup, move) as note:
            note("done", None, found)
        return False
    if step.phase == "done" and not _is_as_applied(root, step, found):
        raise folder.Changed(step.path)
    if step.before is None:
        _remove(root, backup, move)
    elif step.before.type == "folder":
        _put(root, backup, move, None, step.before.mode)
    else:
        with backup.open_old(step.number) as content:
            _put(root, backup, move, content, step.before.mode)
    return True


def _put(
    root: Opened, backup: Backup, move: Move, content: IO[bytes] | None, mode: int | None = None
) -> None:
    if content is not None:
        move = msgspec.structs.replace(move, digest=_digest(content))
    with _noting(backup, move) as note:
        after = folder.put(root, move.path, content, mode=mode, expected=move.before, note=note)
        with suppress(OSError):  # the plan says enough
            note("done", None, after)


def _remove(root: Opened, backup: Backup, move: Move) -> None:
    assert move.before is not None
    with _noting(backup, move) as note:
        folder.remove(root, move.path, move.before, note)
        with suppress(OSError):  # the plan says enough
            note("done", None, None)


@contextmanager
def _noting(backup: Backup, move: Move) -> Iterator[folder.Note]:
    """Write a move down before and after it; if it fails, it was none."""
    begins_at: int | None = None

    def note(phase: folder.Phase, aside: str | None, after: OnDisk | None) -> None:
        nonlocal begins_at
        line = msgspec.structs.replace(move, phase=phase, aside=aside, after=after)
        try:
            size = backup.note(line)
        except OSError as error:
            raise NoRecord(error) from error
        begins_at = size if begins_at is None else begins_at

    try:
        yield note
    except BaseException:
        if not move.undoes:
            backup.drop_old(move.number)
        if begins_at is not None:
            with suppress(OSError):
                backup.take_back(begins_at)
        raise


def _is(found: OnDisk | None, expected: OnDisk | None) -> bool:
    return found is None if expected is None else folder.matches(found, expected)


def _is_as_applied(root: Opened, step: Move, found: OnDisk | None) -> bool:
    """Return whether there is what a step has left: its file, or the same content, as the undo of a
    later apply brings it back."""
    if found is None or step.after is None:
        return found is step.after
    if found.type != step.after.type:
        return False
    if found.text == step.after.text or found.type == "folder":
        return True
    return found.size == step.after.size and (
        folder.find_digest(root, step.path, found.size) == step.digest
    )


def _digest(content: IO[bytes]) -> str:
    digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    content.seek(0)
    return digest
