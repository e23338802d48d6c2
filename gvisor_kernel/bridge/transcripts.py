"""Reads the entries of a transcript, and formats them as lines for people.

``records.py`` writes them on the host, but they quote text from clients and from the sandbox. So
each quoted line is escaped and stands behind a bar, which no content can leave; of long texts only
the beginning is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from gvisor_kernel.shown_text import describe_size, printable, printable_name
from gvisor_kernel.strict_json import JsonError, parse_json

FOLDER = "transcripts"
NAME = "transcript.jsonl"
MAX_LINE = 8 * 1024 * 1024
"""Characters of an entry, in one line; more than the bridge writes."""
SHOWN_LINES = 200
SHOWN_CHARACTERS = 20_000
"""Limits for the text of one cell or one output; --raw prints all that was recorded."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
BAR = "  │ "


def read_entries(file: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield the entries of one file. Lines that are no JSON object are skipped."""
    while line := file.readline(MAX_LINE):
        try:
            entry = parse_json(line, MAX_LINE)
        except JsonError:
            continue
        if isinstance(entry, dict):
            yield entry


class EntryFormatter:
    """Formats entries, one after the other, as lines without a line end."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._last = 0
        self._heading = ""
        self._quote = Quote()

    def format(self, entry: dict[str, Any]) -> Iterator[str]:
        """Yield the lines of an entry. A gap in the numbers of entries is named before it."""
        number = entry.get("n")
        if isinstance(number, int):
            if number > self._last + 1:
                yield from self.end()
                what = "missing here" if self._last else "older than this were removed"
                yield f"-- entries {what}: {number - self._last - 1} --"
            self._last = max(number, self._last)
        heading, text = describe_entry(entry)
        if entry.get("event") == "request":
            self._numbers[as_text(entry.get("id"))] = len(self._numbers) + 1
        cell = self._numbers.get(as_text(entry.get("id")))
        heading = f"[{'?' if cell is None else cell}] {heading}"
        if heading != self._heading or entry.get("type") != "stream":
            yield from self.end()
            self._heading = heading
            time = as_text(entry.get("time"))[:19].replace("T", " ")
            yield shorten(f"{heading}   {time}")
        yield from self._quote.add(text)

    def end(self) -> Iterator[str]:
        """Yield the rest of the text under the last heading."""
        yield from self._quote.end()
        self._quote = Quote()
        self._heading = ""


class Quote:
    """Formats text as escaped lines behind a bar; beyond the limits it only counts."""

    def __init__(self) -> None:
        self._line = ""
        self._lines = 0
        self._characters = 0
        self._left_out = 0

    def add(self, text: str) -> Iterator[str]:
        """Yield the lines that ``text`` completes. Its last, incomplete line waits for more."""
        room = max(SHOWN_CHARACTERS - self._characters, 0)
        self._characters += min(len(text), room)
        self._left_out += max(len(text) - room, 0)
        *lines, self._line = (self._line + text[:room]).split("\n")
        for line in lines:
            yield from self._put(line)

    def end(self) -> Iterator[str]:
        """Yield the incomplete last line, and how much was left out."""
        if self._line:
            yield from self._put(self._line)
        if self._left_out:
            yield f"{BAR}… {self._left_out} more characters (--raw prints all)"

    def _put(self, line: str) -> Iterator[str]:
        if self._lines < SHOWN_LINES:
            self._lines += 1
            yield BAR + printable(COLOURS.sub("", line))
        else:
            self._left_out += len(line) + 1


def describe_entry(entry: dict[str, Any]) -> tuple[str, str]:
    """Return a heading and the text below it. Neither is escaped yet."""
    kind, event = as_text(entry.get("type")), entry.get("event")
    content = entry.get("content")
    if not isinstance(content, dict):
        size = entry.get("size")
        note = f", {describe_size(size)}, not recorded" if isinstance(size, int) else ""
        return f"{NAMES.get(kind, kind)}{note}", ""
    if event == "request":
        return NAMES.get(kind, kind), as_text(content.get("code"))
    if event == "reply":
        return f"done: {as_text(content.get('status'))}", ""
    if event == "host":
        return NAMES.get(kind, kind), as_text(content.get("checkpoint"))
    if kind == "stream":
        return as_text(content.get("name")), as_text(content.get("text"))
    if kind == "error":
        traceback = content.get("traceback")
        lines = traceback if isinstance(traceback, list) else [traceback]
        return f"error: {as_text(content.get('ename'))}", "\n".join(map(as_text, lines))
    if kind == "input_request":
        heading = "asks for a password" if content.get("password") else NAMES["input_request"]
        return heading, as_text(content.get("prompt"))
    data = content.get("data")
    if not isinstance(data, dict):
        return NAMES.get(kind, kind), as_text(data)
    others = [
        f"{name} ({describe_size(len(as_text(value)))})"
        for name, value in data.items()
        if name != "text/plain"
    ]
    words = [NAMES.get(kind, kind), *others[:10]]
    return ", ".join(words), as_text(data.get("text/plain", ""))


NAMES = {
    "execute_request": "cell",
    "execute_reply": "done",
    "stream": "output",
    "execute_result": "result",
    "display_data": "display",
    "update_display_data": "display update",
    "error": "error",
    "input_request": "asks for input",
    "rewound": "went back to a checkpoint",
}
"""Headings of entries, by message type."""


def as_text(value: object) -> str:
    """Convert a value that should be a string, but may be any JSON, to a string."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def shorten(heading: str) -> str:
    """Return a heading as one escaped line of limited length."""
    clean = printable_name(COLOURS.sub("", heading))
    return clean if len(clean) <= 300 else clean[:300] + "…"
