"""The record of a sandbox's requests to the network: a line of JSON before, and one at the end.

The first line is written before anything of a request reaches a server, so that a request is in the
record even if the process for routes dies with it.

It is a file of bounded size in the sandbox's state directory, written by one process, and removed
with the sandbox. It has no query, header or body. Hosts and paths come from the sandbox: whoever
prints them escapes them. Refused requests cost a kernel nothing, so beyond a burst they are counted
instead of written: otherwise a kernel could push out the record of the requests that were answered.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import EgressError
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.host.log_files import Allowance, RotatedFile, log_parts
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.strict_json import JsonError, parse_json

FILE = "egress.jsonl"
PART = 16 * 1024 * 1024
"""Bytes of each of the two parts of the file: when both are full, the older one is dropped."""
MAX_PATH = 1000
MAX_TEXT = 300
"""Characters of a path, and of each other text, that are kept."""
MAX_LINE = 64 * 1024
REFUSED_BURST, REFUSED_PER_SECOND = 1000.0, 1.0
"""Refused requests that are written at once, and then."""
MAX_PENDING = 1000
"""Entries that wait because they could not be written."""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One request or tunnel that has ended, or that has begun (``is_open``).

    ``time``: when it ended or began, ISO 8601 in UTC. ``host``: with its port if that was given.
    ``path``: without query; empty for a tunnel. ``status``: what the sandbox was answered. ``up``,
    ``down``: bytes of bodies, or of a tunnel. ``reason``: why it was refused or failed; empty if it
    did not.
    ``more``: refused requests before it that were counted only. ``id``: the same in both lines of a
    request; empty if nothing of it was sent.
    """

    time: str = field(default_factory=_now)
    route: str
    method: str
    host: str
    path: str
    status: int
    up: int = 0
    down: int = 0
    seconds: float = 0.0
    reason: str = ""
    more: int = 0
    id: str = ""
    is_open: bool = False

    def __post_init__(self) -> None:
        """Cut the texts, which are the sandbox's, and remove a query."""
        object.__setattr__(self, "path", self.path.partition("?")[0][:MAX_PATH])
        for name in ("route", "method", "host", "reason"):
            object.__setattr__(self, name, getattr(self, name)[:MAX_TEXT])


def describe_entry(entry: Entry) -> str:
    """Describe an entry in one line, for the kernel's log. The caller escapes it."""
    words = f"{entry.method} {entry.host}{entry.path} by the route {entry.route or '(none)'}: "
    if entry.is_open:
        return f"{words}it was sent, and had not ended when this was read, or its process died"
    words += f"{entry.status}, {describe_size(entry.up)} up, {describe_size(entry.down)} down,"
    words += f" {entry.seconds:.3f} s"
    if entry.reason:
        words += f"; {entry.reason}"
    if entry.more:
        words += f" (and {entry.more} refused requests before it)"
    return words


def describe_refusal(entry: Entry) -> str:
    """Return which tunnel was refused, and why; "" for another entry. The caller escapes it."""
    is_refused = entry.method == "CONNECT" and entry.status == 403
    return f"{entry.host}: {entry.reason}" if is_refused else ""


class Audit:
    """Writes the record of one sandbox. One thread of one process."""

    def __init__(self, path: Path, part: int = PART) -> None:
        """``path``: the file FILE in the sandbox's state directory. ``part``: bytes of a part."""
        self._path = path
        self._file = RotatedFile(path, part, 2)
        self._refused = Allowance(REFUSED_BURST, REFUSED_PER_SECOND)
        self._last: Entry | None = None
        self._more = 0
        self._pending: deque[Entry] = deque(maxlen=MAX_PENDING)

    def write_open(self, entry: Entry) -> None:
        """Record that a request begins. Nothing of it may be sent before.

        :raises EgressError: when it cannot be recorded
        """
        self._pending.append(entry)
        if not self._flush():
            with suppress(ValueError):
                self._pending.remove(entry)
            self.check()

    def write(self, entry: Entry) -> bool:
        """Record a request that has ended; return whether it was written, and so should be logged.

        A refused one (with a ``reason``, and of which nothing was sent) may only be counted.
        One that cannot be written, such as on a full disk, is written later, and ``check`` raises
        until then.
        """
        if entry.reason and not (entry.up or entry.down or entry.id):
            if self._refused.room() < 1:
                self._last = entry
                self._more += 1
                return False
            self._refused.spend(1)
        entry = dataclasses.replace(entry, more=self._more)
        self._more, self._last = 0, None
        self._pending.append(entry)
        return self._flush()

    def check(self) -> None:
        """Check that requests can be recorded. Called before each request.

        Without it a kernel that fills the disk, through its outputs, could send what it likes
        unseen.

        :raises EgressError: when an earlier request could not be recorded, and still cannot
        """
        if not self._flush():
            raise EgressError(
                f"Requests to the network cannot be recorded in {self._path}.",
                "check whether the disk is full; until then no request is passed on.",
            )

    def _flush(self) -> bool:
        while self._pending:
            line = json.dumps(dataclasses.asdict(self._pending[0])).encode("ascii")
            if not self._file.write(line + b"\n"):
                return False
            self._pending.popleft()
        return True

    def close(self) -> None:
        """Write what was only counted, and close the file. Never raises."""
        if self._last is not None:
            self._pending.append(dataclasses.replace(self._last, more=self._more - 1))
            self._last, self._more = None, 0
        self._flush()
        self._file.close()


# -- reading ---------------------------------------------------------------------------------------


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a record and its older part, the oldest first; at the end those that
    have only begun. Broken lines are skipped.

    :raises OSError: when a part exists and cannot be read
    """
    begun: dict[str, Entry] = {}
    for entry in _read_lines(path):
        if entry.is_open:
            begun[entry.id] = entry
        else:
            begun.pop(entry.id, None)
            yield entry
    yield from begun.values()


def _read_lines(path: Path) -> Iterator[Entry]:
    for part in log_parts(path):
        try:
            # by path: below the state directory, whose parents only this user can change; only
            # read, and no link is followed
            fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            while line := file.readline(MAX_LINE):
                entry = parse_entry(line)
                if entry is not None:
                    yield entry


def parse_entry(line: str | bytes) -> Entry | None:
    """Return the entry in a line of a record; None if it is broken."""
    with suppress(JsonError, TypeError, ValueError):
        return read_entry(parse_json(line, MAX_LINE))
    return None


_FIELDS = {field.name: field for field in dataclasses.fields(Entry)}
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": int | float, "bool": bool}


def read_entry(content: Any) -> Entry:
    """Return the entry in a JSON value, which ``asdict`` has made.

    :raises TypeError: when it is none
    """
    if not isinstance(content, dict):
        raise TypeError("an entry is an object")
    for name, value in content.items():
        kind = _KINDS[str(_FIELDS[name].type)] if name in _FIELDS else ()
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} is not of the type of an entry")
    return Entry(**content)


# -- counts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """The requests of one route that have ended, how many of them failed or were refused, bytes of
    bodies in each direction, and the seconds that all took together."""

    requests: int = 0
    failed: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0


class Counters:
    """Counts by the name of a route since this process began; "" for requests that belong to none.

    For metrics: a request is missing if its worker died before it told. Any thread.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self._lock = ThreadLock()

    def add(self, entry: Entry) -> None:
        """Add a request that has ended, and those before it that were only counted."""
        with self._lock:
            before = self._counts.get(entry.route, Count())
            self._counts[entry.route] = Count(
                before.requests + entry.more + 1,
                before.failed + entry.more + bool(entry.reason),
                before.up + entry.up,
                before.down + entry.down,
                before.seconds + entry.seconds,
            )

    def read(self) -> Mapping[str, Count]:
        """Return the counts of all routes until now."""
        with self._lock:
            return dict(self._counts)
