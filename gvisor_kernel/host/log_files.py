"""Line files of bounded size: the log of a sandbox, the transcript of a kernel.

The log of a sandbox is three files, so that lines which a sandbox causes cannot displace the lines
of the host: EVENTS (what the bridge did and observed), INSIDE (what the sandbox sent or caused),
STDERR (what its processes wrote to stderr). Of each file the beginning and the end are kept, and
lines between them are dropped. ``gvisor-kernel logs`` merges them. They quote text from inside the
sandbox; a symbolic link in the place of one is not followed.
"""

from __future__ import annotations

import heapq
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

# by path: below the state directory, whose parents only this user can change

EVENTS, INSIDE, STDERR = "kernel.log", "inside.log", "stderr.log"
NAMES = (EVENTS, INSIDE, STDERR)
FIRST = ".first"
"""The suffix of the part that has the beginning of a file."""
MAX_EVENTS = 128 * 1024
MAX_INSIDE = 512 * 1024
MAX_STDERR = 256 * 1024
"""Bytes of each part of a file: the beginning, the previous part, and the current part."""
TIME_LENGTH = len("2026-01-01T00:00:00.000000Z")
MAX_LINE = 64 * 1024
"""Characters of a line that are read at once."""


class RotatedFile:
    """Writes lines to a file, which is rotated at ``size`` bytes. Each line is written at once.

    ``files``: the maximum number of parts, including the current one. ``keeps_first``: the first
    part is kept in addition and never dropped. A line that cannot be written, such as on a full
    disk, is dropped without an error. A file that was removed by somebody else is not made again.
    """

    def __init__(self, path: Path, size: int, files: int, *, keeps_first: bool = False) -> None:
        self._path = path
        self._size = size
        self._files = files
        self._keeps_first = keeps_first
        self._descriptor: int | None = None
        self._length = 0
        self._gone = False

    def open(self) -> None:
        """Create the file now; otherwise the first line does."""
        with suppress(OSError):
            self._open()

    def write(self, line: bytes) -> bool:
        """Write one or more whole lines; return whether they were written. Never raises OSError."""
        if self._gone or not line:
            return False
        with suppress(OSError):
            descriptor = self._descriptor if self._descriptor is not None else self._open()
            if self._length + len(line) > self._size and self._length:
                self._rotate()
                descriptor = self._open()
            written = os.write(descriptor, line)
            if written < len(line):
                os.ftruncate(descriptor, self._length)  # remove a partial line
                return False
            self._length += written
            return True
        return False

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o644)
        self._length = os.fstat(self._descriptor).st_size
        return self._descriptor

    def _rotate(self) -> None:
        self.close()
        first = self._path.with_name(self._path.name + FIRST)
        try:
            if self._keeps_first and not os.path.lexists(first):
                self._path.rename(first)
                return
            for number in range(self._files - 1, 1, -1):
                with suppress(FileNotFoundError):
                    self._part(number - 1).replace(self._part(number))
            self._path.replace(self._part(1))
        except FileNotFoundError:
            self._gone = True
            raise

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Close the file, if it is open. Never raises."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def log_parts(path: Path) -> Iterator[Path]:
    """Yield the paths of the parts of a log file that keeps its beginning and has two files, oldest
    first. They may not exist."""
    yield path.with_name(path.name + FIRST)
    yield path.with_name(f"{path.name}.1")
    yield path


class Allowance:
    """A token bucket: ``burst`` units at first, then ``per_second`` more.

    When it is used up it stays closed until the units of about one second are available.
    """

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = burst
        self._at = time.monotonic()
        self._open = True

    def room(self) -> int:
        """Return how many units may be spent now."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        self._open = self._left > (0 if self._open else self._per_second)
        return int(self._left) if self._open else 0

    def spend(self, size: int) -> None:
        """Take ``size`` units out. More than ``room`` are owed to the next call."""
        self._left -= size


class Limiter:
    """Limits log lines that a kernel or a client can cause: a burst, then one in ``seconds``.

    The next line that passes tells how many were suppressed before it.
    """

    def __init__(self, burst: int = 20, seconds: float = 10.0) -> None:
        self._allowance = Allowance(burst, 1 / seconds)
        self.count = 0
        self._suppressed = 0

    def admit(self, text: str) -> str | None:
        """Return the line to write; None if it is suppressed."""
        self.count += 1
        if self._allowance.room() < 1:
            self._suppressed += 1
            return None
        self._allowance.spend(1)
        suppressed, self._suppressed = self._suppressed, 0
        return f"{text} (and {suppressed} more before it)" if suppressed else text


def clean_lines(text: str) -> list[str]:
    """Split ``text``, which may come from a sandbox, into lines and escape control characters."""
    return [
        "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        for line in text.splitlines()
    ]


def log_line(source: str, clean: str) -> bytes:
    """Format a line of a log: the time, its source, the escaped text."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"{now} {source}: {clean}\n".encode("utf-8", "backslashreplace")


def open_log(path: Path, tail: int | None = None) -> IO[str] | None:
    """Open a log file; return None if there is none (yet) or it is no regular file.

    ``tail``: begin at a line in that many bytes at its end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    file = open(descriptor, errors="backslashreplace", newline="\n")  # noqa: SIM115 - the caller's
    if tail is not None and (size := os.fstat(descriptor).st_size) > tail:
        file.seek(size - tail)
        file.readline(tail)
    return file


class Follower:
    """Reads one log file while it grows, across rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._half = ""

    def read(self) -> list[str]:
        """Return the lines that were added since the last call."""
        text = ""
        while True:
            if self._file is None:
                self._file = open_log(self._path)
            if self._file is None:
                break
            text += self._file.read()
            if not is_rotated(self._path, self._file):
                break
            text += self._file.read()  # lines written before the rotation
            self.close()
        *lines, self._half = (self._half + text).split("\n")
        return [f"{line}\n" for line in lines]

    def close(self) -> None:
        """Close the file, if it is open. ``read`` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_rotated(path: Path, file: IO[str]) -> bool:
    """Return whether ``path`` is another file by now than the open ``file``."""
    try:
        return not os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except OSError:
        return False


def get_time(line: str) -> str:
    """Return the timestamp of a line, which is the key for merging lines of several files."""
    return line[:TIME_LENGTH]


def read_log(directory: Path, tail: int | None = None) -> Iterator[str]:
    """Yield the lines of a sandbox's log files by time; of each file all, or a ``tail`` of bytes.

    Lines end at a line feed: other separators are a kernel's, and would begin one of its making.
    """
    return heapq.merge(*(read_lines(directory / name, tail) for name in NAMES), key=get_time)


def read_lines(path: Path, tail: int | None = None) -> Iterator[str]:
    """Yield all lines of one log file and its rotated parts, oldest first."""
    for part in log_parts(path):
        file = open_log(part, tail)
        if file is not None:
            with file:
                while line := file.readline(MAX_LINE):
                    yield line
