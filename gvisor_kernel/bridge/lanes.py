"""Ordered work on messages of one channel and direction; long work runs in a worker thread.

All kernels share the bridge's loop. Checking and signing a message of 100 MB takes half a second,
during which hashlib releases the GIL. So a worker does it, and later messages of the same channel
wait. Nothing here knows what a message is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

MAX_INLINE = 256 * 1024
"""Bytes of a message that is handled on the loop. That takes less than a millisecond, which is
about the cost of a round trip to a worker."""


class Lane:
    """Queue of work items; each runs ``work()`` and then ``then(result)`` on the loop, in order.

    ``work`` runs in ``executor`` if its size is over MAX_INLINE. It must not raise. ``on_empty``
    is called when the last of the items that had to wait is done.
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
        """Return whether no item waits or runs."""
        return not (self._busy or self._waiting)

    def put(self, size: int, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Add an item. A short one in an empty lane is done before this returns."""
        if self._closed:
            return
        if size <= MAX_INLINE and self.empty:
            then(work())
            return
        self._waiting.append((size, work, then))
        self._run_next()

    def close(self) -> None:
        """Drop waiting items; the result of a running one is ignored."""
        self._closed = True
        self._waiting.clear()

    def _run_next(self) -> None:
        while self._waiting and not self._busy:
            size, work, then = self._waiting.popleft()
            self._busy = True
            if size > MAX_INLINE and self._run_in_worker(work, then):
                return
            self._finish(work(), then)
        if self.empty and self._on_empty is not None and not self._closed:
            self._on_empty()

    def _run_in_worker(self, work: Callable[[], T], then: Callable[[T], None]) -> bool:
        try:
            working = self._loop.run_in_executor(self._executor, work)
        except RuntimeError:  # the process exits, and the executor has shut down
            return False

        def done(future: asyncio.Future[T]) -> None:
            if future.cancelled():  # the process exits
                return
            try:
                self._finish(future.result(), then)  # no timeout: it is done
            finally:
                self._run_next()

        working.add_done_callback(done)
        return True

    def _finish(self, result: T, then: Callable[[T], None]) -> None:
        self._busy = False
        if not self._closed:
            then(result)
