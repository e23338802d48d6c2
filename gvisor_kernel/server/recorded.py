"""The last lines of a sandbox's log and transcript, without control characters; also after its end.

``EndedKernels`` remembers facts, last lines and lost files of the last kernels whose sandbox has
ended. It is bounded: a sandbox has written the lines, and has named the files.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from gvisor_kernel.bridge.transcripts import FOLDER, NAME, EntryFormatter, read_entries
from gvisor_kernel.host import log_files
from gvisor_kernel.kernel.facts import Ended, KernelEvents, Left
from gvisor_kernel.server.documents import Described
from gvisor_kernel.server.sandboxes import find_host_facts
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
    return [clean(line) for line in deque(log_files.read_log(directory), MAX_LINES)]


def read_transcript(directory: Path) -> list[str]:
    """Return the last lines of the transcript of the sandbox in ``directory``. Blocks."""
    names = [NAME, *(f"{NAME}.{number}" for number in range(1, PARTS))]
    files = (log_files.open_log(directory / FOLDER / name) for name in reversed(names))
    return _format(files, MAX_LINES)


def _format(files: Iterable[IO[str] | None], most: int) -> list[str]:
    """Return the last lines of the parts of a transcript, the oldest part first."""
    formatter = EntryFormatter()
    lines: deque[str] = deque(maxlen=most)
    for file in files:
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


MAX_KERNELS = 50
MAX_KEPT_LINES = 200
"""Lines of a log, and of a transcript, that are remembered of a kernel."""
MAX_CHARACTERS = 64 * 1024
"""Characters of them together."""
READ = 256 * 1024
"""Bytes at the end of each file that are read for them."""


@dataclass(frozen=True)
class EndedKernel:
    """A kernel whose sandbox has ended. ``left``: files that ended with it; None if not known."""

    described: Described
    left: Left | None
    lines: Mapping[Kind, list[str]]


class EndedKernels:
    """The last MAX_KERNELS of one server, from ``start`` to ``end``. On the server's loop."""

    def __init__(self, kernelspecs: Any, tell: Callable[[Ended], None]) -> None:
        """``kernelspecs``: the server's manager of kernelspecs. ``tell``: called for each end."""
        self._kernelspecs = kernelspecs
        self._tell = tell
        self._kernels: OrderedDict[str, EndedKernel] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to remember."""
        self._loop = asyncio.get_running_loop()
        KernelEvents.instance().watch_ends(self._remember)

    def end(self) -> None:
        """Remember no more. Idempotent."""
        KernelEvents.instance().unwatch_ends(self._remember)

    def find(self, kernel_id: str) -> EndedKernel | None:
        """Return what is remembered of a kernel, which may have got another sandbox since."""
        return self._kernels.get(kernel_id)

    def _remember(self, ended: Ended) -> None:
        """Called in a worker thread; the sandbox's files are removed when it returns."""
        facts, language, display_name = ended.facts, "", ended.kernel_name
        with suppress(Exception):  # it may have been removed
            spec = self._kernelspecs.get_kernel_spec(ended.kernel_name)
            display_name, language = spec.display_name, spec.language
        lines: dict[Kind, list[str]] = {"log": [], "transcript": []}
        if facts.directory is not None:
            lines["log"] = read_last_log(facts.directory)
            if facts.transcripts:
                lines["transcript"] = read_last_transcript(facts.directory)
        host = find_host_facts(facts)
        described = Described(ended.kernel_id, display_name, language, facts, host)
        assert self._loop is not None
        with suppress(RuntimeError):  # the server's loop is closed
            self._loop.call_soon_threadsafe(
                self._take, ended, EndedKernel(described, ended.left, lines)
            )

    def _take(self, ended: Ended, kernel: EndedKernel) -> None:
        self._kernels[ended.kernel_id] = kernel
        self._kernels.move_to_end(ended.kernel_id)
        if len(self._kernels) > MAX_KERNELS:
            self._kernels.popitem(last=False)
        self._tell(ended)


def read_last_log(directory: Path) -> list[str]:
    """Return the last lines of the log of the sandbox in ``directory``. Blocks."""
    lines = deque(log_files.read_log(directory, READ), MAX_KEPT_LINES)
    return _cut([clean(line) for line in lines])


def read_last_transcript(directory: Path) -> list[str]:
    """Return the last lines of its transcript. Blocks."""
    with suppress(OSError):
        file = log_files.open_log(directory / FOLDER / NAME, READ)
        return _cut(_format([file], MAX_KEPT_LINES))
    return []


def _cut(lines: list[str]) -> list[str]:
    """Return the last lines that have MAX_CHARACTERS together."""
    size = 0
    for index in range(len(lines) - 1, -1, -1):
        size += len(lines[index])
        if size > MAX_CHARACTERS:
            return lines[index + 1 :]
    return lines
