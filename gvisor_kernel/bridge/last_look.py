"""The look at the files of a kernel that has ended, while PID 1 waits with the report of its end.

No process of the sandbox but PID 1 runs then. Here is decided whether the end is one at which files
are read; ``work`` reads them. On the bridge's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gvisor_kernel.bridge.run import KernelRun

LAST_SECONDS = 50.0
"""Seconds after which the end is reported, whatever ``work`` does."""


class LastLook:
    """That of each run of one kernel. ``release`` tells PID 1 not to wait."""

    def __init__(self, run: KernelRun, release: Callable[[], None]) -> None:
        self._run = run
        self._release = release
        self._task: asyncio.Task[None] | None = None
        self._is_told = False
        self.work: Callable[[], Awaitable[None]] | None = None
        """Raises nothing."""
        self.on_failed: Callable[[], None] | None = None
        """Called in place of ``work`` if the last cell failed, or had not ended."""

    def forget(self) -> None:
        """Forget the last run: another one begins."""
        self._task, self._is_told = None, False

    def begin(self) -> None:
        """Begin the look, once in a run, if the end was asked for and the last cell did well.

        Code of the sandbox may have sent what calls this."""
        if self.work is None or self._run.cause is not None or not self._run.end_expected:
            self._release()
        elif self._run.has_failed:
            if self.on_failed is not None and not self._is_told:
                self._is_told = True
                self.on_failed()
            self._release()
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._do(self.work))

    async def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(work(), LAST_SECONDS)
        finally:
            self._release()

    @property
    def is_under_way(self) -> bool:
        """Return whether files are read."""
        return self._task is not None and not self._task.done()

    async def wait(self) -> bool:
        """Wait for the end of the look; return False if none is under way."""
        if self._task is None or self._task.done():
            return False
        await asyncio.wait({self._task})  # no timeout: LAST_SECONDS of its own
        return True
