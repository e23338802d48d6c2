"""Reads what comes from a node beside the link: the helper's facts, and words of srun or ssh.

Read in a thread of its own, bounded and checked. The helper belongs to this user; what a sandbox
says is only ever a text in one of its facts.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

from gvisor_kernel.runtimes.nodes.orders import (
    MARK,
    MAX_FACT,
    Ended,
    Fact,
    Failed,
    Here,
    Leaving,
    Memory,
    Piece,
    Ready,
    Removed,
    read_fact,
)

F = TypeVar("F", bound=Fact)

MAX_LINE = 4096
"""Bytes of a line that is no fact; the rest of it is dropped."""
MAX_WORDS = 100
"""Lines that are kept for an explanation."""
KINDS = (Here, Ready, Failed, Leaving, Memory, Ended, Removed)
"""Facts that a helper tells. The last one of each kind is kept; others are words."""
LATE_SECONDS = 2.0
"""Seconds that facts may come after the client's end, while another process holds its stderr."""


class Reports:
    """Reads ``fd`` to its end, and takes it over. Any thread may ask.

    ``client``: a pidfd of the client, taken over, too. The master of an SSH connection holds the
    stderr of a client that was killed until the helper has ended; so the end of the client is the
    end of what is read, LATE_SECONDS later. ``on_words(line)``: called in the thread for each line
    that is no fact. ``on_end()``: called once, when everything was read. ``on_kept()``: called
    when the sandbox has ended, and its helper waits for its outputs to be fetched.
    """

    def __init__(
        self,
        fd: int,
        on_words: Callable[[str], None],
        on_end: Callable[[], None],
        on_kept: Callable[[], None] = lambda: None,
        client: int | None = None,
    ) -> None:
        self._fd = fd
        self._client = client
        self._on_words = on_words
        self._on_end = on_end
        self._on_kept = on_kept
        self._changed = threading.Condition()  # no timeout: held for a few steps that do not wait
        self._facts: dict[type[Fact], Fact] = {}
        self._words: list[str] = []
        self.on_leaving: Callable[[], None] = lambda: None
        """Called in the thread when the job is about to be ended, by the first notice of it."""
        self.on_piece: Callable[[Piece], None] = lambda _: None
        """Called in the thread for each piece of an image."""
        self._over = False
        self._until: float | None = None
        self._thread = threading.Thread(target=self._read, name="gvisor-kernel-node", daemon=True)
        self._thread.start()

    def find(self, kind: type[F]) -> F | None:
        """Return the last fact of that kind; None if there was none."""
        found = self._facts.get(kind)
        return found if isinstance(found, kind) else None

    @property
    def words(self) -> list[str]:
        """The last lines that were no facts."""
        with self._changed:
            return list(self._words)

    def wait_for(self, kinds: Collection[type[Fact]], seconds: float) -> bool:
        """Wait until there is a fact of one of ``kinds``; return False when none comes any more."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not any(kind in self._facts for kind in kinds):
                rest = deadline - time.monotonic()
                if self._over or rest <= 0:
                    return False
                self._changed.wait(rest)
            return True

    @property
    def is_kept(self) -> bool:
        """Return whether the sandbox has ended, and its helper waits for its outputs to be fetched.
        After a signal it does not wait: then its client has more to say of the end."""
        gone, end = self.find(Removed), self.find(Ended)
        return gone is not None and gone.kept and (end is None or end.by != "signal")

    @property
    def is_over(self) -> bool:
        """Return whether everything was read. Any thread."""
        return self._over

    def join(self, seconds: float) -> None:
        """Wait until everything was read, for at most ``seconds``."""
        self._thread.join(seconds)

    def _read(self) -> None:
        line = b""
        with os.fdopen(self._fd, "rb", buffering=0) as stream:
            while True:
                data = b""
                with suppress(OSError):
                    # no timeout: a thread of its own, which waits for work until it is told to end
                    data = stream.read(65536) if self._wait_for_data() else b""
                *lines, line = (line + data).split(b"\n")
                for complete in lines:
                    self._take(complete)
                limit = MAX_FACT if line.startswith(MARK[: len(line)]) else MAX_LINE
                line = line[:limit]
                if not data:
                    break
        if self._client is not None:
            os.close(self._client)
        if line:
            self._take(line)
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._on_end()

    def _wait_for_data(self) -> bool:
        """Wait until something can be read, or the pipe is closed; return False when nothing is
        awaited any more."""
        while self._client is not None:
            if self._fd in readable((self._fd, self._client), None):
                return True
            os.close(self._client)
            self._client = None
            self._until = time.monotonic() + LATE_SECONDS
        rest = None if self._until is None else max(0.0, self._until - time.monotonic())
        return bool(readable((self._fd,), rest))

    def _take(self, line: bytes) -> None:
        fact = read_fact(line)
        if isinstance(fact, Piece):
            self.on_piece(fact)
            return
        if isinstance(fact, KINDS):
            with self._changed:
                is_first = type(fact) not in self._facts
                self._facts[type(fact)] = fact
                self._changed.notify_all()
            if isinstance(fact, Removed) and self.is_kept:
                self._on_kept()
            if isinstance(fact, Leaving) and is_first:
                self.on_leaving()
            return
        text = "".join(c for c in line[:MAX_LINE].decode(errors="replace") if c.isprintable())
        if text:
            with self._changed:
                self._words = [*self._words[1 - MAX_WORDS :], text]
                self._changed.notify_all()
            self._on_words(text)


def readable(fds: Collection[int], seconds: float | None) -> set[int]:
    """Return those that can be read or have ended, within ``seconds``. A server may have more
    descriptors than ``select`` knows."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return {fd for fd, _ in poller.poll(None if seconds is None else seconds * 1000)}
