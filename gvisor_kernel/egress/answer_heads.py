"""Bounds the heads of a server's answer, before they are parsed. Pure.

h11 parses interim answers (1xx) as long as they come, and a head of any number of headers. Both
would keep the process busy, and fill its memory, for as long as a server likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MAX_BYTES = 64 * 1024
"""Of all heads of one answer. Servers send 8 to 32 KiB at most."""
MAX_LINES = 400
"""Of all heads of one answer."""
MAX_INTERIM = 20
HEAD_READ = 16 * 1024
"""Bytes to read at once while a head comes: what is parsed in one turn."""


class HeadWatch:
    """The heads of one answer: those of interim answers, and that of the final one."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._bytes = self._lines = self._interim = 0
        self.is_over = False
        """The final head is complete: what follows is the body."""

    def feed(self, data: bytes) -> None:
        """Look at bytes that have come.

        :raises ValueError: when a bound is exceeded
        """
        if self.is_over:
            return
        self._held += data
        while not self.is_over:
            end = _find_end(self._held)
            part = len(self._held) if end is None else end
            lines = self._held.count(b"\n", 0, part)
            if self._bytes + part > MAX_BYTES or self._lines + lines > MAX_LINES:
                raise ValueError("the head of the answer is too large")
            if end is None:
                return
            self._bytes, self._lines = self._bytes + part, self._lines + lines
            is_interim = self._held[:end][9:10] == b"1"  # as in "HTTP/1.1 103 Early Hints"
            del self._held[:end]
            if is_interim:
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise ValueError("there are too many interim answers")
            else:
                self.is_over = True
                self._held.clear()


def _find_end(data: bytearray) -> int | None:
    """Return where the first head ends, with its empty line; None if it is not complete."""
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := data.find(mark)) != -1]
    return min(ends, default=None)


_current: ContextVar[HeadWatch | None] = ContextVar("head_watch", default=None)


@contextmanager
def watched_heads() -> Iterator[None]:
    """Watch the heads that this task reads meanwhile, on whatever connection."""
    token = _current.set(HeadWatch())
    try:
        yield
    finally:
        _current.reset(token)


def find_watch() -> HeadWatch | None:
    """Return the watch of the answer whose head this task reads; None when it reads a body."""
    watch = _current.get()
    return watch if watch is not None and not watch.is_over else None
