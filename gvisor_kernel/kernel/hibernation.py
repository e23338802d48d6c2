"""Lets the kernel of a session hibernate, and go on when somebody wants it. On the bridge's loop.

What is written is in ``saved_kernel``; how clients' messages wait is in ``bridge/hibernation``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from gvisor_kernel.bridge import Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.errors import (
    GvisorKernelError,
    LaunchError,
    NotIdle,
    SandboxError,
    SnapshotError,
)
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.kernel.branches import Branch, branch_running, branch_saved, remove_all
from gvisor_kernel.kernel.facts import Hibernated, KernelEvents, KernelFacts, Resumed, Saved
from gvisor_kernel.kernel.job_end import call_before_end
from gvisor_kernel.kernel.launch import Workers, run_beside
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.saved_budget import check_room, remove_old
from gvisor_kernel.kernel.saved_kernel import (
    SavedKernel,
    explain,
    find_idle_seconds,
    note_start,
    refuse_runtime,
    save,
)
from gvisor_kernel.runtimes.base import Sandbox, SavedSandbox
from gvisor_kernel.runtimes.state.kept_packages import begin_to_keep

log = logging.getLogger(__name__)
T = TypeVar("T")

ENDED = "The kernel was ended, or started anew, meanwhile."
TRIES, RETRY_SECONDS = 4, 0.3
"""Tries to save a kernel for somebody who wants that now, and the pause after each: one that has
just begun, or has just replied, has something left to do."""

NOTE_SECONDS = 1.0
"""Seconds after a change until it is written what another process needs to know of the kernel."""

Wake = Callable[[KernelBridge, SavedKernel], Awaitable[KernelPlan]]
"""Starts the sandbox in which a saved kernel goes on, and returns its plan."""
Choose: TypeAlias = Callable[[SavedKernel], Awaitable[SavedKernel]]
Keep: TypeAlias = Callable[[SavedKernel], None]


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
        self._waking: asyncio.Task[Any] | None = None
        self._turn = asyncio.Lock()
        """One save at a time. Whoever wakes the kernel does without: who saves may wait for it."""
        self._goes_back = False
        """The kernel is saved to go on from an earlier state, so nothing wakes it meanwhile."""
        self._is_leaving = False
        """Nothing wakes the kernel any more: this process ends."""
        self._adopted: KernelBridge | None = None
        self._noting: asyncio.TimerHandle | None = None
        self._failures = Limiter()

    # -- from any loop ---------------------------------------------------------------------------

    async def hibernate(self) -> None:
        """Save the idle kernel on the disk and end its sandbox. The next request lets it go on.

        :raises NotIdle: when it has something to do
        :raises SnapshotError: when it cannot be saved; it goes on
        :raises LaunchError: when there is no kernel
        """
        self._require_bridge()
        await self._bridge.run(_retry(self._hibernate))

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
            saved=Saved(saved.note.saved, saved.size),
        )

    @property
    def works(self) -> bool:
        """Return whether a cell goes on in the middle of which another process has ended."""
        return self._adopted is not None and self._adopted.hibernation.exchange.works

    async def branch(self, wanted: Sequence[Branch]) -> list[SavedKernel]:
        """Return branches of the kernel: saved kernels that go on from its state. It pauses while
        it is written; one that hibernates goes on sleeping.

        :raises GvisorKernelError: as ``copy``, or when there cannot be such branches; there are
            none then
        """
        self._require_bridge()
        return await self._bridge.run(self._branch(wanted))

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
        self._require_bridge()
        await self._bridge.run(self._leave())

    async def forget(self) -> None:
        """Give up a kernel that hibernates, and remove what was saved of it."""
        if not self._bridge.ended:
            await self._bridge.run(self._forget())

    def _require_bridge(self) -> None:
        if self._bridge.ended:
            raise LaunchError("There is no kernel: this process is exiting.")

    # -- on the bridge's loop --------------------------------------------------------------------

    async def make_ready(self, kernel: KernelBridge, *, wakes: bool) -> None:
        """Wait until the kernel is not being saved; let it go on if it hibernates and ``wakes``.

        It stays so until the caller awaits something.

        :raises SandboxError: when it hibernates, and is not woken
        :raises GvisorKernelError: when it cannot go on
        """
        while self._turn.locked() or kernel.asleep:
            if self._turn.locked():
                async with self._turn:
                    pass
            elif not wakes:
                raise SandboxError("The kernel hibernates, and is not woken for this.")
            else:
                await self._resume()
                if kernel.asleep and self._waking is None and not self._turn.locked():
                    raise LaunchError(ENDED)

    async def _hibernate(self) -> None:
        async with self._turn:
            await self._sleep()

    async def _sleep(self) -> None:
        """Let the kernel hibernate if it does not. The caller has the turn."""
        await self._let_wake()
        if not self._find()[0].asleep:
            await self._begin(*self._find_awake())

    async def _let_wake(self) -> None:
        if self._waking is not None:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.wait({self._waking})

    def _find_awake(self) -> tuple[KernelBridge, SavedSandbox, KernelPlan]:
        kernel, sandbox, plan = self._find()
        if sandbox is None or not isinstance(sandbox, SavedSandbox):
            raise refuse_runtime(plan.spec.runtime)
        return kernel, sandbox, plan

    async def _branch(self, wanted: Sequence[Branch]) -> list[SavedKernel]:
        async with self._turn:
            saved = self.saved
            if saved is not None and self._waking is None:
                with suppress(FileNotFoundError):  # it goes on meanwhile
                    return await self._workers.run(branch_saved, saved, wanted)
        write = partial(branch_running, wanted=wanted)
        return await _retry(partial(self._copy, write, remove_all))

    async def _copy(
        self,
        write: Callable[[SavedSandbox, KernelPlan, SnapshotRun], T],
        discard: Callable[[T], None],
    ) -> T:
        async with self._turn:
            await self._let_wake()
            if self._find()[0].asleep:
                await self._resume()
            kernel, sandbox, plan = self._find_awake()
            run = self._workers.run
            writes, discards = partial(run, write, sandbox, plan), partial(run, discard)
            return await kernel.hibernation.save(writes, discards)

    async def _resume(self) -> None:
        if self._waking is None:
            self.want(self._find()[0])
        if self._waking is not None:
            await _wait_for(self._waking)

    async def _forget(self) -> None:
        kernel, _, _ = self._find()
        if kernel.asleep:
            await self.end(kernel)
            await kernel.hibernation.lose("what was saved of it was removed by another program")

    async def _leave(self) -> None:
        self._is_leaving = True
        try:
            await _retry(self._leave_asleep)
        except BaseException:
            self._is_leaving = False
            raise

    async def _leave_asleep(self) -> None:
        async with self._turn:
            await self._sleep()
            kernel, _, _ = self._find()
            self.saved = None
            kernel.expect_end(restart=False)

    def watch(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        """Let ``kernel`` hibernate when it has had nothing to do for its setting's time."""
        kernel.hibernation.idle_seconds = find_idle_seconds(plan.spec)
        kernel.hibernation.on_idle = lambda: self._workers.undo_by(self._try(kernel, sandbox, plan))
        call_before_end(sandbox, kernel.hibernation.on_idle)
        if plan.lasts:
            note_later = partial(self._note_later, kernel, sandbox, plan)
            kernel.hibernation.exchange.known.on_change = note_later
            self._note(kernel, sandbox, plan)

    def _note_later(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        if self._noting is None:
            loop = asyncio.get_running_loop()
            self._noting = loop.call_later(NOTE_SECONDS, self._note, kernel, sandbox, plan)

    def _note(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        self._noting = None
        present: object = kernel.sandbox
        if present is sandbox and not kernel.asleep:
            run_beside(note_start, sandbox, plan, kernel.hibernation.describe_run())

    async def _try(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        try:
            await self._workers.run(check_room, sandbox)
            async with self._turn:
                present: object = kernel.sandbox
                if present is sandbox and not kernel.asleep:
                    await self._begin(kernel, sandbox, plan)
        except GvisorKernelError as error:
            kernel.note(f"the kernel does not hibernate: {error.fact}")
            if isinstance(error, NotIdle):
                return
            line = self._failures.admit(f"{kernel.identity.name} does not hibernate: {error}")
            if line is not None:
                log.warning("%s", line)

    async def _begin(self, kernel: KernelBridge, sandbox: SavedSandbox, plan: KernelPlan) -> None:
        """Save the kernel of ``sandbox``, and end the sandbox. The caller has the turn.

        :raises NotIdle: when it has something to do
        :raises SnapshotError: when it cannot be saved; it goes on
        """
        if self._waking is not None:
            raise NotIdle("The kernel is about to go on.")
        saved: SavedKernel | None = None

        async def write(run: SnapshotRun) -> SavedKernel:
            nonlocal saved
            written = saved = await self._workers.run(save, sandbox, plan, run)
            return written

        async def undo(written: SavedKernel) -> None:
            nonlocal saved
            saved = None
            await self._workers.run(written.discard)
            await self._workers.run(sandbox.note_saved, 0.0)

        began, request = time.monotonic(), plan.request
        kernel.hibernation.exchange.on_held = partial(self.want, kernel)
        try:
            await kernel.hibernation.save(write, undo, ends=True)
        finally:
            self.saved = saved  # also if nobody waits for it any more: ``end`` removes it then
        if saved is None or not kernel.asleep:
            raise NotIdle(ENDED)
        KernelEvents.instance().tell(
            Hibernated(
                *(request.kernel_id, request.kernel_name, Saved(saved.note.saved, saved.size)),
                time.monotonic() - began,
            )
        )
        begin_to_keep()
        run_beside(remove_old)
        if not kernel.hibernation.exchange.settled:  # it came while the sandbox was ended
            self.want(kernel)

    def adopt(self, kernel: KernelBridge, saved: SavedKernel) -> None:
        """Take over a kernel that another process has saved."""
        self._adopted = kernel
        self.saved = saved
        kernel.hibernation.exchange.on_held = partial(self.want, kernel)
        kernel.hibernation.adopt(saved.run)
        if self.works:
            self.want(kernel)

    def want(self, kernel: KernelBridge) -> None:
        """Let the saved kernel go on; nobody waits for it."""
        if self._goes_back or self._is_leaving:
            return
        if self.saved is not None and self._waking is None:
            self._waking = asyncio.get_running_loop().create_task(self._go_on(kernel, self.saved))
            self._waking.add_done_callback(_forget_error)

    async def _go_on(self, kernel: KernelBridge, saved: SavedKernel) -> None:
        try:
            await self._go_on_now(kernel, saved)
        except GvisorKernelError as error:
            kernel.hibernation.exchange.refuse_waiting(explain(error))
            log.error("%s does not go on: %s", kernel.identity.name, error)
            raise
        finally:
            self._waking = None
        await self._workers.run(saved.discard)

    async def _go_on_now(self, kernel: KernelBridge, saved: SavedKernel) -> KernelPlan:
        began, found = time.monotonic(), await self._workers.run(saved.check)
        if found.words:
            kernel.note(found.words)
            kernel.hibernation.exchange.tell(found.words)
        saved = await self._workers.run(saved.show, found)
        try:
            plan = await self._wake(kernel, saved)
        except SnapshotError as error:
            raise await self._workers.run(saved.name_gone, error) from error
        self.saved = None
        request, seconds = plan.request, time.monotonic() - began
        KernelEvents.instance().tell(Resumed(request.kernel_id, request.kernel_name, seconds))
        return plan

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
        return await _retry(partial(self._copy, write, SavedKernel.discard))

    def find_directory(self) -> Path:
        """Return the directory of the kernel's sandbox, which may have ended.

        :raises LaunchError: when there is no kernel
        """
        # One that wakes counts as being started for some moments after its first reply.
        return self._find_awake()[1].directory if self.saved is None else self.saved.directory

    async def go_on_from(self, choose: Choose, keep: Keep) -> tuple[KernelBridge, KernelPlan]:
        """Let the idle kernel go on from another state, or elsewhere.

        ``choose`` returns what it goes on from, by what it is. ``keep`` takes the latter once it
        goes on, and raises nothing; it is called in a worker.

        :raises NotIdle: when it has something to do
        :raises SnapshotError: when it cannot be saved, or cannot go on from there: it goes on as it
            was
        """
        kernel, waking = await _retry(partial(self._begin_to_go_on, choose, keep))
        return kernel, await _wait_for(waking)

    async def _begin_to_go_on(
        self, choose: Choose, keep: Keep
    ) -> tuple[KernelBridge, asyncio.Task[KernelPlan]]:
        async with self._turn:
            await self._let_wake()
            kernel = self._find()[0]
            self._goes_back = True
            try:
                await self._sleep()
                if self.saved is None or not kernel.asleep:
                    raise LaunchError(ENDED)
                work = self._replace(kernel, self.saved, choose, keep)
                waking = self._waking = asyncio.get_running_loop().create_task(work)
                waking.add_done_callback(_forget_error)
            finally:
                self._goes_back = False
                if kernel.asleep and not kernel.hibernation.exchange.settled:
                    self.want(kernel)  # for nothing, unless it could not go back
            return kernel, waking

    async def _replace(
        self, kernel: KernelBridge, before: SavedKernel, choose: Choose, keep: Keep
    ) -> KernelPlan:
        known = kernel.hibernation.exchange.known
        try:
            target = await choose(before)
            known.load(target.run.known)
            plan = await self._go_on_now(kernel, target)
        except Exception as error:
            known.load(before.run.known)
            await self._go_on(kernel, before)
            if not isinstance(error, GvisorKernelError):
                raise
            raise SnapshotError(
                f"The kernel could not go on from there, and goes on as it was: {error.fact}",
                error.hint,
            ) from error
        else:
            await self._workers.run(keep, before)
            return plan
        finally:
            self._waking = None

    async def end(self, kernel: KernelBridge) -> None:
        """Give the saved kernel up, and remove it. Idempotent."""
        if self._waking is not None:
            self._waking.cancel()  # whoever has the turn may wait for it
        async with self._turn:
            waking, saved, self.saved = self._waking, self.saved, None
            if waking is not None:
                waking.cancel()
                # no timeout: it is finished or undone, by steps that have timeouts
                await asyncio.wait({waking})
        # Its sandbox would keep the directory. Not in turn: some of them wait for theirs.
        await self._workers.finish()
        kernel.hibernation.note_awake()
        if saved is not None:
            await self._workers.run(saved.remove)


async def _retry(save: Callable[[], Awaitable[T]]) -> T:
    """Call ``save`` for somebody who wants that now, up to TRIES times."""
    for _ in range(TRIES - 1):
        try:
            return await save()
        except NotIdle:
            await asyncio.sleep(RETRY_SECONDS)
    return await save()


async def _wait_for(waking: asyncio.Task[T]) -> T:
    """:raises LaunchError: when the kernel was ended meanwhile"""
    # no timeout: it is finished or undone, by steps that have timeouts
    await asyncio.wait({waking})
    if waking.cancelled():
        raise LaunchError(ENDED)
    return waking.result()  # no timeout: it has ended


def _forget_error(waking: asyncio.Task[Any]) -> None:
    if not waking.cancelled():
        waking.exception()  # the cell that waited has it
