"""Turns of kernels at something of which there is little. No I/O.

However much one kernel asks for, after a turn of it come those of the others that wait.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress


class FairTurns:
    """At most ``most`` turns at once, and at most ``each`` of one kernel. Use it in one loop."""

    def __init__(self, most: int, each: int = 1) -> None:
        self._most = most
        self._each = each
        self._active: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """The kernels that wait; the one whose turn comes first is first."""

    @asynccontextmanager
    async def take(self, kernel: Hashable) -> AsyncIterator[None]:
        """Wait for a turn of ``kernel``, and have it."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(kernel, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(kernel)  # it was given in the same moment
            else:
                self._forget(kernel, turn)
            raise
        try:
            yield
        finally:
            self._end(kernel)

    def _give(self) -> None:
        """Give turns to those who may have one."""
        while self._active.total() < self._most:
            kernel = next((k for k in self._waiting if self._active[k] < self._each), None)
            if kernel is None:
                return
            waiting = self._waiting.pop(kernel)
            turn = waiting.popleft()
            if waiting:
                self._waiting[kernel] = waiting  # behind the others
            if not turn.done():
                self._active[kernel] += 1
                turn.set_result(None)

    def _end(self, kernel: Hashable) -> None:
        self._active[kernel] -= 1
        if not self._active[kernel]:
            del self._active[kernel]
        self._give()

    def _forget(self, kernel: Hashable, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(kernel)
        if waiting is not None:
            with suppress(ValueError):
                waiting.remove(turn)
            if not waiting:
                del self._waiting[kernel]
