"""Progress of a call: what its code prints, sent to a client while it runs.

A client that reads slowly gets less of it, and never slows the code down.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from gvisor_kernel.mcp.displays import make_plain
from gvisor_kernel.mcp.results import clean

PAUSE_SECONDS = 0.25
MAX_LINE = 200
"""Characters of the last line, in one notification."""

Report = Callable[[float, float | None, str | None], Awaitable[None]]


class Progress:
    """Reports the number of characters that were printed, and the last line.

    ``async with`` it around the run, whose listeners ``note`` is.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0
        self._line = ""
        self._changed = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def note(self, text: str) -> None:
        """Note text that was printed."""
        self._count += len(text)
        lines = text[-4 * MAX_LINE :].rstrip("\n").rsplit("\n", 1)
        self._line = lines[-1]
        self._changed.set()

    async def _send(self) -> None:
        last = 0.0
        while True:
            await self._changed.wait()
            await asyncio.sleep(max(0.0, last + PAUSE_SECONDS - time.monotonic()))
            last = time.monotonic()
            self._changed.clear()
            line = clean(make_plain(self._line)[:MAX_LINE])
            await self._report(float(self._count), None, line)

    async def __aenter__(self) -> Self:
        self._sender = asyncio.ensure_future(self._send())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sender is not None
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._sender
