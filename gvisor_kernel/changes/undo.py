"""Undoes what an apply has done to the folder on disk, and clears up after killed ones. Blocks.

Needs no sandbox. The journal of the apply says what was done, ``backups.py`` has the old files.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.apply import Journal, explain
from gvisor_kernel.changes.backup import Backup, Done
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import ChangesError, OnDisk, RefusedChange, Undone
from gvisor_kernel.host.folders import Opened, reopen

SINCE = "it has changed on disk since then"
STOPPED = "this process ends: undo it again"
UNKNOWN = "the apply was interrupted at it, and it is neither what it was nor what was applied"


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
                undone, refused = undo(root, backup, store, is_stopping)
                if not refused:
                    backup.drop_files()
        except OSError as error:
            raise ChangesError(
                f"The apply {backup.id} cannot be undone now: {explain(error)}.",
                "it is at work itself, or another undo is: wait for its end.",
            ) from error
    return Undone(backup.head.folder, tuple(undone), tuple(refused))


def undo(
    root: Opened,
    backup: Backup,
    store: Backups,
    is_stopping: Callable[[], bool] = lambda: False,
) -> tuple[list[str], list[RefusedChange]]:
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
    refused: list[RefusedChange] = []
    for done in reversed(backup.left()):
        if is_stopping():
            refused.append(RefusedChange(done.path, STOPPED))
            continue
        try:
            with backup.step_lock():
                was_done = _undo_step(root, backup, done, half.get(done.number), same)
                now = folder.look(root, done.path)
                if done.before is not None and now is not None:
                    written.note_same(done.path, done.before, now)
        except OSError as error:
            reason = SINCE if error.errno == errno.ESTALE else explain(error)
            refused.append(RefusedChange(done.path, reason))
            if error.errno != errno.ESTALE:
                _note_return(root, backup, done, same)
        else:
            if was_done:
                undone.append(done.path)
    return undone, refused


def _note_return(root: Opened, backup: Backup, done: Done, same: set[tuple[str, str]]) -> None:
    """Note that a file has its name again after a failure, and so another time of change."""
    with suppress(OSError):
        now = folder.look(root, done.path)
        if now is None or done.after is None or now.text == done.after.text:
            return
        if folder.matches(now, done.after) and (done.path, now.text) not in same:
            backup.note(Done("same", done.path, None, 0, None, now))


def _undo_step(
    root: Opened, backup: Backup, done: Done, half: Done | None, same: set[tuple[str, str]]
) -> bool:
    """Undo one step. Return whether there was anything to undo.

    ``half``: the undo of it that was interrupted.
    """
    found = folder.look(root, done.path)
    notes = Journal(backup, replace(done, step="undone", aside=None, before=found, after=None))
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
    for done in backup.interrupted():
        if done.aside is None:
            continue
        with suppress(OSError), backup.step_lock():
            is_new = done.phase == "begun"
            folder.clear_aside(root, done.path, done.aside, done.before, done.after, new=is_new)
