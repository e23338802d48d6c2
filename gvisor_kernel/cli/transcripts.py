"""``transcript``: what the kernel of a sandbox was asked and answered, as the bridge recorded it.

The entries are the bridge's own, on the host; what they quote is a client's or the sandbox's. So
every quoted line stands behind a bar that no content can leave, escaped, and of long ones the
beginning is shown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gvisor_kernel.cli.logs import open_log
from gvisor_kernel.cli.output import describe_size, printable
from gvisor_kernel.cli.sandboxes import find_one
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.strict_json import JsonError, parse_json

FOLDER = "transcripts"
NAME = "transcript.jsonl"
OLDER_FILES = 9
"""More than the bridge keeps."""
MAX_LINE = 8 * 1024 * 1024
SHOWN_LINES = 200
SHOWN_CHARACTERS = 20_000
"""Of what one cell or one output says; --raw has all that was recorded."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
BAR = "  │ "


def open_parts(directory: Path) -> Iterator[IO[str]]:
    """The files of a transcript, oldest first; each is closed when the next is asked for."""
    path = directory / FOLDER / NAME
    names = [f"{NAME}.{number}" for number in range(OLDER_FILES, 0, -1)]
    # One that is moved aside meanwhile is met again under its next name, or not at all.
    for part in (*(path.with_name(name) for name in names), path):
        file = open_log(part)
        if file is not None:
            with file:
                yield file


def read_entries(file: IO[str]) -> Iterator[dict[str, Any]]:
    """The entries of one file; what is none, or half of one, is left out."""
    while line := file.readline(MAX_LINE):
        try:
            entry = parse_json(line, MAX_LINE)
        except JsonError:
            continue
        if isinstance(entry, dict):
            yield entry


def run_transcript(arguments: argparse.Namespace) -> int:
    sandbox = find_one(arguments.id)
    found = False
    pages = Pages()
    for file in open_parts(sandbox.directory):
        found = True
        if arguments.raw:
            while text := file.read(MAX_LINE):
                sys.stdout.write(printable(text))
            continue
        for entry in read_entries(file):
            for line in pages.show(entry):
                print(line)
    if not arguments.raw:
        for line in pages.end():
            print(line)
    if not found:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} has no transcript.",
            "nothing was run in it yet, or the setting transcripts is False.",
        )
    return 0


class Pages:
    """Entries made readable, one after the other, as lines without an end of line."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._last = 0
        self._heading = ""
        self._quote = Quote()

    def show(self, entry: dict[str, Any]) -> Iterator[str]:
        number = entry.get("n")
        if isinstance(number, int):
            if number > self._last + 1:
                yield from self.end()
                what = "missing here" if self._last else "older, and gone"
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
        """What is left of the text under the last heading."""
        yield from self._quote.end()
        self._quote = Quote()
        self._heading = ""


class Quote:
    """Text as lines behind a bar, escaped; after the bounds, how much was left out."""

    def __init__(self) -> None:
        self._line = ""
        self._lines = 0
        self._characters = 0
        self._left_out = 0

    def add(self, text: str) -> Iterator[str]:
        room = max(SHOWN_CHARACTERS - self._characters, 0)
        self._characters += min(len(text), room)
        self._left_out += max(len(text) - room, 0)
        *lines, self._line = (self._line + text[:room]).split("\n")
        for line in lines:
            yield from self._put(line)

    def end(self) -> Iterator[str]:
        if self._line:
            yield from self._put(self._line)
        if self._left_out:
            yield f"{BAR}… {self._left_out} characters more"

    def _put(self, line: str) -> Iterator[str]:
        if self._lines < SHOWN_LINES:
            self._lines += 1
            yield BAR + printable(COLOURS.sub("", line))
        else:
            self._left_out += len(line) + 1


def describe_entry(entry: dict[str, Any]) -> tuple[str, str]:
    """A heading and the text below it, neither of them safe to print yet."""
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
    if kind == "stream":
        return as_text(content.get("name")), as_text(content.get("text"))
    if kind == "error":
        traceback = content.get("traceback")
        lines = traceback if isinstance(traceback, list) else [traceback]
        return f"error: {as_text(content.get('ename'))}", "\n".join(map(as_text, lines))
    if kind == "input_request":
        return "asks for a password" if content.get("password") else "asks", as_text(
            content.get("prompt")
        )
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
    "execute_request": "asked",
    "execute_reply": "done",
    "stream": "output",
    "execute_result": "result",
    "display_data": "shows",
    "update_display_data": "shows instead",
    "error": "error",
    "input_request": "asks",
}


def as_text(value: object) -> str:
    """Text of what should have been text."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def shorten(heading: str) -> str:
    """A heading in one line, safe to print."""
    clean = printable(COLOURS.sub("", heading)).replace("\n", "\\n")
    return clean if len(clean) <= 300 else clean[:300] + "…"
