"""Lets the kernel of a session hibernate, and go on when somebody wants it. On the bridge's loop.

What is written is in ``saved_kernel``; how clients' messages wait is in ``bridge/hibernation``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from gvisor_kernel.bridge import KernelBridge, SnapshotRun
from gvisor_kernel.errors import GvisorKernelError, NotIdle
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.kernel.launch import Workers
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.saved_kernel import SavedKernel, save
from gvisor_kernel.runtimes.base import SavedSandbox

log = logging.getLogger(__name__)

Wake = Callable[[KernelBridge, SavedKernel], Awaitable[None]]
"""Starts the sandbox in which a saved kernel goes on."""


class Hibernator:
    """The saved kernel of one session, if there is one. ``wake`` raises GvisorKernelError."""

    def __init__(self, workers: Workers, wake: Wake) -> None:
        self.saved: SavedKernel | None = None
        self._workers = workers
        self._wake = wake
        self._waking: asyncio.Task[None] | None = None
        self._failures = Limiter()

    def watch(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        """Let ``kernel`` hibernate when it has had nothing to do for its setting's time."""
        kernel.hibernation.idle_seconds = plan.spec.hibernate_idle_timeout

        def begin() -> None:
            self._workers.undo_by(self._try(kernel, sandbox, plan))

        kernel.hibernation.on_idle = begin

    async def _try(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        try:
            await self.begin(kernel, sandbox, plan)
        except NotIdle as error:
            kernel.note(f"the kernel does not hibernate: {error.fact}")
        except GvisorKernelError as error:
            line = self._failures.admit(f"{kernel.identity.name} does not hibernate: {error}")
            if line is not None:
                log.warning("%s", line)

    async def begin(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        """Save the kernel of ``sandbox``, and end the sandbox.

        :raises NotIdle: when it has something to do
        :raises SnapshotError: when it cannot be saved; it goes on
        """
        saved: SavedKernel | None = None

        async def write(run: SnapshotRun) -> None:
            nonlocal saved
            saved = await self._workers.run(save, sandbox, plan, run)

        async def undo() -> None:
            if saved is not None:
                await self._workers.run(saved.discard)
            await self._workers.run(sandbox.note_saved, 0.0)

        kernel.on_wanted = partial(self.want, kernel)
        await kernel.hibernation.begin(write, undo)
        self.saved = saved
        if kernel.has_waiting:  # it came while the sandbox was ended
            self.want(kernel)

    def adopt(self, kernel: KernelBridge, saved: SavedKernel) -> None:
        """Take over a kernel that another process has saved."""
        self.saved = saved
        kernel.on_wanted = partial(self.want, kernel)
        kernel.adopt(saved.run)

    def want(self, kernel: KernelBridge) -> None:
        """Let the saved kernel go on; nobody waits for it."""
        if self.saved is not None and self._waking is None:
            self._waking = asyncio.get_running_loop().create_task(self._go_on(kernel, self.saved))

    async def wake(self, kernel: KernelBridge) -> None:
        """Let the saved kernel go on, if there is one, and wait until it does.

        :raises GvisorKernelError: when it cannot; it stays saved
        """
        self.want(kernel)
        if self._waking is not None:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.shield(self._waking)

    async def _go_on(self, kernel: KernelBridge, saved: SavedKernel) -> None:
        try:
            await self._wake(kernel, saved)
        except GvisorKernelError as error:
            kernel.refuse_waiting(explain(error))
            log.error("%s does not go on: %s", kernel.identity.name, error)
        else:
            self.saved = None
            await self._workers.run(saved.discard)
        finally:
            self._waking = None

    def leave(self) -> None:
        """Leave what was saved to the next process."""
        self.saved = None

    async def end(self, kernel: KernelBridge) -> None:
        """Give the saved kernel up, and remove it. Idempotent."""
        waking, saved, self.saved = self._waking, self.saved, None
        if waking is not None:
            waking.cancel()
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.wait({waking})
        kernel.hibernation.wake_up()
        if saved is not None:
            await self._workers.run(saved.remove)


def explain(error: GvisorKernelError) -> str:
    """Return what a person reads in the cell for which a saved kernel did not go on."""
    hint = f" What to do: {error.hint}" if error.hint else ""
    return (
        f"The state of this kernel is saved, and it could not go on: {error.fact}{hint} It stays"
        " saved: run the cell again when that is mended, or restart the kernel to begin anew."
    )
