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
from typing import Any

from gvisor_kernel.bridge.wire import WireMessage
from gvisor_kernel.strict_json import parse_json

LOG_SIZE = 1024 * 1024
INSIDE_BURST = 512 * 1024
INSIDE_PER_SECOND = 64 * 1024
"""Bytes of the log that a sandbox may cause at once, and in the long run. More than an honest guest
sends: one that is not costs neither the disk nor the bridge's time, and pushes out nothing new."""
RECENT_LINES = 20
RECENT_LENGTH = 500
TRANSCRIPT_SIZE = 8 * 1024 * 1024
TRANSCRIPT_FILES = 4
"""transcript.jsonl and the three before it; the oldest goes."""
RECORDED_REQUEST = 512 * 1024
RECORDED_CONTENT = 16 * 1024
"""Content of more bytes, of a request and of anything else, is recorded by its size alone."""
RECORDED_KINDS = {
    "request": frozenset({"execute_request"}),
    "reply": frozenset({"execute_reply"}),
    "output": frozenset(
        {
            "stream",
            "display_data",
            "update_display_data",
            "execute_result",
            "error",
            "input_request",
        }
    ),
}
"""What a person would call the conversation. By who says it, so that no output of a kernel looks
like a request. ``input_reply`` is left out: it may be a password."""


class RotatedFile:
    """Lines into one file, moved aside at ``size`` bytes. Each is in the file at once, and whole.

    A line that cannot be written, on a full disk for one, is left out; nothing else happens.
    """

    def __init__(self, path: Path, size: int, files: int) -> None:
        self._path = path
        self._size = size
        self._files = files
        self._descriptor: int | None = None
        self._length = 0

    def write(self, line: bytes) -> None:
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
        for number in range(self._files - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = (
                self._path
                if number == 1
                else self._path.with_name(f"{self._path.name}.{number - 1}")
            )
            with suppress(FileNotFoundError):
                newer.replace(older)

    def close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def clean_lines(text: str) -> list[str]:
    """The lines of ``text``, of any origin, with every control character escaped."""
    return [
        "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        for line in text.splitlines()
    ]


class _Allowance:
    """How many bytes may be written now: INSIDE_BURST, and what has come with time since.

    Once used up it opens again with the next second's.
    """

    def __init__(self) -> None:
        self._left = float(INSIDE_BURST)
        self._at = time.monotonic()
        self._open = True

    def room(self) -> int:
        now = time.monotonic()
        self._left = min(INSIDE_BURST, self._left + (now - self._at) * INSIDE_PER_SECOND)
        self._at = now
        self._open = self._left > (0 if self._open else INSIDE_PER_SECOND)
        return int(self._left) if self._open else 0

    def spend(self, size: int) -> None:
        self._left -= size


class KernelLog:
    """Text for ``gvisor-kernel logs``: a line has a time, who wrote it, and what."""

    def __init__(self, path: Path) -> None:
        self._file = RotatedFile(path, LOG_SIZE, files=2)
        self._inside = _Allowance()
        self._left_out = 0
        self.recent: deque[str] = deque(maxlen=RECENT_LINES)
        """The last lines from inside, clean: what an error shows a person."""

    def write(self, source: str, text: str) -> None:
        """Record ``text``, of any origin: control characters are escaped, lines are marked."""
        for line in clean_lines(text):
            self._file.write(_log_line(source, line))

    def write_inside(self, source: str, text: str) -> None:
        """Likewise of what a sandbox sent or caused, within its allowance (INSIDE_BURST).

        Of what is left out, the log tells how much it was.
        """
        room = self._inside.room()
        if not room:
            self._left_out += len(text)
            return
        written: list[bytes] = []
        if self._left_out:
            note = f"{self._left_out} characters from inside were left out."
            written.append(_log_line("bridge", note))
            self._left_out = 0
        size = 0
        for line in text.splitlines():
            if size >= room:
                self._left_out += len(line) + 1
                continue
            for clean in clean_lines(line) or [""]:
                written.append(_log_line(source, clean))
                size += len(written[-1])
        self._file.write(b"".join(written))
        self._inside.spend(size)

    def remember(self, text: str) -> None:
        """Keep the last lines of ``text`` for an error's detail."""
        for line in text.splitlines()[-RECENT_LINES:]:
            self.recent.extend(clean[:RECENT_LENGTH] for clean in clean_lines(line[:RECENT_LENGTH]))

    def close(self) -> None:
        self._file.close()


def _log_line(source: str, clean: str) -> bytes:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"{now} {source}: {clean}\n".encode("utf-8", "backslashreplace")


class Transcript:
    """What a kernel was asked and answered: JSON lines, in the order in which it passed here.

    Entries are counted (``n``): one that is missing, because the disk was full or it was moved
    out by newer ones, leaves a gap. An entry is in the file before its message is passed on.
    """

    def __init__(self, directory: Path) -> None:
        self._file = RotatedFile(
            directory / "transcript.jsonl", TRANSCRIPT_SIZE, files=TRANSCRIPT_FILES
        )
        self._count = 0

    def record(self, event: str, message: WireMessage) -> None:
        """Record ``message`` (checked before) as a request, an output or a reply."""
        kind = message.kind
        if kind not in RECORDED_KINDS[event]:
            return
        self._count += 1
        entry: dict[str, Any] = {
            "n": self._count,
            "time": datetime.now(UTC).isoformat(),
            "event": event,
            "type": kind,
            "id": message.id if event == "request" else message.parent_id,
        }
        size = len(message.content) + sum(map(len, message.buffers))
        line: str | None = None
        if size <= (RECORDED_REQUEST if event == "request" else RECORDED_CONTENT):
            with suppress(ValueError):
                content = parse_json(message.content, RECORDED_REQUEST)
                line = json.dumps({**entry, "content": content}, allow_nan=False)
        self._file.write((line or json.dumps({**entry, "size": size})).encode() + b"\n")

    def close(self) -> None:
        self._file.close()
