"""One sandboxed kernel: connects a runtime's sandbox with the bridge's client sockets.

The provisioner and the launcher use it. Each method may be awaited on any loop; the work runs on
the bridge's loop. One start is in ``launch.py``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from gvisor_kernel.bridge import Address, Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.bridge.deaths import Death, End
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.config.settings import DEFAULTS, NEW_FILES
from gvisor_kernel.errors import LaunchError, NotIdle, SandboxError, StartStopped
from gvisor_kernel.host.open_files import make_room
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.kernel.checkpoints import Checkpoints
from gvisor_kernel.kernel.facts import Died, KernelEvents, KernelFacts, Start, Started, State
from gvisor_kernel.kernel.hibernation import Hibernator
from gvisor_kernel.kernel.kept_data import KeptData
from gvisor_kernel.kernel.launch import Launch, Workers, run_beside
from gvisor_kernel.kernel.learned_modules import ImportReports, find_kind, read_report
from gvisor_kernel.kernel.plan import KernelPlan, fix_program
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.kernel.saved_kernel import SavedKernel
from gvisor_kernel.kernel.workspace import JudgeLeft, find_host_path, tell_end
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import CheckpointedSandbox, Sandbox, SavedSandbox
from gvisor_kernel.runtimes.hints import find_hint
from gvisor_kernel.tracing import tracing

T = TypeVar("T")
log = logging.getLogger(__name__)
ApplyNew: TypeAlias = "Callable[[SandboxedKernel], Awaitable[None]]"
"""Applies files of a kernel that has ended, in LAST_SECONDS. Raises nothing."""

END_SECONDS = 1.0
"""Seconds in which listeners of a sandbox's end may read its files before they are removed."""


class SandboxedKernel:
    """At most one kernel in at most one sandbox. ``launch`` may replace both.

    ``logs_death``: log why a kernel died. A command that reports ``find_end`` as its own error sets
    it to False, so that it does not print the reason twice. ``judge_left`` leaves out files that
    are on disk already; without it, what the sandbox says is told. ``apply_new`` applies files when
    a kernel was shut down whose setting ``apply`` says so. ``keeps_data``: whether code in the
    sandbox may keep data as pages do; not where it is nobody's kernel.
    """

    _launches = 0
    """Those of this process that are under way. On the bridge's loop."""

    def __init__(
        self,
        *,
        logs_death: bool = True,
        judge_left: JudgeLeft | None = None,
        apply_new: ApplyNew | None = None,
        keeps_data: bool = True,
    ) -> None:
        self._logs_death = logs_death
        self._apply_new = apply_new
        self._keeps_data = keeps_data
        self._judge_left = judge_left
        make_room(1)
        self._bridge = Bridge.instance()
        self._kernel: KernelBridge | None = None
        self._last_launch: Launch | None = None
        """The last launch, also one that is under way or has failed."""
        self._plan: KernelPlan | None = None
        self._runsc = ""
        """The very runsc that the kernel began with, and restarts with: a value of the setting."""
        self._launching: asyncio.Task[Any] | None = None
        self._is_stopped = False
        """True once another call has ended the launch that is under way."""
        self.started = 0.0
        """Unix time at which the sandbox was started for this kernel."""
        self._workers = Workers()
        self.hibernation = Hibernator(self._bridge, self._workers, self._find_parts, self._wake)
        self.checkpoints = Checkpoints(self._bridge, self._workers, self.hibernation)
        self._start_facts: Start | None = None
        self._last_death: Death | None = None
        self._used: Sandbox | None = None
        """A sandbox in which a kernel was started, and of whose end nobody was told yet."""
        self._imports: ImportReports | None = None
        """The imports that the kernels of all launches have reported, together: a notebook that is
        started again and again counts once."""

    # -- state, from any thread ------------------------------------------------------------------

    @property
    def exit_status(self) -> int | None:
        """None while the kernel lives, else its status; 0 if this process has no kernel."""
        if self._kernel is None:
            return 0
        if self._bridge.ended:
            return self._kernel.exit_status or 0
        return None if self._kernel.alive else (self._kernel.exit_status or 0)

    def find_end(self) -> End | None:
        """Return why the kernel ended, or that there is none; None while it lives."""
        if self.exit_status is None:
            return None
        death = self._kernel.death if self._kernel is not None else None
        return death or "It was shut down."

    @property
    def address(self) -> Address | None:
        """The address that clients connect to; None before the first launch."""
        return self._kernel.address if self._kernel is not None else None

    @property
    def sandbox(self) -> Sandbox | None:
        """The sandbox of the last launch; None if there is none, or it was ended."""
        return self._last_launch.sandbox if self._last_launch is not None else None

    def describe(self) -> KernelFacts | None:
        """Return what is known of the kernel and its sandbox; None before the first launch."""
        launch = self._last_launch
        return None if launch is None else self._describe(self._kernel, launch.sandbox, launch.plan)

    def _describe(
        self, kernel: KernelBridge | None, sandbox: Sandbox | None, plan: KernelPlan
    ) -> KernelFacts:
        state: State = "ended"
        start, waits_for = self._start_facts, ""
        if self._launching is not None and self._last_launch is not None:
            start, waits_for = self._last_launch.start, self._last_launch.waits_for
            state = "waiting" if waits_for else "starting"
        elif kernel is not None and kernel.alive:
            state = "idle" if kernel.paused or kernel.asleep else "busy"  # a server knows better
        received, sent = kernel.carried if kernel is not None else (0, 0)
        stats = kernel.stats if kernel is not None else None
        facts = KernelFacts(
            state=state,
            kernel_name=plan.request.kernel_name,
            folder=plan.request.folder,
            spec=plan.spec,
            routes=plan.routes,
            start=start,
            last_death=self._last_death,
            received=received,
            sent=sent,
            waits_for=waits_for,
        )
        facts = self.hibernation.describe(kernel, facts)
        if sandbox is None:
            return facts
        return replace(
            facts,
            identity=sandbox.identity,
            node=sandbox.node,
            directory=sandbox.directory,
            mounts=tuple(sandbox.view.mounts),
            transcripts=sandbox.view.transcripts is not None,
            memory_used=kernel.memory_used if kernel is not None else None,
            processes=stats.processes if stats is not None and not facts.saved else None,
        )

    def host_path(self, path: str) -> Path | None:
        """Return the host's path of the mounted file that the kernel knows as ``path``.

        Returns None if it is not mounted, or if a symbolic link leads out of the mount.
        """
        sandbox = self.sandbox
        return find_host_path(sandbox, path) if sandbox is not None else None

    # -- actions, from any loop; no effect once this process's bridge has ended -------------------

    async def launch(self, plan: KernelPlan) -> Address:
        """Start a kernel by ``plan``; return the address that clients connect to.

        Reuses the sandbox of the last kernel if it is alive, has an equal plan and may be kept. A
        failed or cancelled start leaves nothing behind: ``close`` waits until all is undone. A
        launch that is under way is ended first: it may wait long, and there is one sandbox.

        :raises StartStopped: when another call has ended this launch
        :raises GvisorKernelError: see ``Runtime.start``
        """
        if self._bridge.ended:
            raise LaunchError("No kernel can be started: this process is exiting.")
        return await self._bridge.run(self._launch(plan))

    async def signal(self, signum: int) -> None:
        """Signal the kernel and its children, if there is a kernel."""
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.run(self._signal(self._kernel, signum))

    async def kill(self) -> None:
        """Kill the kernel, if there is one."""
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.run(self._kernel.kill())

    async def open_call(
        self, content: Mapping[str, object], data: bytes = b"", *, wakes: bool = True
    ) -> SandboxCall:
        """Ask the sandbox's service process something; see ``guest/service_process.py``.

        ``wakes``: let a kernel that hibernates go on for it. Not for what nobody has asked for.

        :raises SandboxError: when no kernel runs, it hibernates, or too many calls are under way
        """
        kernel = self._kernel
        if kernel is None or self._bridge.ended:
            raise SandboxError("The sandbox cannot be asked: this process has no kernel in it.")

        async def begin() -> int:
            await self.hibernation.make_ready(kernel, wakes=wakes)
            return kernel.service.begin(content, data)

        return await SandboxCall.begin(self._bridge, kernel.service, begin())

    async def expect_end(self, restart: bool) -> None:
        """Note that a client's message requested a shutdown: the next exit is expected."""
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.run(self._expect_end(self._kernel, restart))

    async def end_launch(self) -> None:
        """End the launch that is under way, and wait until it is undone. Idempotent."""
        if not self._bridge.ended:
            await self._bridge.run(self._end_launch())

    async def end_sandbox(self) -> None:
        """End the sandbox, but keep clients' sockets for the next launch. Idempotent."""
        self._forget_sandbox()
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.run(self._kernel.end_sandbox())

    async def close(self) -> None:
        """End the kernel and its sandbox, and close clients' sockets. Idempotent."""
        if not self._bridge.ended:
            await self._bridge.run(self._close())
        self._kernel = None
        self._runsc = ""
        self._forget_sandbox()

    def _forget_sandbox(self) -> None:
        if self._last_launch is not None:
            self._last_launch.sandbox = None

    # -- on the bridge's loop --------------------------------------------------------------------

    @staticmethod
    async def _signal(kernel: KernelBridge, signum: int) -> None:
        kernel.signal(signum)

    @staticmethod
    async def _expect_end(kernel: KernelBridge, restart: bool) -> None:
        kernel.shutdowns.announce()
        kernel.expect_end(restart)

    async def _end_launch(self) -> None:
        while (launching := self._launching) is not None:
            self._is_stopped = True
            launching.cancel()
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.wait({launching})
        await self._workers.finish()

    async def _close(self) -> None:
        await self._end_launch()
        if (kernel := self._kernel) is not None and kernel.alive and self._applies_new(kernel):
            await kernel.kill()
        kernel, self._kernel = self._kernel, None
        self._forget_sandbox()
        if kernel is not None:
            await self.hibernation.end(kernel)
            await self._bridge.close_kernel(kernel)

    def _applies_new(self, kernel: KernelBridge) -> bool:
        """Return whether files are applied at the end of this run: its sandbox ends with it."""
        spec = self._plan.spec if self._plan is not None and self._used is not None else DEFAULTS
        return spec.apply == NEW_FILES and not (kernel.run.restarts and spec.restart == "kernel")

    async def _look_last(self, kernel: KernelBridge) -> None:
        if self._apply_new is not None and self._applies_new(kernel):
            await self._apply_new(self)

    def _tell_failed(self, kernel: KernelBridge) -> None:
        if (plan := self._plan) is not None and self._applies_new(kernel):
            words = "the last cell failed or had not ended, so no new file was written"
            log.warning("%s: %s", plan.request.kernel_name, words)

    async def _on_end(self, kernel: KernelBridge, sandbox: LinkedSandbox) -> None:
        """Tell which files end with the sandbox, to those who want to know of its end, too."""
        plan, used = self._plan, self._used
        part = kernel.service.take_left()
        if kernel.asleep:
            return
        if plan is None or used is None or sandbox is not used:
            return
        self._used = None
        facts = replace(self._describe(kernel, used, plan), state="ended")
        if kernel.death is None:
            facts = replace(facts, last_death=None)
        work = partial(tell_end, plan, facts, used, part, self._judge_left, self._logs_death)
        try:
            telling = asyncio.get_running_loop().run_in_executor(None, work)
            await asyncio.wait({telling}, timeout=END_SECONDS)
        except RuntimeError:  # this process is exiting
            return

    async def _launch(self, plan: KernelPlan) -> Address:
        await self._end_launch()
        self._launching, launch = asyncio.current_task(), self._note_launch(plan)
        self._is_stopped = False
        if self._imports is None or self._imports.kind != find_kind(plan):
            self._imports = ImportReports(plan)
        SandboxedKernel._launches += 1
        try:
            make_room(SandboxedKernel._launches)
            with tracing():
                address = await self._launch_or_undo(launch)
            start, self._runsc = launch.start, launch.plan.spec.runsc
            if start.kind != "restart":
                self._start_facts = start
            self._used = launch.sandbox
            self._watch(self._kernel, launch)
            request = plan.request
            KernelEvents.instance().tell(Started(request.kernel_id, request.kernel_name, start))
            return address
        except asyncio.CancelledError as error:
            # Its caller has cancelled nothing: a server would never answer a request that ends so.
            if self._is_stopped:
                raise StartStopped(
                    "The start was cancelled: the kernel was shut down or started again meanwhile."
                ) from error
            raise
        finally:
            SandboxedKernel._launches -= 1
            self._launching = None

    def _note_launch(self, plan: KernelPlan) -> Launch:
        self._last_launch = Launch(plan, self._workers, self.sandbox, tells=self._logs_death)
        return self._last_launch

    async def _launch_or_undo(self, launch: Launch) -> Address:
        if self._runsc:
            spec = replace(launch.plan.spec, runsc=self._runsc)
            launch.plan = replace(launch.plan, spec=spec)
        launch.plan = plan = await self._workers.run(fix_program, launch.plan)
        if self._kernel is not None and self._kernel.identity != plan.identity:
            await self._bridge.close_kernel(self._kernel)
            self._kernel = None
        is_new = self._kernel is None
        if self._kernel is None:
            self._kernel = await self._make_kernel(plan)
        kernel = self._kernel
        try:
            if kernel.alive:  # managers may start a kernel twice without an end in between
                kernel.expect_end(restart=True)
                await kernel.kill()
            await kernel.wait_for_end()
            await self.hibernation.end(kernel)
            if await launch.start_in_kept(kernel, self._plan):
                return kernel.address
            await kernel.end_sandbox()
            self._plan = plan
            self.started = time.time()
            await launch.start_in_new(kernel)
        except BaseException as error:
            launch.sandbox = None
            if is_new:
                self._kernel = None
                undo = self._bridge.close_kernel(kernel)
            else:  # clients and the manager know its address, so keep the sockets for a retry
                undo = kernel.end_sandbox()
            # A second cancellation does not wait here, but ``close`` waits for the undo.
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.shield(self._workers.undo_by(undo))
            if isinstance(error, LaunchError) and not error.hint:
                raise type(error)(error.fact, find_hint(error.detail), error.detail) from error
            raise
        return kernel.address

    async def _answer(self, kernel: KernelBridge, question: bytes) -> bytes:
        report = read_report(question)
        if report is not None:
            if self._imports is not None and self._imports.take(report):
                run_beside(self._imports.count)
            return b""
        return await KeptData.instance().answer(kernel.sandbox, question)

    def _note_death(self, death: Death) -> None:
        self._last_death = death
        if self._plan is not None:
            request = self._plan.request
            KernelEvents.instance().tell(Died(request.kernel_id, request.kernel_name, death))

    async def launch_from(self, plan: KernelPlan, files: Path, run: SnapshotRun) -> Address:
        """Restore a kernel from ``files``, a snapshot that is in no store; only after nothing else.

        :raises NoSnapshot: when it does not answer
        :raises GvisorKernelError: see ``Runtime.start``
        """
        return await self._bridge.run(self._launch_from(plan, files, run))

    def _find_parts(self) -> tuple[KernelBridge, Sandbox | None, KernelPlan]:
        """Return what makes up this kernel, asleep or not.

        :raises LaunchError: when there is none, or it is being started
        """
        kernel, sandbox, plan = self._kernel, self.sandbox, self._plan
        if kernel is None or plan is None or self.find_end() is not None:
            raise LaunchError("There is no kernel that could hibernate.")
        if self._launching is not None:
            raise NotIdle("The kernel is being started.")
        return kernel, sandbox, plan

    async def adopt(self, plan: KernelPlan, saved: SavedKernel) -> Address:
        """Take over a saved kernel in place of the first ``launch``; the first request lets it go
        on. ``plan``: of ``SavedKernel.adapt``.

        :raises LaunchError: when clients cannot connect
        """
        if self._bridge.ended:
            raise LaunchError("No kernel can be taken over: this process is exiting.")
        return await self._bridge.run(self._adopt(plan, saved))

    async def _adopt(self, plan: KernelPlan, saved: SavedKernel) -> Address:
        self._plan = plan
        self._kernel = kernel = await self._make_kernel(plan)
        self._note_launch(plan)
        self.hibernation.adopt(kernel, saved)
        return kernel.address

    async def _wake(self, kernel: KernelBridge, saved: SavedKernel) -> KernelPlan:
        assert self._plan is not None
        plan = self._plan if saved.spec is None else replace(self._plan, spec=saved.spec)
        self._launching, launch = asyncio.current_task(), self._note_launch(plan)
        try:
            with tracing():
                await launch.start_from(kernel, saved.files, saved.run, saved)
            self._plan, self._used = plan, (sandbox := launch.sandbox)
            if sandbox is not None and isinstance(sandbox, SavedSandbox):
                await self._workers.run(sandbox.note_saved, 0.0)
            self._watch(kernel, launch)
            return plan
        finally:
            self._launching = None

    def _watch(self, kernel: KernelBridge | None, launch: Launch) -> None:
        sandbox = launch.sandbox
        if kernel is not None and sandbox is not None and isinstance(sandbox, SavedSandbox):
            self.hibernation.watch(kernel, sandbox, launch.plan)
            self.checkpoints.watch(kernel, launch.plan)

    async def _launch_from(self, plan: KernelPlan, files: Path, run: SnapshotRun) -> Address:
        self._plan, launch = plan, self._note_launch(plan)
        self._kernel = await self._open_kernel(plan)
        await launch.start_from(self._kernel, files, run)
        return self._kernel.address

    async def _make_kernel(self, plan: KernelPlan) -> KernelBridge:
        kernel = await self._open_kernel(plan)
        kernel.outlives = plan.lasts
        kernel.run.logs_death = self._logs_death
        kernel.run.on_death = self._note_death
        kernel.call_before_removal(partial(self._on_end, kernel))
        kernel.last_look.work = partial(self._look_last, kernel)
        kernel.last_look.on_failed = partial(self._tell_failed, kernel)
        if self._keeps_data:
            kernel.service.questions.answer = partial(self._answer, kernel)
        return kernel

    async def _open_kernel(self, plan: KernelPlan) -> KernelBridge:
        return await self._bridge.open_kernel(plan.identity, plan.address, state_root() / "sockets")

    async def checkpoint(self, directory: Path, seconds: float) -> SnapshotRun:
        """Write a snapshot of the idle kernel into ``directory``, within ``seconds``.

        No client may be connected.

        :raises LaunchError: when there is no kernel, or its guest does not answer in time
        :raises SnapshotError: when the snapshot cannot be written
        """
        return await self._bridge.run(self._checkpoint(directory, seconds))

    async def _checkpoint(self, directory: Path, seconds: float) -> SnapshotRun:
        kernel, sandbox, plan = self._kernel, self.sandbox, self._plan
        if kernel is None or sandbox is None or plan is None:
            raise LaunchError("There is no kernel to take a snapshot of.")
        if not isinstance(sandbox, CheckpointedSandbox):
            raise get_runtime(plan.spec.runtime).explain_no_snapshots()
        run = await kernel.quiesce(seconds)
        await self._workers.run(sandbox.checkpoint, directory, seconds)
        return run
