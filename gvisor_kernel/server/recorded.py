"""The last lines of a sandbox's log and transcript, as text without control characters."""

from __future__ import annotations

import asyncio
import heapq
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from gvisor_kernel.bridge.transcripts import FOLDER, NAME, EntryFormatter, read_entries
from gvisor_kernel.host.log_files import NAMES, get_time, open_log, read_lines
from gvisor_kernel.shown_text import printable

MAX_LINES = 2000
"""Lines that are read, and can be asked for."""
DEFAULT_LINES = 200
MAX_LINE = 2000
"""Characters of a line that are shown."""
PARTS = 2
"""Files of a transcript that are read, of 8 MiB each: the current one and the one before it."""
KEEP_SECONDS = 0.5
MAX_KEPT = 32
"""Texts that are kept."""
_ESCAPES = re.compile(
    r"(?:\x1b|\\x1b)(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\\]*(?:\x07|\\x07|\x1b\\|\\x1b\\\\)?)"
)
"""Sequences that colour a terminal or name its window, also where the log has escaped them."""

Kind: TypeAlias = Literal["log", "transcript"]


def clean(line: str) -> str:
    """Return a line of a log for a page: no escape sequence, no control character."""
    return printable(_ESCAPES.sub("", line[: 2 * MAX_LINE]).rstrip("\n"))[:MAX_LINE]


def read_log(directory: Path) -> list[str]:
    """Return the last lines of the log of the sandbox in ``directory``. Blocks."""
    files = [read_lines(directory / name) for name in NAMES]
    return [clean(line) for line in deque(heapq.merge(*files, key=get_time), MAX_LINES)]


def read_transcript(directory: Path) -> list[str]:
    """Return the last lines of the transcript of the sandbox in ``directory``. Blocks."""
    path = directory / FOLDER / NAME
    formatter = EntryFormatter()
    lines: deque[str] = deque(maxlen=MAX_LINES)
    for number in range(PARTS - 1, -1, -1):
        file = open_log(path.with_name(f"{NAME}.{number}") if number else path)
        if file is not None:
            with file:
                for entry in read_entries(file):
                    lines.extend(formatter.format(entry))
    lines.extend(formatter.end())
    return [clean(line) for line in lines]


_READERS: dict[Kind, Callable[[Path], list[str]]] = {
    "log": read_log,
    "transcript": read_transcript,
}


@dataclass(frozen=True)
class _Kept:
    lines: list[str]
    at: float


class Recorded:
    """Reads them one at a time, and keeps each for a moment. On the server's loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._turn = asyncio.Semaphore(1)
        self._kept: dict[tuple[Kind, Path], _Kept] = {}

    async def read(self, kind: Kind, directory: Path) -> list[str]:
        """Return up to MAX_LINES lines."""
        loop, key = asyncio.get_running_loop(), (kind, directory)
        async with self._turn:
            kept = self._kept.get(key)
            if kept is not None and loop.time() - kept.at < KEEP_SECONDS:
                return kept.lines
            lines = await loop.run_in_executor(self._executor, _READERS[kind], directory)
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = _Kept(lines, loop.time())
            return lines
