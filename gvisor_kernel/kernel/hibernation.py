"""Lets the kernel of a session hibernate, and go on when somebody wants it. On the bridge's loop.

What is written is in ``saved_kernel``; how clients' messages wait is in ``bridge/hibernation``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from gvisor_kernel.bridge import Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.errors import GvisorKernelError, LaunchError, NotIdle
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.kernel.facts import Hibernated, KernelEvents, KernelFacts, Resumed, Saved, Waking
from gvisor_kernel.kernel.launch import Workers, run_beside
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.saved_kernel import SavedKernel, remove_old, save
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import Sandbox, SavedSandbox

log = logging.getLogger(__name__)

TRIES, RETRY_SECONDS = 4, 0.3
"""Tries to save a kernel for somebody who wants that now, and the pause after each: one that has
just begun, or has just replied, has something left to do."""

Wake = Callable[[KernelBridge, SavedKernel], Awaitable[KernelPlan]]
"""Starts the sandbox in which a saved kernel goes on, and returns its plan."""


class Hibernator:
    """The saved kernel of one session, if there is one.

    ``find``: returns the session's kernel, its sandbox if there was one, and its plan; or raises
    LaunchError.
    ``wake`` raises GvisorKernelError. The first methods may be awaited on any loop.
    """

    def __init__(
        self,
        bridge: Bridge,
        workers: Workers,
        find: Callable[[], tuple[KernelBridge, Sandbox | None, KernelPlan]],
        wake: Wake,
    ) -> None:
        self.saved: SavedKernel | None = None
        self._bridge = bridge
        self._workers = workers
        self._find = find
        self._wake = wake
        self._waking: asyncio.Task[None] | None = None
        self._saving: asyncio.Future[None] | None = None
        """Done when the save that is under way has ended."""
        self._is_leaving = False
        """Nothing wakes the kernel any more: this process ends."""
        self._failures = Limiter()

    # -- from any loop ---------------------------------------------------------------------------

    async def hibernate(self) -> None:
        """Save the idle kernel on the disk and end its sandbox. The next request lets it go on.

        :raises NotIdle: when it has something to do
        :raises SnapshotError: when it cannot be saved; it goes on
        :raises LaunchError: when there is no kernel
        """
        if self._bridge.ended:
            raise LaunchError("There is no kernel: this process is exiting.")
        await self._bridge.run(self._hibernate())

    def describe(self, kernel: KernelBridge | None, facts: KernelFacts) -> KernelFacts:
        """Return the facts of ``kernel`` with those of what was saved of it, if it hibernates."""
        saved = self.saved
        if kernel is None or not kernel.asleep or saved is None:
            return facts
        return replace(
            facts,
            identity=saved.identity,
            directory=saved.directory,
            transcripts=facts.spec.transcripts,
            saved=Saved(saved.saved, saved.size),
        )

    async def copy(
        self, write: Callable[[SavedSandbox, KernelPlan, SnapshotRun], SavedKernel]
    ) -> SavedKernel:
        """Save the idle kernel, and let it go on; one that hibernates goes on for it.

        ``write`` is called in a worker, and again if the kernel has worked meanwhile. It leaves
        nothing when it raises. Clients' messages wait until it has returned.

        :raises NotIdle: when the kernel has something to do
        :raises SnapshotError: when it cannot be saved
        :raises GvisorKernelError: when there is no kernel, or it does not go on
        """
        if self._bridge.ended:
            raise LaunchError("There is no kernel: this process is exiting.")
        return await self._bridge.run(self._copy(write))

    async def resume(self) -> None:
        """Let a kernel that hibernates go on, and wait until it does.

        :raises GvisorKernelError: when it cannot; it stays saved
        """
        if not self._bridge.ended:
            await self._bridge.run(self._resume())

    async def leave(self) -> None:
        """Let the kernel hibernate, and leave it to the next process of this user.

        It counts as ended here then. Requests that come meanwhile are not answered.

        :raises GvisorKernelError: as ``hibernate``; the kernel goes on
        """
        if self._bridge.ended:
            raise LaunchError("There is no kernel: this process is exiting.")
        await self._bridge.run(self._leave())

    async def forget(self) -> None:
        """Give up a kernel that hibernates, and remove what was saved of it."""
        if not self._bridge.ended:
            await self._bridge.run(self._forget())

    # -- on the bridge's loop --------------------------------------------------------------------

    async def _hibernate(self) -> None:
        if self._waking is not None:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.wait({self._waking})
        if not self._find()[0].asleep:
            kernel, sandbox, plan = self._find_awake()
            await _retry(partial(self.begin, kernel, sandbox, plan))

    def _find_awake(self) -> tuple[KernelBridge, SavedSandbox, KernelPlan]:
        kernel, sandbox, plan = self._find()
        if sandbox is None or not isinstance(sandbox, SavedSandbox):
            raise get_runtime(plan.spec.runtime).explain_no_snapshots()
        return kernel, sandbox, plan

    async def _copy(
        self, write: Callable[[SavedSandbox, KernelPlan, SnapshotRun], SavedKernel]
    ) -> SavedKernel:
        if self._find()[0].asleep:
            await self._resume()
        kernel, sandbox, plan = self._find_awake()
        saved: SavedKernel | None = None

        async def save(run: SnapshotRun) -> None:
            nonlocal saved
            saved = await self._workers.run(write, sandbox, plan, run)

        async def undo() -> None:
            if saved is not None:
                await self._workers.run(saved.discard)

        self._saving = saving = asyncio.get_running_loop().create_future()
        try:
            await _retry(partial(kernel.hibernation.copy, save, undo))
        finally:
            self._note_saved(saving)
        assert saved is not None
        return saved

    def _note_saved(self, saving: asyncio.Future[None]) -> None:
        saving.set_result(None)
        if self._saving is saving:
            self._saving = None

    async def _resume(self) -> None:
        if self._waking is None:
            self.want(self._find()[0])
        if self._waking is not None:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.shield(self._waking)

    async def _forget(self) -> None:
        kernel, _, _ = self._find()
        if kernel.asleep:
            kernel.expect_end(restart=False)
            await self.end(kernel)

    async def _leave(self) -> None:
        self._is_leaving = True
        try:
            await self._hibernate()
            kernel, _, _ = self._find()
        except BaseException:
            self._is_leaving = False
            raise
        self.saved = None
        kernel.expect_end(restart=False)

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

        began, request = time.monotonic(), plan.request
        kernel.hibernation.on_wanted = partial(self.want, kernel)
        self._saving = saving = asyncio.get_running_loop().create_future()
        try:
            await kernel.hibernation.begin(write, undo)
            self.saved = saved  # also if it was given up meanwhile: ``end`` removes it then
        finally:
            if kernel.asleep:  # also if nobody waits for it any more
                self.saved = saved
            self._note_saved(saving)
        assert saved is not None
        KernelEvents.instance().tell(
            Hibernated(
                *(request.kernel_id, request.kernel_name, Saved(saved.saved, saved.size)),
                time.monotonic() - began,
            )
        )
        run_beside(remove_old)
        if kernel.hibernation.has_waiting:  # it came while the sandbox was ended
            self.want(kernel)

    def adopt(self, kernel: KernelBridge, saved: SavedKernel) -> None:
        """Take over a kernel that another process has saved."""
        self.saved = saved
        kernel.hibernation.on_wanted = partial(self.want, kernel)
        kernel.hibernation.adopt(saved.run)

    def want(self, kernel: KernelBridge) -> None:
        """Let the saved kernel go on; nobody waits for it."""
        if self.saved is not None and self._waking is None and not self._is_leaving:
            self._waking = asyncio.get_running_loop().create_task(self._go_on(kernel, self.saved))
            self._waking.add_done_callback(_forget_error)

    async def _go_on(self, kernel: KernelBridge, saved: SavedKernel) -> None:
        began = time.monotonic()
        try:
            asked = self._find()[2].request
            KernelEvents.instance().tell(Waking(asked.kernel_id, asked.kernel_name))
            await self._workers.run(saved.check)
            plan = await self._wake(kernel, saved)
        except GvisorKernelError as error:
            kernel.hibernation.refuse_waiting(explain(error))
            log.error("%s does not go on: %s", kernel.identity.name, error)
            raise
        finally:
            self._waking = None
        self.saved = None
        request, seconds = plan.request, time.monotonic() - began
        KernelEvents.instance().tell(Resumed(request.kernel_id, request.kernel_name, seconds))
        await self._workers.run(saved.discard)

    async def end(self, kernel: KernelBridge) -> None:
        """Give the saved kernel up, and remove it. Idempotent."""
        if self._saving is not None:
            await asyncio.shield(self._saving)  # no timeout: SAVE_SECONDS
        waking, saved, self.saved = self._waking, self.saved, None
        if waking is not None:
            waking.cancel()
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.wait({waking})
            await self._workers.finish()  # its sandbox would keep the directory
        kernel.hibernation.note_awake()
        if saved is not None:
            await self._workers.run(saved.remove)


async def _retry(save: Callable[[], Awaitable[None]]) -> None:
    """Call ``save`` for somebody who wants that now, up to TRIES times."""
    for _ in range(TRIES - 1):
        try:
            await save()
            return
        except NotIdle:
            await asyncio.sleep(RETRY_SECONDS)
    await save()


def _forget_error(waking: asyncio.Task[None]) -> None:
    if not waking.cancelled():
        waking.exception()  # the cell that waited has it


def explain(error: GvisorKernelError) -> str:
    """Return what a person reads in the cell for which a saved kernel did not go on."""
    hint = f" What to do: {error.hint}" if error.hint else ""
    return (
        f"The state of this kernel is saved, and it could not go on: {error.fact}{hint} It stays"
        " saved: run the cell again when that is mended, or restart the kernel to begin anew."
    )
