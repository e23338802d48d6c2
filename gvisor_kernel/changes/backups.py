"""Keeps files that applied changes have replaced or removed on disk, for a while, to undo that.

One folder for each apply, in the state directory; ``backup.py`` has what is in it. Here is which
there are, and which are removed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.changes.backup import HEAD, MAX_LINE, Backup, Done, Head, is_busy
from gvisor_kernel.changes.change import ChangesError, OnDisk
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.host.private_directories import (
    NotPrivate,
    locked_directory,
    make_directories,
    mark_for_removal,
    read_file,
    sweep,
)
from gvisor_kernel.runtimes.state.records import state_root
from gvisor_kernel.strict_json import JsonError, parse_json

# by path: below a private store of this user

MAX_KEPT = 20
"""Applies that can be undone; the oldest are removed."""
MAX_KEPT_BYTES = 1024 * 1024 * 1024
"""Bytes of all old files together; that of the last apply is kept whatever its size."""
_ID = re.compile(r"[0-9a-f]{13}-[0-9a-f]{8}")


class Written:
    """The files that applies to one folder have written, by path and facts on disk."""

    def __init__(self, writers: Mapping[tuple[str, str], Sequence[Backup]]) -> None:
        self._writers = writers

    def note_same(self, path: str, before: OnDisk, now: OnDisk) -> None:
        """Note that what an earlier apply wrote is there again, with other facts."""
        for backup in self._writers.get((path, before.text), ()):
            with suppress(OSError):  # it only saves a question
                backup.note(Done("same", path, None, 0, None, now))


class Backups:
    """All backups of this user."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def open(cls) -> Backups:
        """Open the store.

        :raises StateError: when the state directory cannot be used
        :raises ChangesError: when the store is not private
        """
        root = state_root() / "undo"
        try:
            make_directories(root)
        except NotPrivate as error:
            raise ChangesError(f"Old files cannot be kept: {error}") from error
        return cls(root)

    def begin(self, head: Head) -> Backup:
        """Begin a backup.

        :raises ChangesError: when it cannot be made
        """
        name = f"{time.time_ns() // 1_000_000:013x}-{secrets.token_hex(4)}"
        directory = self._root / name
        content = [head.sandbox, head.folder, list(head.identity)]
        try:
            self._sweep()
            directory.mkdir(mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(directory / HEAD, flags, 0o600), "w") as file:
                json.dump(content, file)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise ChangesError(
                f"Old files cannot be kept in {self._root}: {error.strerror}.",
                "check whether the disk is full.",
            ) from error
        return Backup(directory, head)

    def find(self, undo: str) -> Backup:
        """Return a backup.

        :raises ChangesError: when there is none
        """
        if _ID.fullmatch(undo):
            for backup in self.newest_first():
                if backup.id == undo and self._has_steps(backup):
                    return backup
        raise ChangesError(f"There is nothing to undo of the name {undo!r}.")

    def find_last(self) -> Backup:
        """Return the last one that was not undone.

        :raises ChangesError: when there is none, or a later one cannot be read: then the error
            names both, as it may not be the one that is meant
        """
        unread: ChangesError | None = None
        for backup in self.newest_first():
            try:
                if not self._has_steps(backup):
                    continue
            except ChangesError as error:
                unread = unread or error
                continue
            if unread is None:
                return backup
            unread.hint += f" The last one before it that can be undone: {backup.id}."
            break
        raise unread or ChangesError("There is nothing to undo.")

    @staticmethod
    def _has_steps(backup: Backup) -> bool:
        try:
            return bool(backup.left())
        except OSError as error:
            raise ChangesError(
                f"The record of the apply {backup.id} cannot be read: {error.strerror or error}.",
                f"its old files are in {backup.directory}.",
            ) from error

    def index(self, head: Head) -> Written:
        """Return what the applies to a folder have written there. Reads all of their journals."""
        found: dict[tuple[str, str], list[Backup]] = {}
        for backup in self.newest_first():
            if backup.head.identity != head.identity:
                continue
            with suppress(OSError):  # it only saves a question
                for done in backup.read_journal():
                    if done.after is not None:
                        writers = found.setdefault((done.path, done.after.text), [])
                        if not writers or writers[-1].id != backup.id:
                            writers.append(backup)
        return Written(found)

    def newest_first(self) -> Iterator[Backup]:
        """Yield the backups, the last one first."""
        for directory in self._directories():
            head = _read_head(directory)
            if head is not None:
                yield Backup(directory, head)

    def find_ours(self, sandbox: str) -> dict[str, OnDisk | None]:
        """Return the facts of files on disk that were written by applies from this sandbox.

        None: its content was applied. Otherwise an undo has brought back what was there before,
        whose facts these are.
        """
        found: dict[str, OnDisk | None] = {}
        for backup in self.newest_first():
            if backup.head.sandbox != sandbox:
                continue
            with suppress(OSError):  # they count as changed by somebody else then
                before: dict[int, OnDisk | None] = {}
                for done in backup.read_journal():
                    if done.step not in ("undone", "same"):
                        before[done.number] = done.before
                    if done.after is not None and done.phase == "done":
                        origin = before.get(done.number) if done.step == "undone" else None
                        found.setdefault(done.after.text, origin)
        return found

    def _directories(self) -> list[Path]:
        with suppress(OSError):
            found = [path for path in self._root.iterdir() if _ID.fullmatch(path.name)]
            return sorted(found, reverse=True)
        return []

    def _sweep(self) -> None:
        """Remove the oldest, so that there is room for one more."""
        size = 0
        with locked_directory(self._root):
            for index, directory in enumerate(self._directories()):
                size += _measure(directory)
                if is_busy(directory):
                    continue
                if index >= MAX_KEPT - 1 or (index > 0 and size > MAX_KEPT_BYTES):
                    mark_for_removal(directory)
            sweep(self._root)


def _measure(directory: Path) -> int:
    with suppress(OSError):
        return sum(path.lstat().st_size for path in directory.iterdir())
    return 0


def _read_head(directory: Path) -> Head | None:
    try:
        content = parse_json(read_file(directory / HEAD, MAX_LINE), MAX_LINE)
        sandbox, folder, (device, inode) = content
        return Head(str(sandbox), str(folder), Identity(int(device), int(inode)))
    except (OSError, JsonError, ValueError, TypeError):
        return None
