"""Files that grow by lines, and are bounded: a sandbox's log, a kernel's transcript.

A sandbox's log is three files, so that nothing that comes from inside takes the room of what the
host has to say of it: EVENTS (what the bridge did and saw), INSIDE (what the sandbox sent, or
caused), STDERR (what its processes wrote to stderr). Of each the beginning is kept for good, and
the end; what is dropped lies between. ``gvisor-kernel logs`` shows them as one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

EVENTS, INSIDE, STDERR = "kernel.log", "inside.log", "stderr.log"
NAMES = (EVENTS, INSIDE, STDERR)
FIRST = ".first"
"""What the beginning of a file is called that has been moved aside."""
MAX_EVENTS = 128 * 1024
MAX_INSIDE = 512 * 1024
MAX_STDERR = 256 * 1024
"""Bytes of each part: the beginning, the one before, and the one that is written."""


class RotatedFile:
    """Lines into one file, moved aside at ``size`` bytes. Each is in the file at once, and whole.

    ``files``: how many there are at most, the newest first. ``keeps_first``: one more, the
    beginning, is never dropped. A line that cannot be written, on a full disk for one, is left
    out; nothing else happens. Where somebody has removed the file, nothing is made anew.
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
        """Make the file at once; else the first line does."""
        with suppress(OSError):
            self._open()

    def write(self, line: bytes) -> None:
        """One line, or several."""
        if self._gone or not line:
            return
        with suppress(OSError):
            descriptor = self._descriptor if self._descriptor is not None else self._open()
            if self._length + len(line) > self._size and self._length:
                self._rotate()
                descriptor = self._open()
            written = os.write(descriptor, line)
            if written < len(line):
                os.ftruncate(descriptor, self._length)  # half a line would spoil the next
                return
            self._length += written

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
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def log_parts(path: Path) -> Iterator[Path]:
    """Where the parts of a log file are, if they are: oldest first."""
    yield path.with_name(path.name + FIRST)
    yield path.with_name(f"{path.name}.1")
    yield path


class Allowance:
    """How much may pass now: ``burst``, and what has come with time since.

    Once used up it opens again with the next second's.
    """

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = burst
        self._at = time.monotonic()
        self._open = True

    def room(self) -> int:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        self._open = self._left > (0 if self._open else self._per_second)
        return int(self._left) if self._open else 0

    def spend(self, size: int) -> None:
        self._left -= size


class Limiter:
    """Lets the first lines of a kind pass, then one in a while; says of how many it told nothing.

    For what a kernel or a client can cause as often as it likes.
    """

    def __init__(self, burst: int = 20, seconds: float = 10.0) -> None:
        self._allowance = Allowance(burst, 1 / seconds)
        self.count = 0
        self._untold = 0

    def take(self, text: str) -> str | None:
        """The line to write, or None for none."""
        self.count += 1
        if self._allowance.room() < 1:
            self._untold += 1
            return None
        self._allowance.spend(1)
        untold, self._untold = self._untold, 0
        return f"{text} (and {untold} more before it)" if untold else text


def clean_lines(text: str) -> list[str]:
    """The lines of ``text``, of any origin, with every control character escaped."""
    return [
        "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        for line in text.splitlines()
    ]


def log_line(source: str, clean: str) -> bytes:
    """A line of a log: its time, who wrote it, and what."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"{now} {source}: {clean}\n".encode("utf-8", "backslashreplace")
