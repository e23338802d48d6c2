"""Sandboxes that are started before they are needed. One that was used is never given again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from gvisor_kernel.api.async_sandbox import AsyncSandbox
from gvisor_kernel.api.loop_thread import LoopThread
from gvisor_kernel.api.sandbox import Sandbox
from gvisor_kernel.errors import GvisorKernelError, SandboxError

RETRY_SECONDS = 5.0
"""After a failed start."""
MAX_STARTING = 2
"""Sandboxes that are started at once, to be ready."""


class Taking:
    """A sandbox that is being taken from a pool: to be awaited, or entered."""

    def __init__(self, taking: Coroutine[Any, Any, AsyncSandbox]) -> None:
        self._taking = taking
        self._sandbox: AsyncSandbox | None = None

    def __await__(self) -> Generator[Any, None, AsyncSandbox]:
        return self._taking.__await__()

    async def __aenter__(self) -> AsyncSandbox:
        self._sandbox = await self._taking
        return self._sandbox

    async def __aexit__(self, *_: object) -> None:
        assert self._sandbox is not None
        await self._sandbox.close()


class AsyncSandboxPool:
    """Keeps ``size`` sandboxes ready. Other arguments: those of AsyncSandbox.

    ``async with pool`` starts it. A sandbox that is taken belongs to who took it: it is ended by
    ``close``, or by the pool's end.
    """

    def __init__(self, size: int = 4, **arguments: Any) -> None:
        self._size = max(1, size)
        self._arguments = arguments
        self._ready: asyncio.Queue[AsyncSandbox] = asyncio.Queue()
        self._taken: set[AsyncSandbox] = set()
        self._fillers: list[asyncio.Task[None]] = []
        self._wanted = asyncio.Semaphore(self._size)
        self._failure: GvisorKernelError | None = None
        self._failed = asyncio.Event()
        self._closed = False

    async def start(self) -> Self:
        """Begin to start sandboxes; the first one is awaited, so that an error shows at once.

        :raises GvisorKernelError: when it cannot be started
        """
        await self._wanted.acquire()
        self._ready.put_nowait(await AsyncSandbox.create(**self._arguments))
        self._fillers = [asyncio.create_task(self._fill()) for _ in range(MAX_STARTING)]
        return self

    def take(self) -> Taking:
        """Give a clean sandbox: one that is ready, or the next one that is.

        Await it, and end the sandbox with ``close``; or use it in ``async with``.

        :raises GvisorKernelError: when none is ready, and none can be started
        """
        return Taking(self._take())

    async def _take(self) -> AsyncSandbox:
        while True:
            if self._closed:
                raise SandboxError("The pool was closed.", "make another one.")
            sandbox = await self._wait_for_one()
            self._wanted.release()
            if sandbox.alive:
                self._taken = {taken for taken in self._taken if not taken.closed} | {sandbox}
                return sandbox
            await sandbox.close()  # it has died while it was waiting

    async def _wait_for_one(self) -> AsyncSandbox:
        getting = asyncio.ensure_future(self._ready.get())
        failing = asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait({getting, failing}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            assert self._failure is not None
            raise self._failure
        finally:
            failing.cancel()
            if not getting.done():
                getting.cancel()

    async def _fill(self) -> None:
        while True:
            await self._wanted.acquire()
            try:
                self._ready.put_nowait(await AsyncSandbox.create(**self._arguments))
                self._failure = None
                self._failed.clear()
            except GvisorKernelError as error:
                self._wanted.release()
                self._failure = error
                self._failed.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """End all its sandboxes, also those that were taken. Idempotent."""
        self._closed = True
        for filler in self._fillers:
            filler.cancel()
        await asyncio.gather(*self._fillers, return_exceptions=True)
        sandboxes = list(self._taken)
        while not self._ready.empty():
            sandboxes.append(self._ready.get_nowait())
        with suppress(GvisorKernelError):
            await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))
        self._taken.clear()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class SandboxPool:
    """An AsyncSandboxPool for programs without an event loop. Any thread may use it.

    :raises GvisorKernelError: when the first sandbox cannot be started
    """

    def __init__(self, size: int = 4, **arguments: Any) -> None:
        self._thread = LoopThread.instance()

        async def start() -> AsyncSandboxPool:
            return await AsyncSandboxPool(size, **arguments).start()

        self._pool = self._thread.run(start())
        self._thread.note_open(self._pool)

    def take(self) -> Sandbox:
        """Return a clean sandbox; end it with ``close``, or use it in ``with``.

        :raises GvisorKernelError: when none is ready, and none can be started
        """
        return Sandbox._of(self._thread, self._thread.run(self._pool._take()))

    def close(self) -> None:
        """End all its sandboxes, also those that were taken. Idempotent."""
        if not self._thread.is_inherited:
            self._thread.note_closed(self._pool)
            self._thread.run(self._pool.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
