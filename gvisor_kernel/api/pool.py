"""Sandboxes that are started before they are needed. One that was used is never given again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
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

    def __init__(self, take: Callable[[], Coroutine[Any, Any, AsyncSandbox]]) -> None:
        self._take = take
        self._sandbox: AsyncSandbox | None = None

    def __await__(self) -> Generator[Any, None, AsyncSandbox]:
        return self._take().__await__()

    async def __aenter__(self) -> AsyncSandbox:
        self._sandbox = await self._take()
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
        self._ready: deque[AsyncSandbox] = deque()
        self._taken: set[AsyncSandbox] = set()
        self._fillers: list[asyncio.Task[None]] = []
        self._wanted = asyncio.Semaphore(self._size)
        self._failure: GvisorKernelError | None = None
        """The error of the last start, if that has failed."""
        self._changed = asyncio.Event()
        """Set when what ``take`` waits for may have come."""
        self._closed = False
        self._closing: asyncio.Future[None] | None = None

    async def start(self) -> Self:
        """Begin to start sandboxes; the first one is awaited, so that an error shows at once.

        :raises GvisorKernelError: when it cannot be started
        """
        await self._wanted.acquire()  # no timeout: a filler waits until a sandbox is taken
        self._ready.append(await AsyncSandbox.create(**self._arguments))
        self._fillers = [asyncio.create_task(self._fill()) for _ in range(MAX_STARTING)]
        return self

    def take(self) -> Taking:
        """Give a clean sandbox: one that is ready, or the next one that is.

        Await it, and end the sandbox with ``close``; or use it in ``async with``.

        :raises GvisorKernelError: when none is ready, and none can be started
        """
        return Taking(self._take)

    async def _take(self) -> AsyncSandbox:
        while True:
            sandbox = await self._wait_for_one()
            self._wanted.release()
            if sandbox.alive:
                self._taken = {taken for taken in self._taken if not taken.closed} | {sandbox}
                return sandbox
            await sandbox.close()  # it has died while it was waiting

    async def _wait_for_one(self) -> AsyncSandbox:
        """Return one that is ready. If this is cancelled, none is lost."""
        while True:
            if self._closed:
                raise SandboxError("The pool was closed.", "make another one.")
            if self._ready:
                return self._ready.popleft()
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            # no timeout: until a sandbox has started or failed, or the end
            await self._changed.wait()

    async def _fill(self) -> None:
        while True:  # no timeout: a filler lives as long as its pool
            await self._wanted.acquire()  # no timeout: a filler waits until a sandbox is taken
            failure: GvisorKernelError | None = None
            try:
                sandbox = await AsyncSandbox.create(**self._arguments)
            except GvisorKernelError as error:
                failure = error
            except Exception as error:  # such as no descriptor that is left
                failure = SandboxError(f"No sandbox can be started: {error}.")
            if failure is None:
                self._ready.append(sandbox)
            self._failure = failure
            self._changed.set()
            if failure is not None:
                self._wanted.release()
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """End all its sandboxes, also those that were taken. Idempotent; if it is cancelled, it
        goes on behind."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._closed = True
        self._changed.set()
        for filler in self._fillers:
            filler.cancel()
        # no timeout: they are cancelled
        await asyncio.gather(*self._fillers, return_exceptions=True)
        sandboxes = [*self._taken, *self._ready]
        self._ready.clear()
        self._taken.clear()
        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.gather(*(sandbox.close() for sandbox in sandboxes), return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
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

    def __exit__(self, *_: object) -> None:
        self.close()
