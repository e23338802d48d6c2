"""Two files of a kernel that the bridge writes: its log and its transcript. Both bounded.

Neither is ever written from inside; what comes from a sandbox goes in as JSON or as escaped
lines, so it cannot forge an entry.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from gvisor_kernel.bridge.wire import WireMessage

LOG_SIZE = 1024 * 1024
RECENT_LINES = 20
TRANSCRIPT_SIZE = 8 * 1024 * 1024
TRANSCRIPT_FILES = 4
"""transcript.jsonl and the three before it; the oldest goes."""
RECORDED_CONTENT = 16 * 1024
"""Content of more bytes is recorded by its size alone."""
RECORDED_KINDS = frozenset(
    {
        "execute_request",
        "execute_reply",
        "stream",
        "display_data",
        "update_display_data",
        "execute_result",
        "error",
        "input_request",
    }
)
"""What a person would call the conversation. ``input_reply`` is left out: it may be a password."""


class RotatedFile:
    """Lines into one file, moved aside at ``size`` bytes. A full disk stops it alone."""

    def __init__(self, path: Path, size: int, files: int) -> None:
        self._path = path
        self._size = size
        self._files = files
        self._file: IO[bytes] | None = None
        self._length = 0

    def write(self, line: bytes) -> None:
        with suppress(OSError):
            if self._file is None:
                self._open()
            assert self._file is not None
            if self._length + len(line) > self._size and self._length:
                self._rotate()
                self._open()
            self._file.write(line)
            self._length += len(line)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o644)
        self._file = open(descriptor, "ab", buffering=64 * 1024)  # noqa: SIM115
        self._length = os.fstat(descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = (
                self._path
                if number == 1
                else self._path.with_name(f"{self._path.name}.{number - 1}")
            )
            with suppress(FileNotFoundError):
                newer.replace(older)

    def flush(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def clean_lines(text: str) -> list[str]:
    """The lines of ``text``, of any origin, with every control character escaped."""
    return [
        "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        for line in text.splitlines()
    ]


class KernelLog:
    """Text for ``gvisor-kernel logs``: a line has a time, who wrote it, and what."""

    def __init__(self, path: Path) -> None:
        self._file = RotatedFile(path, LOG_SIZE, files=2)
        self.recent: deque[str] = deque(maxlen=RECENT_LINES)
        """The last lines from inside, clean: what an error shows a person."""

    def write(self, source: str, text: str) -> None:
        """Record ``text``, of any origin: control characters are escaped, lines are marked."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for clean in clean_lines(text):
            self._file.write(f"{now} {source}: {clean}\n".encode("utf-8", "backslashreplace"))
        self._file.flush()

    def remember(self, text: str) -> None:
        """Keep the last lines of ``text`` for an error's detail."""
        self.recent.extend(line[:500] for line in clean_lines(text))

    def close(self) -> None:
        self._file.close()


class Transcript:
    """What a kernel was asked and answered: JSON lines, in the order in which it passed here."""

    def __init__(self, directory: Path) -> None:
        self._file = RotatedFile(
            directory / "transcript.jsonl", TRANSCRIPT_SIZE, files=TRANSCRIPT_FILES
        )
        self._flushed = time.monotonic()

    def record(self, event: str, message: WireMessage) -> None:
        """Record ``message`` (checked before) as a request, an output or a reply."""
        kind = message.kind
        if kind not in RECORDED_KINDS:
            return
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(),
            "event": event,
            "type": kind,
            "id": message.id if event == "request" else message.parent_id,
        }
        size = len(message.content) + sum(map(len, message.buffers))
        if size <= RECORDED_CONTENT:
            with suppress(ValueError, RecursionError):
                entry["content"] = json.loads(message.content)
        if "content" not in entry:
            entry["size"] = size
        with suppress(ValueError, RecursionError):
            self._file.write(json.dumps(entry).encode() + b"\n")
        now = time.monotonic()
        if event == "reply" or now - self._flushed > 1.0:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()
