"""One apply that can be undone: the old files that it has replaced or removed, and its journal.

The journal gets a line before each step and one after it, so what was done before a crash can be
undone as well, and what was left by it is known. While an apply or its undo is at work, its folder
has a locked file: one without a lock tells of a process that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

from gvisor_kernel.changes.change import MAX_CHANGES, OnDisk, Type, is_path
from gvisor_kernel.changes.folder import is_aside
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.host.private_directories import (
    lock,
    locked_directory,
    mark_for_removal,
    read_file,
    sweep,
)
from gvisor_kernel.strict_json import JsonError, parse_json

# by path: below a private store of this user

MAX_JOURNAL = 64 * 1024 * 1024
"""Bytes that are read of a journal, and so written to it."""
MAX_LINE = 32 * 1024
FULL = "the record of this apply is full"
HEAD, JOURNAL, BUSY = "head.json", "journal", "busy"
STEP_SECONDS = 20.0
"""Seconds that one step waits for those of other applies, and an undo for its own apply."""
PART = 1024 * 1024

Step = Literal["put", "removed", "unmade", "undone", "same"]
"""``put``: a file or folder was written; ``unmade``: an empty folder was removed. The last two: a
step was undone; another undo has brought back what a step wrote."""
Phase = Literal["begun", "planned", "done", "dropped"]
"""``begun``: its file is being written; ``planned``: the exchange or removal is next; ``dropped``:
it has failed, and nothing was done."""


@dataclass(frozen=True)
class Head:
    """The sandbox whose changes were applied, and the folder on disk to which they were applied."""

    sandbox: str
    folder: str
    identity: Identity


@dataclass(frozen=True)
class Done:
    """One step, as far as ``phase`` says. ``old``: the name of the old file here; ``mode``: the
    rights of what was there. ``before`` and ``after``: what was on disk before it, and is since
    then; None where nothing is. ``number``: of the step; an undo of it has the same. ``aside``: the
    name beside ``path`` of what is being written or was replaced."""

    step: Step
    path: str
    old: str | None
    mode: int
    before: OnDisk | None
    after: OnDisk | None
    number: int = 0
    aside: str | None = None
    phase: Phase = "done"


class Backup:
    """One apply that can be undone."""

    def __init__(self, directory: Path, head: Head) -> None:
        self.directory = directory
        self.head = head
        self._files = 0
        self._steps = 0

    @property
    def id(self) -> str:
        """Return the id that ``undo`` takes."""
        return self.directory.name

    def keep(self, content: IO[bytes]) -> str:
        """Copy an old file; return its name here.

        :raises OSError: when it cannot be copied
        """
        self._files += 1
        name = f"{self._files}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self.directory / name, flags, 0o600), "wb") as file:
            try:
                shutil.copyfileobj(content, file, PART)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), 0)
                self.drop_old(name)
                raise
        return name

    def drop_old(self, name: str) -> None:
        """Remove an old file of a step that was not done."""
        with suppress(OSError):
            (self.directory / name).unlink()

    def next_number(self) -> int:
        """Return the number of the next step."""
        self._steps += 1
        return self._steps

    def open_old(self, name: str) -> IO[bytes]:
        """Open an old file.

        :raises OSError: when it cannot be opened
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self.directory / name, flags), "rb")

    def note(self, done: Done) -> int:
        """Add a step to the journal; return its size before. A line that cannot be written whole is
        taken back.

        :raises OSError: when it cannot be written; EFBIG before a step after which the journal
            might not be read any more, or not have room for undoing what it has
        """
        facts = [None if f is None else list(vars(f).values()) for f in (done.before, done.after)]
        values = [done.step, done.path, done.old, done.mode, *facts]
        line = [done.phase, done.number, done.aside, *values]
        data = f"\n{json.dumps(line)}\n".encode()  # the line before may have no end
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.directory / JOURNAL, flags, 0o600)
        try:
            if len(data) > MAX_LINE or os.fstat(fd).st_size + len(data) > _most(done):
                rest = "" if done.step == "undone" else ": apply the rest in another one"
                raise OSError(errno.EFBIG, FULL + rest, JOURNAL)
            written = os.write(fd, data)
            if written != len(data):
                os.ftruncate(fd, os.fstat(fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), JOURNAL)
            return os.fstat(fd).st_size - written
        finally:
            os.close(fd)

    def take_back(self, size: int) -> None:
        """Make the journal as it was before a step that was not done. Needs ``step_lock``: then
        nobody else has added a line.

        :raises OSError: when that fails
        """
        os.truncate(self.directory / JOURNAL, size)

    def read_journal(self) -> list[Done]:
        """Return what the journal says of steps, the first one first.

        :raises OSError: when it cannot be read; it may have steps then
        """
        try:
            lines = read_file(self.directory / JOURNAL, MAX_JOURNAL).splitlines()
        except FileNotFoundError:
            return []
        return [done for line in lines if line and (done := _read_step(line)) is not None]

    def left(self) -> list[Done]:
        """Return the steps that were not undone, the first one first: what is known last of each.
        One that is ``planned`` was interrupted: it may have been done.

        :raises OSError: when the journal cannot be read
        """
        known: dict[int, Done] = {}
        for done in self.read_journal():
            if done.step == "same" or (done.step == "undone" and done.phase != "done"):
                continue
            if done.step == "undone" or done.phase in ("begun", "dropped"):
                known.pop(done.number, None)
            else:
                known[done.number] = done
        return list(known.values())

    def interrupted(self) -> list[Done]:
        """Return the steps, also those of undoing, of which the journal has no end.

        :raises OSError: when the journal cannot be read
        """
        found: dict[tuple[int, bool], Done] = {}
        for done in self.read_journal():
            if done.step == "same":
                continue
            key = done.number, done.step == "undone"
            if done.phase in ("begun", "planned"):
                found[key] = done
            else:
                found.pop(key, None)
        return list(found.values())

    @contextmanager
    def working(self, seconds: float | None = None) -> Iterator[None]:
        """Say that an apply, or its undo, is at work, and that no other is.

        :raises OSError: when another one is
        """
        path = self.directory / BUSY
        wait = STEP_SECONDS if seconds is None else seconds
        with lock(path, fcntl.LOCK_EX, create=True, seconds=wait) as fd:
            os.pwrite(fd, b"1", 0)
            try:
                yield
            finally:
                with suppress(OSError):  # then it counts as interrupted, without an open step
                    os.ftruncate(fd, 0)

    @property
    def was_interrupted(self) -> bool:
        """Return whether the process of an apply or undo was killed at its work."""
        with suppress(OSError):
            return (self.directory / BUSY).stat().st_size > 0 and not is_busy(self.directory)
        return False

    def step_lock(self) -> AbstractContextManager[int]:
        """Hold the lock with which this user's applies and undos take turns, step by step.

        :raises OSError: when another process holds it for long
        """
        path = self.directory.parent / "steps.lock"
        return lock(path, fcntl.LOCK_EX, create=True, seconds=STEP_SECONDS)

    def drop_files(self) -> None:
        """Remove the old files. The facts of what was brought back are kept, as of our own work."""
        for path in self.directory.iterdir():
            if path.name not in (HEAD, JOURNAL, BUSY):
                with suppress(OSError):
                    path.unlink()

    def remove(self) -> None:
        """Forget it. What cannot be removed now is left to the next sweep."""
        root = self.directory.parent
        with suppress(OSError), locked_directory(root):
            mark_for_removal(self.directory)
            sweep(root)


def is_busy(directory: Path) -> bool:
    """Return whether an apply or undo is at work in the folder of a backup."""
    try:
        with lock(directory / BUSY, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _most(done: Done) -> int:
    """Return how many bytes the journal may have after a line.

    Steps begin in its first third. Undoing them takes at most half as much again as they took: up
    to three lines for each of their two or three. What only saves a question leaves room for that,
    and the end of a step can always be written.
    """
    if done.step == "same":
        return MAX_JOURNAL * 2 // 5
    if done.phase in ("done", "dropped"):
        return MAX_JOURNAL
    return MAX_JOURNAL - 4 * MAX_LINE if done.step == "undone" else MAX_JOURNAL // 3


def _read_step(line: bytes) -> Done | None:
    try:
        phase, number, aside, step, path, old, mode, *facts = parse_json(line, MAX_LINE)
        before, after = map(_read_facts, facts)
        if not is_path(path) or not (old is None or re.fullmatch(r"[0-9]{1,6}", old)):
            return None
        if not (aside is None or is_aside(aside)):
            return None
        return Done(step, path, old, int(mode), before, after, int(number), aside, phase)
    except (JsonError, ValueError, TypeError):  # the line was not written to its end
        return None


def _read_facts(facts: object) -> OnDisk | None:
    if facts is None:
        return None
    if not isinstance(facts, list) or not facts or facts[0] not in get_args(Type):
        raise ValueError("no facts of a file")
    return OnDisk(facts[0], *map(int, facts[1:]))


assert MAX_CHANGES < 10**6
