"""Work of one kernel that blocks, in workers; and what undoes it if nobody waits for it any more.

On the bridge's loop.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from gvisor_kernel.bridge import KernelBridge
from gvisor_kernel.bridge.linked_sandbox import close_sandbox
from gvisor_kernel.errors import LaunchError, SandboxError
from gvisor_kernel.kernel.restore import Restored
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.waits import until


async def give_up(kernel: KernelBridge, restored: Restored, error: BaseException) -> None:
    """End a restored sandbox after ``error``, and discard its snapshot if that is to blame."""
    await kernel.end_sandbox()
    await close_sandbox(restored.sandbox)  # in case the bridge has not taken it over
    if not isinstance(error, SandboxError):
        return  # not the snapshot's fault: for example, the start was cancelled
    with suppress(RuntimeError):  # this process is exiting
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, restored.discard, str(error))


async def close_started(starting: asyncio.Future[Any]) -> None:
    """Close what ``starting`` has started, once that is known: a sandbox, or a connection."""
    with suppress(Exception):  # if it fails, it has started nothing
        # no timeout: it is finished or undone, by steps that have timeouts
        started = await starting
        sandbox = started.sandbox if isinstance(started, Restored) else started
        if isinstance(sandbox, Sandbox):
            await close_sandbox(sandbox)
        elif isinstance(sandbox, socket.socket):
            sandbox.close()


T = TypeVar("T")


class Workers:
    """Starts what one kernel needs. Whoever ends the kernel awaits ``finish``."""

    def __init__(self) -> None:
        self._undoing: set[asyncio.Task[None]] = set()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run ``work`` in a worker. On cancellation, close the sandbox that it starts.

        :raises LaunchError: when this process is exiting
        """
        loop = asyncio.get_running_loop()
        given_up = threading.Event()
        try:
            with until(given_up):
                starting = loop.run_in_executor(None, copy_context().run, work, *arguments)
        except RuntimeError as error:  # the executor has shut down: this process is exiting
            raise LaunchError(f"No kernel can be started: {error}.") from error
        try:
            # no timeout: it is finished or undone, by steps that have timeouts
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            given_up.set()
            self.undo_by(close_started(starting))
            raise

    def undo_by(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work``, also if whoever waits for the returned task is cancelled."""
        undoing = asyncio.get_running_loop().create_task(work)
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        return undoing

    async def finish(self) -> None:
        """Wait until all is undone."""
        if self._undoing:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.wait(self._undoing)


def run_beside(work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work``, which raises nothing, in a worker for which nobody waits."""
    with suppress(RuntimeError):  # this process is exiting
        asyncio.get_running_loop().run_in_executor(None, work, *arguments)
