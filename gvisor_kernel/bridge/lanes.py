"""Work on messages of one channel and one direction: in order, and what is long not on the loop.

All kernels share the bridge's loop. To check and to sign a message of 100 MB takes half a second;
hashlib lets other threads run meanwhile, so that is done in a worker, and what comes after it on
the same channel waits. Nothing here knows what a message is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

LONG = 256 * 1024
"""Bytes. Work on more goes to a worker; that on less takes under a millisecond, which is about
what it costs to get there and back."""


class Lane:
    """In order: ``work()``, where ``size`` is over LONG in a worker of ``executor``, then
    ``then(result)`` on the loop. ``work`` must not raise.

    ``on_empty`` is called when a lane in which something had to wait has nothing left.
    """

    def __init__(self, executor: Executor, on_empty: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = executor
        self._on_empty = on_empty
        self._waiting: deque[tuple[int, Callable[[], Any], Callable[[Any], None]]] = deque()
        self._busy = False
        self._closed = False

    @property
    def empty(self) -> bool:
        """Whether nothing waits or is under way."""
        return not (self._busy or self._waiting)

    def put(self, size: int, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """What is short, and has nothing before it, is done before this returns."""
        if self._closed:
            return
        if size <= LONG and self.empty:
            then(work())
            return
        self._waiting.append((size, work, then))
        self._go_on()

    def close(self) -> None:
        """Drop what waits; what is under way has no effect any more."""
        self._closed = True
        self._waiting.clear()

    def _go_on(self) -> None:
        while self._waiting and not self._busy:
            size, work, then = self._waiting.popleft()
            self._busy = True
            if size > LONG and self._hand_over(work, then):
                return
            self._finish(work(), then)
        if self.empty and self._on_empty is not None and not self._closed:
            self._on_empty()

    def _hand_over(self, work: Callable[[], T], then: Callable[[T], None]) -> bool:
        try:
            working = self._loop.run_in_executor(self._executor, work)
        except RuntimeError:  # this process ends, and has no workers any more
            return False

        def done(future: asyncio.Future[T]) -> None:
            if future.cancelled():  # likewise
                return
            try:
                self._finish(future.result(), then)
            finally:
                self._go_on()

        working.add_done_callback(done)
        return True

    def _finish(self, result: T, then: Callable[[T], None]) -> None:
        self._busy = False
        if not self._closed:
            then(result)
