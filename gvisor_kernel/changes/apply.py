"""Applies changes to the folder on disk, and undoes that. Blocks.

Only regular files and folders are written. Each step is refused if what it looked at is not there
any more. The contents come from files of this process: whoever calls has fetched and compared them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import IO

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.backups import Backup, Backups, Done, Phase, Step
from gvisor_kernel.changes.change import Applied, Change, OnDisk, Refused
from gvisor_kernel.host.folders import Opened, open_below

AGAIN = "it has changed on disk since it was looked at"
SINCE = "it has changed on disk since then"
STOPPED = "this process ends: undo it again"
UNKNOWN = "the apply was interrupted at it, and it is neither what it was nor what was applied"
_FULL = "the disk is full"
_WORDS = {
    errno.ELOOP: "a part of the path is a link",
    errno.EEXIST: AGAIN,
    errno.ESTALE: AGAIN,
    errno.ENOTEMPTY: "the folder is not empty on disk",
    errno.ENOENT: "the folder that it is in is not there",
    errno.ENOSPC: f"{_FULL}, or has no room for another file",
    errno.EDQUOT: "your quota on the disk is used up",
    errno.EROFS: "the file system can only be read",
    errno.EIO: "the disk has an error",
    errno.ETIMEDOUT: "another apply or undo is at work, and takes long: try again",
}


class NoRecord(OSError):
    """An old file, or the record of a step, cannot be kept; so nothing was done."""


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
        self.refused: list[Refused] = []

    def apply(self, change: Change, disk: OnDisk | None, content: IO[bytes] | None) -> None:
        """Apply one change. ``disk``: what is there now, and was looked at."""
        try:
            with self._backup.step_lock():
                self._do(change, disk, content)
        except OSError as error:
            self.refuse(change.path, explain(error))
        else:
            self.applied.append(change.path)

    def refuse(self, path: str, reason: str) -> None:
        """Note that a change is not applied."""
        self.refused.append(Refused(path, reason))

    @property
    def result(self) -> Applied:
        """What was done."""
        undo = self._backup.id if self.applied else None
        return Applied(tuple(self.applied), tuple(self.refused), undo)

    def _do(self, change: Change, disk: OnDisk | None, content: IO[bytes] | None) -> None:
        path, backup = change.path, self._backup
        number = backup.next_number()
        old, mode = None, 0
        if disk is not None and disk.type == "file":
            old, mode = self._keep(path, disk)
        elif disk is not None:
            with open_below(self._root, path) as found:
                mode = stat.S_IMODE(found.status().st_mode)
        step: Step = "put"
        if change.kind == "removed":
            step = "unmade" if disk is not None and disk.type == "folder" else "removed"
        notes = _Journal(backup, Done(step, path, old, mode, disk, None, number))
        with notes:
            if change.kind == "removed":
                assert disk is not None
                folder.remove(self._root, path, disk, notes)
            else:
                source = None if change.type == "folder" else content
                notes.after = folder.put(self._root, path, source, expected=disk, notes=notes)

    def _keep(self, path: str, disk: OnDisk) -> tuple[str, int]:
        with folder.open_file(self._root, path) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != (disk.device, disk.inode):
                raise folder.Changed(path)
            try:
                old = self._backup.keep(file)
            except OSError as error:
                raise _no_record(error) from error
            return old, stat.S_IMODE(status.st_mode)


class _Journal(folder.Notes):
    """Writes a step down before and after it; a context manager of the step."""

    def __init__(self, backup: Backup, done: Done) -> None:
        self._backup = backup
        self._done = done
        self._is_noted = False
        self.after: OnDisk | None = None

    def begin(self, aside: str) -> None:
        self._write(replace(self._done, aside=aside, phase="begun"))

    def plan(self, aside: str | None, after: OnDisk | None) -> None:
        self._write(replace(self._done, aside=aside, after=after, phase="planned"))

    def _write(self, done: Done) -> None:
        try:
            self._backup.note(done)
        except OSError as error:
            raise _no_record(error) from error
        self._is_noted = True
        self._done = done

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        phase: Phase = "done" if kind is None else "dropped"
        if phase == "dropped" and self._done.old is not None and self._done.step != "undone":
            self._backup.drop_old(self._done.old)
        if self._is_noted:
            with suppress(OSError):  # the plan says enough
                self._backup.note(replace(self._done, after=self.after, phase=phase))


def _no_record(error: OSError) -> NoRecord:
    reason = explain(error)
    return NoRecord(error.errno, f"the old file, or a record of it, cannot be kept: {reason}")


def undo(
    root: Opened,
    backup: Backup,
    store: Backups,
    is_stopping: Callable[[], bool] = lambda: False,
) -> tuple[list[str], list[Refused]]:
    """Undo an apply, the last step first. What has changed since then is refused, and left.

    The caller has made sure that no other process is at it (``Backup.working``). ``is_stopping`` is
    asked before each step: whether the rest is to be left.
    """
    clear_interrupted(root, backup)
    written = store.index(backup.head)
    same = {
        (done.path, done.after.text)
        for done in backup.read_journal()
        if done.step == "same" and done.after is not None
    }
    half = {done.number: done for done in backup.interrupted() if done.step == "undone"}
    undone: list[str] = []
    refused: list[Refused] = []
    for done in reversed(backup.left()):
        if is_stopping():
            refused.append(Refused(done.path, STOPPED))
            continue
        try:
            with backup.step_lock():
                was_done = _undo_step(root, backup, done, half.get(done.number), same)
                now = folder.look(root, done.path)
            if done.before is not None and now is not None:
                written.note_same(done.path, done.before, now)
        except OSError as error:
            reason = SINCE if error.errno == errno.ESTALE else explain(error)
            refused.append(Refused(done.path, reason))
            if error.errno != errno.ESTALE:
                _note_return(root, backup, done)
        else:
            if was_done:
                undone.append(done.path)
    return undone, refused


def _note_return(root: Opened, backup: Backup, done: Done) -> None:
    """Note that a file has its name again after a failure, and so another time of change."""
    with suppress(OSError):
        now = folder.look(root, done.path)
        if now is not None and folder.matches(now, done.after):
            backup.note(Done("same", done.path, None, 0, None, now))


def _undo_step(
    root: Opened, backup: Backup, done: Done, half: Done | None, same: set[tuple[str, str]]
) -> bool:
    """Undo one step. Return whether there was anything to undo.

    ``half``: the undo of it that was interrupted.
    """
    found = folder.look(root, done.path)
    notes = _Journal(backup, replace(done, step="undone", aside=None, before=found, after=None))
    if half is not None and half.phase == "planned" and _is(found, half.after):
        notes.plan(None, found)
        with notes:  # it was done, but for its record
            notes.after = found
        return True
    if done.phase == "planned" and not _is(found, done.after):
        if not _is(found, done.before):
            raise OSError(errno.EBUSY, UNKNOWN, done.path)
        backup.note(replace(done, phase="dropped"))
        return False
    expected = None if done.after is None else done.after.text
    text = None if found is None else found.text
    if done.phase == "done" and text != expected and (done.path, text) not in same:
        raise folder.Changed(done.path)
    with notes:
        if done.before is None:
            assert found is not None
            folder.remove(root, done.path, found, notes)
        elif done.before.type == "folder":
            notes.after = folder.put(
                root, done.path, None, mode=done.mode, expected=found, notes=notes
            )
        else:
            assert done.old is not None
            with backup.open_old(done.old) as content:
                notes.after = folder.put(
                    root, done.path, content, mode=done.mode, expected=found, notes=notes
                )
    return True


def _is(found: OnDisk | None, expected: OnDisk | None) -> bool:
    return found is None if expected is None else folder.matches(found, expected)


def clear_interrupted(root: Opened, backup: Backup) -> None:
    """Remove what a killed apply or undo has left beside the files that it was at."""
    for done in backup.interrupted():
        if done.aside is None:
            continue
        with suppress(OSError), backup.step_lock():
            is_new = done.phase == "begun"
            folder.clear_aside(root, done.path, done.aside, done.before, done.after, new=is_new)


def explain(error: OSError) -> str:
    """Return why a step failed, in words."""
    if isinstance(error, (NoRecord, folder.Kept)):
        return str(error.strerror)
    known = _WORDS.get(error.errno or 0)
    return known or (error.strerror or str(error))
