"""What was replaced or removed on disk by applying changes: kept for a while, so that it can be
undone.

One folder for each apply, in the state directory, with the old files and a journal. The journal
gets a line after each step, so what was done before a crash can be undone as well.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from gvisor_kernel.changes.change import MAX_CHANGES, ChangesError, OnDisk, is_path
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

MAX_KEPT = 20
"""Applies that can be undone; the oldest are removed."""
MAX_KEPT_BYTES = 1024 * 1024 * 1024
"""Bytes of all old files together; that of the last apply is kept whatever its size."""
MAX_JOURNAL = 64 * 1024 * 1024
MAX_LINE = 16 * 1024
HEAD, JOURNAL = "head.json", "journal"
PART = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{13}-[0-9a-f]{8}")

Step = Literal["wrote", "replaced", "removed", "made", "unmade", "undone", "same"]
"""The last two: a step of that path was undone; another undo has brought back what it wrote."""


@dataclass(frozen=True)
class Head:
    """Of which sandbox changes were applied, and to which folder."""

    sandbox: str
    folder: str
    identity: Identity


@dataclass(frozen=True)
class Done:
    """One step. ``old``: the name of the old file here; ``mode``: its rights. ``before`` and
    ``after``: what was on disk before it, and is since then; None where nothing is."""

    step: Step
    path: str
    old: str | None
    mode: int
    before: OnDisk | None
    after: OnDisk | None


class Backup:
    """One apply that can be undone."""

    def __init__(self, directory: Path, head: Head) -> None:
        self.directory = directory
        self.head = head
        self._count = 0

    @property
    def id(self) -> str:
        """What ``undo`` takes."""
        return self.directory.name

    def keep(self, content: IO[bytes]) -> str:
        """Copy an old file; return its name here.

        :raises OSError: when it cannot be copied
        """
        self._count += 1
        name = f"{self._count}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self.directory / name, flags, 0o600), "wb") as file:
            shutil.copyfileobj(content, file, PART)
        return name

    def open_old(self, name: str) -> IO[bytes]:
        """Open an old file.

        :raises OSError: when it cannot be opened
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self.directory / name, flags), "rb")

    def note(self, done: Done) -> None:
        """Add a step to the journal.

        :raises OSError: when it cannot be written
        """
        facts = [None if f is None else list(vars(f).values()) for f in (done.before, done.after)]
        line = json.dumps([done.step, done.path, done.old, done.mode, *facts])
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self.directory / JOURNAL, flags, 0o600), "w") as file:
            file.write(line + "\n")

    def read_journal(self) -> list[Done]:
        """Return the steps, the first one first."""
        with suppress(OSError):
            lines = read_file(self.directory / JOURNAL, MAX_JOURNAL).splitlines()
            return [done for line in lines if (done := _read_step(line)) is not None]
        return []

    def left(self) -> list[Done]:
        """Return the steps that were not undone, the first one first."""
        found = self.read_journal()
        undone = {done.path for done in found if done.step == "undone"}
        return [d for d in found if d.step not in ("undone", "same") and d.path not in undone]

    def drop_files(self) -> None:
        """Remove the old files. The facts of what was brought back are kept, as of our own work."""
        for path in self.directory.iterdir():
            if path.name not in (HEAD, JOURNAL):
                with suppress(OSError):
                    path.unlink()

    def remove(self) -> None:
        """Forget it. What cannot be removed now is left to the next sweep."""
        root = self.directory.parent
        with suppress(OSError), locked_directory(root):
            mark_for_removal(self.directory)
            sweep(root)


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
                if backup.id == undo and backup.left():
                    return backup
        raise ChangesError(f"There is nothing to undo of the name {undo!r}.")

    def find_last(self) -> Backup:
        """Return the last one that was not undone.

        :raises ChangesError: when there is none
        """
        for backup in self.newest_first():
            if backup.left():
                return backup
        raise ChangesError("There is nothing to undo.")

    def note_same(self, head: Head, path: str, before: OnDisk, now: OnDisk) -> None:
        """Note that what an earlier apply wrote is there again, with other facts."""
        for backup in self.newest_first():
            if backup.head.identity != head.identity:
                continue
            for done in backup.read_journal():
                if done.path == path and done.after is not None and done.after.text == before.text:
                    backup.note(Done("same", path, None, 0, None, now))
                    break

    def newest_first(self) -> Iterator[Backup]:
        """Yield the backups, the last one first."""
        for directory in self._directories():
            head = _read_head(directory)
            if head is not None:
                yield Backup(directory, head)

    def find_ours(self, sandbox: str) -> set[str]:
        """Return the facts of files on disk that were applied from this sandbox."""
        return {
            done.after.text
            for backup in self.newest_first()
            if backup.head.sandbox == sandbox
            for done in backup.read_journal()
            if done.after is not None
        }

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


def _read_step(line: bytes) -> Done | None:
    try:
        step, path, old, mode, *facts = parse_json(line, 2 * MAX_LINE)
        before, after = (None if fact is None else OnDisk(*fact) for fact in facts)
        if not is_path(path) or not (old is None or re.fullmatch(r"[0-9]{1,6}", old)):
            return None
        return Done(step, path, old, int(mode), before, after)
    except (JsonError, ValueError, TypeError):  # the line was not written to its end
        return None


assert MAX_CHANGES < 10**6
