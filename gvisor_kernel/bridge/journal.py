"""Two files of a kernel that the bridge writes: its log and its transcript. Both bounded.

Neither is ever written from inside; what comes from a sandbox goes in as JSON or as escaped
lines, so it cannot forge an entry. How files are kept small stands in ``log_files``.
"""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge.wire import WireMessage
from gvisor_kernel.host.log_files import (
    INSIDE,
    MAX_EVENTS,
    MAX_INSIDE,
    Allowance,
    RotatedFile,
    clean_lines,
    log_line,
)
from gvisor_kernel.strict_json import parse_json

INSIDE_BURST = 512 * 1024
INSIDE_PER_SECOND = 64 * 1024
"""Bytes of the log that a sandbox may cause at once, and in the long run. More than an honest guest
sends: one that is not costs neither the disk nor the bridge's time."""
MAX_EVENT = 8 * 1024
"""Characters of one event: a guest's facts, for one, are its own words."""
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


class KernelLog:
    """Text for ``gvisor-kernel logs``: a line has a time, who wrote it, and what.

    ``path``: of the events; what comes from inside goes into a file beside it.
    """

    def __init__(self, path: Path) -> None:
        self._events = RotatedFile(path, MAX_EVENTS, files=2, keeps_first=True)
        self._file = RotatedFile(path.with_name(INSIDE), MAX_INSIDE, files=2, keeps_first=True)
        self._inside = Allowance(INSIDE_BURST, INSIDE_PER_SECOND)
        self._left_out = 0
        self.recent: deque[str] = deque(maxlen=RECENT_LINES)
        """The last lines from inside, clean: what an error shows a person."""

    def write(self, source: str, text: str) -> None:
        """Record an event, of which the host decides how many there are.

        Its text may quote anybody: control characters are escaped, lines are marked.
        """
        for line in clean_lines(text[:MAX_EVENT]):
            self._events.write(log_line(source, line))

    def write_inside(self, source: str, text: str) -> None:
        """Likewise what a sandbox sent or caused, within its allowance (INSIDE_BURST).

        Of what is left out, the log tells how much it was.
        """
        room = self._inside.room()
        if not room:
            self._left_out += len(text)
            return
        written: list[bytes] = []
        if self._left_out:
            note = f"{self._left_out} characters from inside were left out."
            written.append(log_line("bridge", note))
            self._left_out = 0
        size = 0
        for line in text.splitlines():
            if size >= room:
                self._left_out += len(line) + 1
                continue
            for clean in clean_lines(line) or [""]:
                written.append(log_line(source, clean))
                size += len(written[-1])
        self._file.write(b"".join(written))
        self._inside.spend(size)

    def remember(self, text: str) -> None:
        """Keep the last lines of ``text`` for an error's detail."""
        for line in text.splitlines()[-RECENT_LINES:]:
            self.recent.extend(clean[:RECENT_LENGTH] for clean in clean_lines(line[:RECENT_LENGTH]))

    def close(self) -> None:
        if self._left_out:
            note = f"{self._left_out} characters from inside were left out."
            self._file.write(log_line("bridge", note))
            self._left_out = 0
        self._events.close()
        self._file.close()


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
