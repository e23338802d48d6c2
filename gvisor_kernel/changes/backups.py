"""Files that applies have replaced or removed on disk, kept for a while, so that it can be undone.

    undo/                  in the state directory, 0700
      lock                 held while backups are removed
      steps.lock           held at each step of an apply or undo
      <time>-<random>/     the backup of one apply
        head.json          whose changes, and to which folder
        journal            a line before each move and one after it
        busy               locked while the apply or its undo is at work; not empty and not locked
                           if its process was killed
        <number>           the old file of a step

Nothing here looks at the folder on disk: ``apply`` makes moves and undoes them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from gvisor_kernel.changes.change import ChangesError, OnDisk, is_path
from gvisor_kernel.changes.folder import Phase, is_aside
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import Identity
from gvisor_kernel.host.private_directories import (
    NotPrivate,
    lock,
    locked_directory,
    make_directories,
    mark_for_removal,
    read_file,
    state_root,
    sweep,
    write_file,
)

# by path: below a private store of this user

MAX_KEPT = 20
"""Applies of persons that can be undone, and as many that nobody has asked for; the oldest of each
are removed."""
MAX_KEPT_BYTES = 1024 * 1024 * 1024
"""Bytes of all old files together, for each of both; that of the last apply is kept whatever its
size."""
MAX_JOURNAL = 64 * 1024 * 1024
"""Bytes that are read of a journal, and so written to it."""
MAX_APPLIED = 1 / 3
"""Share of them for the moves of the apply. Undoing takes up to three lines for each of their two
or three, so half as much again, and has room whatever was applied."""
MAX_LINE = 32 * 1024
FULL = "the record of this apply is full"
HEAD, JOURNAL, BUSY = "head.json", "journal", "busy"
STEP_SECONDS = 20.0
"""Seconds that one step waits for those of other applies, and an undo for its own apply."""
PART = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{13}-[0-9a-f]{8}")


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The sandbox whose changes were applied, and the folder on disk to which they were applied."""

    sandbox: str
    folder: str
    identity: Identity
    is_automatic: bool = False
    """Nobody has asked for it: a kernel has ended whose new files are applied."""


class Move(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One path on its way from ``before`` to ``after``, as far as ``phase`` says; None where
    nothing is. A step of an apply is a move, and so is undoing it (``undoes``), with the same
    ``number``.

    ``aside``: the name beside ``path`` of what is being written or was replaced. ``digest``: of the
    content that is put, in hexadecimal; empty if none is.
    """

    number: int
    undoes: bool
    path: str
    before: OnDisk | None
    phase: Phase = "begun"
    after: OnDisk | None = None
    aside: str | None = None
    digest: str = ""


class Backup:
    """One apply that can be undone."""

    def __init__(self, directory: Path, head: Head, room: int = MAX_JOURNAL) -> None:
        self.directory = directory
        self.head = head
        self._room = room
        self._steps = 0

    @property
    def id(self) -> str:
        """Return the id that ``undo`` takes."""
        return self.directory.name

    @property
    def began(self) -> float:
        """Return the Unix time at which the apply began."""
        return int(self.id.partition("-")[0], 16) / 1000

    def next_number(self) -> int:
        """Return the number of the next step."""
        self._steps += 1
        return self._steps

    def keep(self, number: int, content: IO[bytes]) -> None:
        """Copy the old file of a step.

        :raises OSError: when it cannot be copied
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._old(number), flags, 0o600), "wb") as file:
            try:
                shutil.copyfileobj(content, file, PART)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), 0)
                self.drop_old(number)
                raise

    def open_old(self, number: int) -> IO[bytes]:
        """Open the old file of a step.

        :raises OSError: when it cannot be opened
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self._old(number), flags), "rb")

    def drop_old(self, number: int) -> None:
        """Remove the old file, if there is one, of a step that was not done."""
        with suppress(OSError):
            self._old(number).unlink()

    def _old(self, number: int) -> Path:
        return self.directory / str(number)

    def note(self, move: Move) -> int:
        """Add a line to the journal; return its size before. A line that cannot be written whole is
        taken back.

        :raises OSError: when it cannot be written; EFBIG before a step after which the journal
            might not be read any more, or not have room for undoing what it has
        """
        data = b"\n" + msgspec.json.encode(move) + b"\n"  # the line before may have no end
        begins_step = not move.undoes and move.phase != "done"
        most = self._room * MAX_APPLIED if begins_step else self._room
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with closing_fd(os.open(self.directory / JOURNAL, flags, 0o600)) as fd:
            size = os.fstat(fd).st_size
            if len(data) > MAX_LINE or size + len(data) > most:
                rest = "" if move.undoes else ": apply the rest in another one"
                raise OSError(errno.EFBIG, FULL + rest, JOURNAL)
            if os.write(fd, data) != len(data):
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), JOURNAL)
            return size

    def take_back(self, size: int) -> None:
        """Make the journal as it was before a move that was not done. Needs ``step_lock``: then
        nobody else has added a line.

        :raises OSError: when that fails
        """
        os.truncate(self.directory / JOURNAL, size)

    def moves(self) -> Iterator[Move]:
        """Yield what the journal knows last of each move, in the order of their first lines.

        :raises OSError: when it cannot be read; it may have moves then
        """
        known: dict[tuple[int, bool], Move] = {}
        try:
            lines = read_file(self.directory / JOURNAL, MAX_JOURNAL).splitlines()
        except FileNotFoundError:
            return
        for line in filter(None, lines):
            with suppress(ValueError):  # it was not written to its end
                move = msgspec.json.decode(line, type=Move)
                if is_path(move.path) and (move.aside is None or is_aside(move.aside)):
                    known[move.number, move.undoes] = move
        yield from known.values()

    def left(self) -> list[Move]:
        """Return the steps that were not undone, the first one first. One that is ``planned`` was
        interrupted: it may have been done.

        :raises OSError: when the journal cannot be read
        """
        moves = list(self.moves())
        undone = {move.number for move in moves if move.undoes and move.phase == "done"}
        steps = (move for move in moves if not move.undoes and move.phase != "begun")
        return [move for move in steps if move.number not in undone]

    @contextmanager
    def working(self, seconds: float | None = None) -> Iterator[None]:
        """Say that an apply, or its undo, is at work, and that no other is.

        :raises OSError: when another one is
        """
        wait = STEP_SECONDS if seconds is None else seconds
        with lock(self.directory / BUSY, fcntl.LOCK_EX, create=True, seconds=wait) as fd:
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

    def begin(self, head: Head, room: int = MAX_JOURNAL) -> Backup:
        """Begin a backup. ``room``: bytes of its journal.

        :raises ChangesError: when it cannot be made
        """
        directory = self._root / f"{time.time_ns() // 1_000_000:013x}-{secrets.token_hex(4)}"
        try:
            self._sweep(head.is_automatic)
            directory.mkdir(mode=0o700)
            # Of bytes that are no UTF-8 in a path, only ``json`` writes something.
            write_file(directory / HEAD, json.dumps(msgspec.to_builtins(head)))
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise ChangesError(
                f"Old files cannot be kept in {self._root}: {error.strerror}.",
                "check whether the disk is full.",
            ) from error
        return Backup(directory, head, room)

    def find(self, undo: str) -> Backup:
        """Return a backup.

        :raises ChangesError: when there is none
        """
        for backup in self.newest_first():
            if backup.id == undo and _has_steps(backup):
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
                if not _has_steps(backup):
                    continue
            except ChangesError as error:
                unread = unread or error
                continue
            if unread is None:
                return backup
            unread.hint += f" The last one before it that can be undone: {backup.id}."
            break
        raise unread or ChangesError("There is nothing to undo.")

    def newest_first(self) -> Iterator[Backup]:
        """Yield the backups, the last one first."""
        for directory in self._directories():
            with suppress(OSError, ValueError):
                yield Backup(directory, _read_head(directory))

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
                for move in backup.moves():
                    if not move.undoes:
                        before[move.number] = move.before
                    if move.after is not None and move.phase == "done":
                        origin = before.get(move.number) if move.undoes else None
                        found.setdefault(move.after.text, origin)
        return found

    def _directories(self) -> list[Path]:
        with suppress(OSError):
            found = [path for path in self._root.iterdir() if _ID.fullmatch(path.name)]
            return sorted(found, reverse=True)
        return []

    def _sweep(self, is_automatic: bool) -> None:
        """Remove the oldest, so that there is room for one more. Those that nobody has asked for
        are counted apart: many would end the undo of what a person has applied."""
        count = size = 0
        with locked_directory(self._root):
            for directory in self._directories():
                if _is_automatic(directory) != is_automatic:
                    continue
                count, size = count + 1, size + _measure(directory)
                if is_busy(directory):
                    continue
                if count >= MAX_KEPT or (count > 1 and size > MAX_KEPT_BYTES):
                    mark_for_removal(directory)
            sweep(self._root)


def _is_automatic(directory: Path) -> bool:
    with suppress(OSError, ValueError):
        return _read_head(directory).is_automatic
    return False


def _read_head(directory: Path) -> Head:
    """:raises OSError, ValueError: when there is none"""
    return msgspec.convert(json.loads(read_file(directory / HEAD, MAX_LINE)), Head)


def _has_steps(backup: Backup) -> bool:
    try:
        return bool(backup.left())
    except OSError as error:
        raise ChangesError(
            f"The record of the apply {backup.id} cannot be read: {error.strerror or error}.",
            f"its old files are in {backup.directory}.",
        ) from error


def is_busy(directory: Path) -> bool:
    """Return whether an apply or undo is at work in the folder of a backup."""
    try:
        with lock(directory / BUSY, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _measure(directory: Path) -> int:
    with suppress(OSError):
        return sum(path.lstat().st_size for path in directory.iterdir())
    return 0
