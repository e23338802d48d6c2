"""Writes the log and the transcript of one kernel, while it has a sandbox. Both are bounded.

The sandbox writes neither. Text from it is stored as JSON or as escaped lines, so it cannot forge
an entry. Rotation is in ``log_files``; ``transcripts`` reads.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge.transcripts import NAME
from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message
from gvisor_kernel.host.log_files import (
    INSIDE,
    MAX_EVENTS,
    MAX_INSIDE,
    Allowance,
    Limiter,
    RotatedFile,
    clean_lines,
    log_line,
)
from gvisor_kernel.link import Channel, Log, LogSource
from gvisor_kernel.strict_json import parse_json

INSIDE_BURST = 512 * 1024
INSIDE_PER_SECOND = 64 * 1024
"""Bytes of log that a sandbox may cause at once and per second. An honest guest sends less. This
bounds the disk space and the time that a hostile one takes."""
MAX_EVENT = 8 * 1024
"""Characters of one event. A guest chooses the length of some, such as its facts."""
RECENT_LINES = 20
RECENT_LENGTH = 500
TRANSCRIPT_SIZE = 8 * 1024 * 1024
TRANSCRIPT_FILES = 4
"""transcript.jsonl and three older files; the oldest is removed."""
RECORDED_REQUEST = 512 * 1024
RECORDED_CONTENT = 16 * 1024
"""Bytes of content in a request and in other messages. Of longer content only the size is kept."""
RECORDED_KINDS = {
    "request": frozenset({"execute_request"}),
    "reply": frozenset({"execute_reply"}),
    "host": frozenset({"rewound"}),
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
"""The recorded message types by event, so that no output of a kernel looks like a request, or as
what has happened to it ("host").
``input_reply`` is left out, since it may be a password."""


class KernelLog:
    """Log for ``gvisor-kernel logs``. Each line has a time, a source and a text.

    Events of the bridge go to ``path``, text from inside the sandbox to a file beside it.
    """

    def __init__(self, path: Path, max_events: int = MAX_EVENTS) -> None:
        self._events = RotatedFile(path, max_events, files=2, keeps_first=True)
        self._file = RotatedFile(path.with_name(INSIDE), MAX_INSIDE, files=2, keeps_first=True)
        self._inside = Allowance(INSIDE_BURST, INSIDE_PER_SECOND)
        self._left_out = 0
        self._recent = ""

    def write(self, source: str, text: str) -> None:
        """Write an event. Not for events that a sandbox can cause without limit.

        Control characters are escaped and each line is marked, as the text may quote the sandbox.
        """
        for line in clean_lines(text[:MAX_EVENT]):
            self._events.write(log_line(source, line))

    def write_inside(self, source: str, text: str) -> None:
        """Write text that a sandbox sent or caused, within its allowance (INSIDE_BURST).

        The log says how much text was left out.
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
        """Keep the end of what came from inside; a line may come in several pieces."""
        self._recent = (self._recent + text)[-RECENT_LINES * RECENT_LENGTH :]

    @property
    def recent(self) -> list[str]:
        """The last lines from inside, escaped, for the detail of an error."""
        return [line[:RECENT_LENGTH] for line in clean_lines(self._recent)[-RECENT_LINES:]]

    def close(self) -> None:
        """Note what was left out, and close the files. The log cannot be used afterwards."""
        if self._left_out:
            note = f"{self._left_out} characters from inside were left out."
            self._file.write(log_line("bridge", note))
            self._left_out = 0
        self._events.close()
        self._file.close()


class Transcript:
    """Requests, outputs and replies of a kernel as JSON lines, in the order of the bridge.

    Entries are numbered (``n``), so that a missing one leaves a gap: the disk was full, or the
    entry was in a removed file. An entry is written before its message is passed on.
    """

    def __init__(self, directory: Path, size: int = TRANSCRIPT_SIZE) -> None:
        self.directory = directory
        self._file = RotatedFile(directory / NAME, size, files=TRANSCRIPT_FILES)
        self.count = 0

    def record(self, event: str, message: WireMessage) -> None:
        """Record a checked message. ``event`` is "request", "output", "reply" or "host"."""
        kind = message.kind
        if kind not in RECORDED_KINDS[event]:
            return
        self.count += 1
        entry: dict[str, Any] = {
            "n": self.count,
            "time": datetime.now(UTC).isoformat(),
            "event": event,
            "type": kind,
            "id": message.id if event in ("request", "host") else message.parent_id,
        }
        size = len(message.content) + sum(map(len, message.buffers))
        line: str | None = None
        if size <= (RECORDED_REQUEST if event == "request" else RECORDED_CONTENT):
            with suppress(ValueError):
                content = parse_json(message.content, RECORDED_REQUEST)
                line = json.dumps({**entry, "content": content}, allow_nan=False)
        self._file.write((line or json.dumps({**entry, "size": size})).encode() + b"\n")

    def close(self) -> None:
        """Close the file. Nothing can be recorded afterwards."""
        self._file.close()


class Records:
    """The log and the transcript of the current sandbox. Can be reopened; silent when closed."""

    def __init__(self) -> None:
        self._log: KernelLog | None = None
        self._transcript: Transcript | None = None
        self._written: tuple[Path, int] | None = None
        """The folder of the transcript that was closed last, and the number of its last entry."""
        self._drops = Limiter()

    def open(self, log_path: Path, transcripts: Path | None) -> None:
        """Open the files of a sandbox. ``transcripts``: the transcript's folder; None: none."""
        self._log, self._transcript = KernelLog(log_path), None
        if transcripts is not None:
            self._transcript = Transcript(transcripts)
            if self._written is not None and self._written[0] == transcripts:
                self._transcript.count = self._written[1]  # the kernel has slept

    def close(self) -> None:
        """Close the files. Idempotent; records nothing until the next ``open``."""
        if self._transcript is not None:
            self._written = self._transcript.directory, self._transcript.count
        for file in (self._log, self._transcript):
            if file is not None:
                file.close()
        self._log = self._transcript = None

    def note(self, text: str) -> None:
        """Log an event. Not for events that a kernel or a client can cause without limit."""
        if self._log is not None:
            self._log.write("bridge", text)

    def note_egress(self, text: str) -> None:
        """Log what requests to the network caused, within the allowance of the sandbox."""
        if self._log is not None:
            self._log.write_inside("egress", text)

    def note_drop(self, text: str) -> None:
        """Count a dropped message. Only the first ones and some of the later ones are logged."""
        line = self._drops.admit(text)
        if line is not None and self._log is not None:
            self._log.write_inside("bridge", line)

    def report_drops(self) -> None:
        """Log how many messages were dropped, at the end of a kernel."""
        if self._drops.count:
            self.note(f"{self._drops.count} messages were dropped")
        self._drops = Limiter()

    def write_inside(self, event: Log) -> None:
        """Log what a process in the sandbox wrote."""
        if self._log is not None:
            self._log.write_inside(event.source.name.lower(), event.text)
            is_line = event.source is LogSource.GUEST and not event.text.endswith("\n")
            self._log.remember(event.text + "\n" * is_line)

    @property
    def recent(self) -> list[str]:
        """The last lines from inside, escaped."""
        return self._log.recent if self._log is not None else []

    def record_request(self, message: WireMessage) -> None:
        """Record a client's request in the transcript."""
        if self._transcript is not None:
            with suppress(WireError):
                self._transcript.record("request", message)

    def record_event(self, kind: str, content: dict[str, Any]) -> None:
        """Record in the transcript what has happened to the kernel."""
        if self._transcript is not None:
            self._transcript.record("host", new_message(kind, content, b"{}", b""))

    def record_answer(self, channel: Channel, message: WireMessage) -> None:
        """Record a kernel's message in the transcript.

        :raises WireError: when its header or parent header cannot be parsed
        """
        if self._transcript is not None and channel is not Channel.CONTROL:
            self._transcript.record("reply" if channel is Channel.SHELL else "output", message)
