"""Applies changes to the folder on disk. Blocks. ``undo.py`` undoes that.

Only regular files and folders are written. Each step is refused if what it looked at is not there
any more. The contents come from files of this process: whoever calls has fetched and compared them.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import replace
from typing import IO

from gvisor_kernel.changes import folder
from gvisor_kernel.changes.backup import Backup, Done, Step
from gvisor_kernel.changes.change import Applied, Change, OnDisk, RefusedChange
from gvisor_kernel.host.folders import Opened, open_below

AGAIN = "it has changed on disk since it was looked at"
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
        self.refused: list[RefusedChange] = []

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
        self.refused.append(RefusedChange(path, reason))

    @property
    def result(self) -> Applied:
        """Return the paths that were applied, those that were refused, and the id for ``undo``."""
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
        notes = Journal(backup, Done(step, path, old, mode, disk, None, number))
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


class Journal(folder.Notes):
    """Writes a step down before and after it; a context manager of the step."""

    def __init__(self, backup: Backup, done: Done) -> None:
        self._backup = backup
        self._done = done
        self._size: int | None = None
        """Bytes of the journal before this step, once it has a line of the step."""
        self.after: OnDisk | None = None

    def begin(self, aside: str) -> None:
        self._write(replace(self._done, aside=aside, phase="begun"))

    def plan(self, aside: str | None, after: OnDisk | None) -> None:
        self._write(replace(self._done, aside=aside, after=after, phase="planned"))

    def _write(self, done: Done) -> None:
        try:
            size = self._backup.note(done)
        except OSError as error:
            raise _no_record(error) from error
        self._size = size if self._size is None else self._size
        self._done = done

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._done.old is not None and self._done.step != "undone":
            self._backup.drop_old(self._done.old)
        if self._size is not None:
            with suppress(OSError):  # the plan says enough
                if kind is None:
                    self._backup.note(replace(self._done, after=self.after, phase="done"))
                else:
                    self._backup.take_back(self._size)


def _no_record(error: OSError) -> NoRecord:
    reason = explain(error)
    return NoRecord(error.errno, f"the old file, or a record of it, cannot be kept: {reason}")


def explain(error: OSError) -> str:
    """Return why a step failed, in words."""
    if isinstance(error, (NoRecord, folder.Kept)):
        return str(error.strerror)
    known = _WORDS.get(error.errno or 0)
    return known or (error.strerror or str(error))
