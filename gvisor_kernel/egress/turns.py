"""Turns at something of which there is little. No I/O.

However much one kernel asks for, after a turn of it come those of the others that wait.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress

_NOBODY = object()


class Turns:
    """At most ``most`` turns at once, and at most ``each`` with one key. Use it in one loop.

    ``each``: None for no other bound. Keys stand for kernels; those who have none share a key.
    """

    def __init__(self, most: int, each: int | None = None) -> None:
        self._most = most
        self._each = most if each is None else each
        self._active: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """The keys of those who wait; the one whose turn comes first is first."""

    @asynccontextmanager
    async def take(self, key: Hashable = "") -> AsyncIterator[None]:
        """Wait for a turn, and have it."""
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def acquire(self, key: Hashable = "") -> None:
        """Wait for a turn. Its end is told with ``release``."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        self._give()
        try:
            await turn  # no timeout: turns have time limits, and so has who waits
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(key)  # it was given in the same moment
            else:
                self._forget(key, turn)
            raise

    def release(self, key: Hashable = "") -> None:
        """End a turn."""
        self._active[key] -= 1
        if not self._active[key]:
            del self._active[key]
        self._give()

    def _give(self) -> None:
        """Give turns to those who may have one."""
        while self._active.total() < self._most:
            key = next((k for k in self._waiting if self._active[k] < self._each), _NOBODY)
            if key is _NOBODY:
                return
            waiting = self._waiting.pop(key)
            turn = waiting.popleft()
            if waiting:
                self._waiting[key] = waiting  # behind the others
            if not turn.done():
                self._active[key] += 1
                turn.set_result(None)

    def _forget(self, key: Hashable, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            with suppress(ValueError):
                waiting.remove(turn)
            if not waiting:
                del self._waiting[key]
