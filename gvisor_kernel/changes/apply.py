"""Applies changes to the folder on disk, and undoes that. Blocks.

Only regular files and folders are written. Each step is refused if what it looked at is not there
any more. The contents come from files of this process: whoever calls has fetched and compared them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from typing import IO

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.backups import Backup, Backups, Done
from gvisor_kernel.changes.change import Applied, Change, OnDisk, Refused
from gvisor_kernel.host.folders import Opened

AGAIN = "it has changed on disk since it was looked at"
_WORDS = {
    errno.ELOOP: "a part of the path is a link",
    errno.EEXIST: AGAIN,
    errno.ESTALE: AGAIN,
    errno.ENOTEMPTY: "the folder is not empty on disk",
    errno.ENOENT: "the folder that it is in is not there",
}


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
            self._backup.note(self._do(change, disk, content))
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

    def _do(self, change: Change, disk: OnDisk | None, content: IO[bytes] | None) -> Done:
        path = change.path
        if change.kind == "removed":
            assert disk is not None
            if disk.type == "folder":
                folder.remove(self._root, path, disk)
                return Done("unmade", path, None, 0, disk, None)
            old, mode = self._keep(path, disk)
            folder.remove(self._root, path, disk)
            return Done("removed", path, old, mode, disk, None)
        if change.type == "folder":
            return Done("made", path, None, 0, None, folder.make_folder(self._root, path))
        assert content is not None
        if disk is None:
            return Done("wrote", path, None, 0, None, folder.write_new(self._root, path, content))
        old, mode = self._keep(path, disk)
        after = folder.replace_file(self._root, path, content, disk)
        return Done("replaced", path, old, mode, disk, after)

    def _keep(self, path: str, disk: OnDisk) -> tuple[str, int]:
        with folder.open_file(self._root, path) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != (disk.device, disk.inode):
                raise folder.Changed(path)
            return self._backup.keep(file), stat.S_IMODE(status.st_mode)


def undo(root: Opened, backup: Backup, store: Backups) -> tuple[list[str], list[Refused]]:
    """Undo an apply, the last step first. What has changed since then is refused, and left."""
    same = {
        (done.path, done.after.text)
        for done in backup.read_journal()
        if done.step == "same" and done.after is not None
    }
    undone: list[str] = []
    refused: list[Refused] = []
    steps: dict[str, Callable[[Opened, Backup, Done], None]] = {
        "wrote": _undo_write,
        "made": _undo_write,
        "replaced": _undo_replace,
        "removed": _undo_remove,
        "unmade": _undo_unmake,
    }
    for done in reversed(backup.left()):
        try:
            found = folder.look(root, done.path)
            expected = None if done.after is None else done.after.text
            text = None if found is None else found.text
            if text != expected and (done.path, text) not in same:
                raise folder.Changed(done.path)
            steps[done.step](root, backup, replace(done, after=found))
            now = folder.look(root, done.path)
            backup.note(Done("undone", done.path, None, 0, None, now))
            if done.before is not None and now is not None:
                store.note_same(backup.head, done.path, done.before, now)
        except OSError as error:
            reason = "it has changed on disk since then" if error.errno == errno.ESTALE else ""
            refused.append(Refused(done.path, reason or explain(error)))
        else:
            undone.append(done.path)
    return undone, refused


def _undo_write(root: Opened, backup: Backup, done: Done) -> None:
    assert done.after is not None
    folder.remove(root, done.path, done.after)


def _undo_replace(root: Opened, backup: Backup, done: Done) -> None:
    assert done.after is not None
    assert done.old is not None
    with backup.open_old(done.old) as content:
        folder.replace_file(root, done.path, content, done.after)


def _undo_remove(root: Opened, backup: Backup, done: Done) -> None:
    assert done.old is not None
    with backup.open_old(done.old) as content:
        folder.write_new(root, done.path, content, done.mode)


def _undo_unmake(root: Opened, backup: Backup, done: Done) -> None:
    folder.make_folder(root, done.path)


def explain(error: OSError) -> str:
    """Return why a step failed, in words."""
    known = _WORDS.get(error.errno or 0)
    return known or (error.strerror or str(error))
