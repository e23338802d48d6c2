"""One sandboxed kernel: connects a runtime's sandbox with the bridge's client sockets.

The provisioner and the launcher use it. Each method may be awaited on any loop; the work runs on
the bridge's loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gvisor_kernel.bridge import Address, Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.bridge.deaths import classify
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.errors import LaunchError, NoSnapshot, SandboxError, StartStopped
from gvisor_kernel.kernel.ahead import renew_outdated, request_snapshot
from gvisor_kernel.kernel.endings import JudgeLeft, tell_end
from gvisor_kernel.kernel.facts import (
    Death,
    Died,
    Happenings,
    KernelFacts,
    Start,
    Started,
    StartKind,
    State,
)
from gvisor_kernel.kernel.kept_data import KeptData
from gvisor_kernel.kernel.learned_modules import ImportReports, learning_variables, read_report
from gvisor_kernel.kernel.plan import KernelPlan, kernel_argv, kernel_variables, make_launch_request
from gvisor_kernel.kernel.restore import Restored, find_obstacle, make_asking_request, restore
from gvisor_kernel.kernel.run_egress import make_egress
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.kernel.spare_keeper import SpareKeeper
from gvisor_kernel.kernel.undoing import close_started, give_up
from gvisor_kernel.kernel.workspace import (
    OWN_OUTPUTS,
    SHOWN,
    VARIABLE,
    describe_workspace,
    find_host_path,
)
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest, Sandbox
from gvisor_kernel.runtimes.state.records import state_root
from gvisor_kernel.runtimes.waits import hearing, until
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.tracing import step, tracing

T = TypeVar("T")
log = logging.getLogger(__name__)

END_SECONDS = 1.0
"""How long those who are told of a sandbox's end may read its files before they are removed."""

RESUME_SECONDS = 15.0
"""How long a restored kernel has to answer. After that a cold one is started instead."""


class SandboxedKernel:
    """At most one kernel in at most one sandbox. ``launch`` may replace both.

    ``logs_death``: log why a kernel died. A command that reports ``find_end`` as its own error sets
    it to False, so that it does not print the reason twice. ``judge_left`` leaves out files that
    are on disk already; without it, what the sandbox says is told. ``keeps_data``: whether code in
    the sandbox may keep data as pages do; not where it is nobody's kernel.
    """

    def __init__(
        self,
        *,
        logs_death: bool = True,
        judge_left: JudgeLeft | None = None,
        keeps_data: bool = True,
    ) -> None:
        self._logs_death = logs_death
        self._keeps_data = keeps_data
        self._judge_left = judge_left
        self._bridge = Bridge.instance()
        self._kernel: KernelBridge | None = None
        self._sandbox: Sandbox | None = None
        self._plan: KernelPlan | None = None
        self._launching: asyncio.Task[Any] | None = None
        self._is_stopped = False
        """Whether another call has ended the launch that is under way."""
        self.started = 0.0
        """Unix time at which the sandbox was started for this kernel."""
        self._undoing: set[asyncio.Task[None]] = set()
        self._planned: KernelPlan | None = None
        """The plan of the last launch, also of one that is under way or has failed."""
        self._way: StartKind = "cold"
        self._waits_for = ""
        """What the launch that is under way waits for, if an engine has told."""
        self._launch_began = 0.0
        """How the launch that is under way starts its kernel."""
        self._start_facts: Start | None = None
        self._last_death: Death | None = None
        self._used: Sandbox | None = None
        """A sandbox in which a kernel was started, and of whose end nobody was told yet."""
        self._imports: ImportReports | None = None
        """What the kernel of the last launch has reported to import."""

    # -- state, from any thread ------------------------------------------------------------------

    @property
    def exit_status(self) -> int | None:
        """None while the kernel lives, else its status; 0 if this process has no kernel."""
        if self._kernel is None:
            return 0
        if self._bridge.ended:
            return self._kernel.exit_status or 0
        return None if self._kernel.alive else (self._kernel.exit_status or 0)

    def find_end(self) -> str | None:
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
        return self._sandbox

    def describe(self) -> KernelFacts | None:
        """Return what is known of the kernel and its sandbox; None before the first launch."""
        if self._planned is None:
            return None
        return self._describe(self._kernel, self._sandbox, self._planned)

    def _describe(
        self, kernel: KernelBridge | None, sandbox: Sandbox | None, plan: KernelPlan
    ) -> KernelFacts:
        state: State = "ended"
        start = self._start_facts
        if self._launching is not None:
            state = "starting"
            start = Start(self._way, time.monotonic() - self._launch_began)
        elif kernel is not None and kernel.alive:
            state = "stopped" if kernel.paused else "running"
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
            waits_for=self._waits_for if state == "starting" else "",
        )
        if sandbox is None:
            return facts
        return replace(
            facts,
            identity=sandbox.identity,
            node=sandbox.node,
            directory=sandbox.directory,
            mounts=tuple(sandbox.mounts),
            transcripts=sandbox.transcripts is not None,
            memory_used=kernel.memory_used if kernel is not None else None,
            processes=stats.processes if stats is not None else None,
        )

    def host_path(self, path: str) -> Path | None:
        """Return the host's path of the mounted file that the kernel knows as ``path``.

        Returns None if it is not mounted, or if a symbolic link leads out of the mount.
        """
        return find_host_path(self._sandbox, path) if self._sandbox is not None else None

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

    async def open_call(self, content: Mapping[str, object], data: bytes = b"") -> SandboxCall:
        """Ask the sandbox's service process something; see ``guest/service_process.py``.

        :raises SandboxError: when no kernel runs, or too many calls are under way
        """
        if self._kernel is None or self._bridge.ended:
            raise SandboxError("The sandbox cannot be asked: this process has no kernel in it.")
        return await SandboxCall.begin(self._bridge, self._kernel.service, content, data)

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
        self._sandbox = None
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.run(self._kernel.end_sandbox())

    async def close(self) -> None:
        """End the kernel and its sandbox, and close clients' sockets. Idempotent."""
        if not self._bridge.ended:
            await self._bridge.run(self._close())
        self._kernel = self._sandbox = None

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
            await asyncio.wait({launching})
        if self._undoing:
            await asyncio.wait(self._undoing)

    async def _close(self) -> None:
        await self._end_launch()
        kernel, self._kernel, self._sandbox = self._kernel, None, None
        if kernel is not None:
            await self._bridge.close_kernel(kernel)

    async def _on_end(self, kernel: KernelBridge, sandbox: LinkedSandbox) -> None:
        """Tell which files end with the sandbox, to those who want to know of its end, too."""
        plan, used = self._plan, self._used
        part = kernel.service.take_left()
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
        self._launching, self._planned = asyncio.current_task(), plan
        self._is_stopped = False
        self._imports = ImportReports(plan)
        began = self._launch_began = time.monotonic()
        try:
            with tracing():
                address = await self._launch_or_undo(plan)
            start = Start(self._way, time.monotonic() - began)
            if start.kind != "restart":
                self._start_facts = start
            self._used = self._sandbox
            request = plan.request
            Happenings.instance().tell(Started(request.kernel_id, request.kernel_name, start))
            return address
        except asyncio.CancelledError as error:
            # Its caller has cancelled nothing: a server would never answer a request that ends so.
            if self._is_stopped:
                raise StartStopped(
                    "The start was cancelled: the kernel was shut down or started again meanwhile."
                ) from error
            raise
        finally:
            self._launching = None

    async def _launch_or_undo(self, plan: KernelPlan) -> Address:
        if self._kernel is not None and self._kernel.identity != plan.identity:
            await self._bridge.close_kernel(self._kernel)
            self._kernel = None
        is_new = self._kernel is None
        if self._kernel is None:
            root = state_root() / "sockets"
            self._kernel = await self._bridge.open_kernel(plan.identity, plan.address, root)
            self._kernel.run.logs_death = self._logs_death
            self._kernel.run.on_death = self._note_death
            self._kernel.call_before_removal(partial(self._on_end, self._kernel))
            if self._keeps_data:
                self._kernel.service.questions.answer = partial(self._answer, self._kernel)
        kernel = self._kernel
        try:
            if kernel.alive:  # managers may start a kernel twice without an end in between
                kernel.expect_end(restart=True)
                await kernel.kill()
            await kernel.wait_for_end()
            self._way = "restart"
            if self._may_reuse(kernel, plan) and await self._start_in_kept_sandbox(kernel, plan):
                return kernel.address
            await kernel.end_sandbox()
            self._plan, self._way = plan, "cold"
            self.started = time.time()
            runtime = get_runtime(plan.spec.runtime)
            restores = runtime.supports_snapshots or runtime.finds_snapshots
            if plan.spec.snapshot == "off" or not restores:
                self._sandbox = await self._new_sandbox(kernel, plan)
            elif (obstacle := find_obstacle(plan)) is not None:
                self._sandbox = await self._new_sandbox(kernel, plan)
                kernel.note(f"the kernel starts without a snapshot: {obstacle}")
            else:
                begin = self._restore_there if runtime.finds_snapshots else self._restore
                try:
                    await begin(kernel, plan)
                    return kernel.address
                except NoSnapshot as error:
                    reason, self._way = error.fact, "cold"
                if not runtime.finds_snapshots:
                    self._sandbox = await self._new_sandbox(kernel, plan)
                kernel.note(f"the kernel starts without a snapshot: {reason}")
                # For the next kernel of this kind.
                await self._in_worker(
                    request_snapshot, plan, self._sandbox, lambda: kernel.death is None
                )
            await self._start(kernel, plan)
        except BaseException as error:
            self._sandbox = None
            if is_new:
                self._kernel = None
                undo = self._bridge.close_kernel(kernel)
            else:  # clients and the manager know its address, so keep the sockets for a retry
                undo = kernel.end_sandbox()
            # A second cancellation does not wait here, but ``close`` waits for the undo.
            await asyncio.shield(self._undo_by(undo))
            if isinstance(error, LaunchError) and not error.hint:
                hint = get_runtime(plan.spec.runtime).find_advice(error.detail)
                raise type(error)(error.fact, hint, error.detail) from error
            raise
        return kernel.address

    async def _answer(self, kernel: KernelBridge, question: bytes) -> bytes:
        report = read_report(question)
        if report is not None:
            if self._imports is not None and self._imports.take(report):
                self._beside(self._imports.count)
            return b""
        return await KeptData.instance().answer(kernel.sandbox, question)

    def _note_death(self, reason: str) -> None:
        self._last_death = death = Death(time.time(), classify(reason), reason)
        if self._plan is not None:
            request = self._plan.request
            Happenings.instance().tell(Died(request.kernel_id, request.kernel_name, death))

    async def _start(self, kernel: KernelBridge, plan: KernelPlan) -> None:
        sandbox = self._sandbox
        assert sandbox is not None
        environment = await self._find_variables(plan, sandbox)
        self._note_outputs(kernel, environment)
        argv, seconds = list(kernel_argv(plan)), plan.spec.start_timeout
        egress = make_egress(kernel, plan, sandbox, self._in_worker)
        await kernel.start_kernel(argv, environment, sandbox.workdir, seconds, egress=egress)
        step("kernel's process started")

    async def _find_variables(self, plan: KernelPlan, sandbox: Sandbox) -> dict[str, str]:
        describe = partial(describe_workspace, tells=self._logs_death)
        words: dict[str, str] = await self._in_worker(describe, plan.spec, sandbox)
        learning = learning_variables(plan)
        return {**kernel_variables(plan, sandbox.kernel_environment), **words, **learning}

    @staticmethod
    def _note_outputs(kernel: KernelBridge, environment: Mapping[str, str]) -> None:
        """Note in the log, which must be open, that /workspace/outputs is not the outputs."""
        if SHOWN not in environment[VARIABLE].split():
            kernel.note(OWN_OUTPUTS)

    async def _start_in_kept_sandbox(self, kernel: KernelBridge, plan: KernelPlan) -> bool:
        """Start a kernel in the last one's sandbox; False if that fails, as it may be broken."""
        try:
            await self._start(kernel, plan)
        except LaunchError as error:
            log.warning("Could not reuse the sandbox: %s Starting a new one.", error.fact)
            return False
        return True

    def _may_reuse(self, kernel: KernelBridge, plan: KernelPlan) -> bool:
        return (
            self._plan is not None
            and plan.spec.restart == "kernel"
            and kernel.sandbox is not None
            and kernel.sandbox is self._sandbox
            and (plan.spec, plan.request) == (self._plan.spec, self._plan.request)
        )

    async def _restore(self, kernel: KernelBridge, plan: KernelPlan) -> None:
        """Restore the kernel from a snapshot.

        :raises NoSnapshot: when there is none, or when the restored kernel does not answer
        :raises GvisorKernelError: see ``restore``
        """
        runtime = get_runtime(plan.spec.runtime)
        self._way = "snapshot"

        def take_spare(key: SnapshotKey, run: SnapshotRun) -> Sandbox | None:
            spare = SpareKeeper.instance().take(plan, key, run)
            if spare is not None:
                self._way = "spare"
            return spare

        await self._resume(kernel, plan, await self._in_worker(restore, runtime, plan, take_spare))
        SpareKeeper.instance().request(plan)

    async def _restore_there(self, kernel: KernelBridge, plan: KernelPlan) -> None:
        """Start a sandbox whose runtime looks for a snapshot itself, and let its kernel go on.

        :raises NoSnapshot: when there is none, or when the restored kernel does not answer. Then
            there is a sandbox without a kernel.
        :raises GvisorKernelError: see ``Runtime.start``
        """
        sandbox = await self._start_sandbox(kernel, plan, make_asking_request(plan))
        found = sandbox.found
        if found is None:
            self._sandbox = await self._greet(kernel, plan, sandbox)
            raise NoSnapshot(sandbox.lacks or "no snapshot fits")
        self._way = "snapshot"
        try:
            await self._resume(kernel, plan, Restored.find(sandbox, found, plan))
        except NoSnapshot:
            request = replace(make_launch_request(plan), unfit=found.key)
            sandbox = await self._start_sandbox(kernel, plan, request)
            self._sandbox = await self._greet(kernel, plan, sandbox)
            raise

    async def _resume(self, kernel: KernelBridge, plan: KernelPlan, restored: Restored) -> None:
        """Let a restored kernel go on as that of ``plan``.

        :raises NoSnapshot: when it does not answer; then its sandbox was closed
        """
        sandbox = restored.sandbox
        try:
            await self._verify(sandbox)  # before it gets any message of a client
            environment = await self._find_variables(plan, sandbox)
            await kernel.attach_restored(
                sandbox,
                sandbox.log_path,
                sandbox.transcripts,
                restored.run,
                environment,
                sandbox.workdir,
                min(RESUME_SECONDS, plan.spec.start_timeout),
                egress=make_egress(kernel, plan, sandbox, self._in_worker),
            )
            self._note_outputs(kernel, environment)
            step("kernel adopted its key and environment")
        except BaseException as error:
            await asyncio.shield(self._undo_by(give_up(kernel, restored, error)))
            if not isinstance(error, SandboxError):
                raise
            raise NoSnapshot(str(error)) from error
        self._sandbox = sandbox
        self._beside(renew_outdated, plan, restored, lambda: kernel.death is None)

    @staticmethod
    def _beside(work: Callable[..., None], *arguments: Any) -> None:
        """Run ``work``, which raises nothing, in a worker for which nobody waits."""
        with suppress(RuntimeError):  # this process is exiting
            asyncio.get_running_loop().run_in_executor(None, work, *arguments)

    async def _new_sandbox(self, kernel: KernelBridge, plan: KernelPlan) -> Sandbox:
        sandbox = await self._start_sandbox(kernel, plan, make_launch_request(plan))
        return await self._greet(kernel, plan, sandbox)

    async def _start_sandbox(
        self, kernel: KernelBridge, plan: KernelPlan, request: LaunchRequest
    ) -> Sandbox:
        runtime = get_runtime(plan.spec.runtime)
        loop = asyncio.get_running_loop()

        def note_wait(text: str) -> None:
            self._waits_for = text
            with suppress(RuntimeError):  # this process is exiting
                loop.call_soon_threadsafe(kernel.show_wait, text)

        with hearing(note_wait):
            return await self._in_worker(runtime.start, plan.spec, request)

    async def _greet(self, kernel: KernelBridge, plan: KernelPlan, sandbox: Sandbox) -> Sandbox:
        hello = await kernel.attach(
            sandbox, sandbox.log_path, sandbox.transcripts, plan.spec.start_timeout
        )
        step("guest answered")
        await self._verify(sandbox, dict(hello.facts))
        return sandbox

    @staticmethod
    async def _verify(sandbox: Sandbox, said: dict[str, str] | None = None) -> None:
        await asyncio.get_running_loop().run_in_executor(None, sandbox.verify, said)
        step("sandbox checked from outside")

    async def _in_worker(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run ``work`` in a worker. On cancellation, close the sandbox that it starts."""
        loop = asyncio.get_running_loop()
        given_up = threading.Event()
        try:
            with until(given_up):
                starting = loop.run_in_executor(None, copy_context().run, work, *arguments)
        except RuntimeError as error:  # the executor has shut down: this process is exiting
            raise LaunchError(f"No kernel can be started: {error}.") from error
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            given_up.set()
            self._undo_by(close_started(starting))
            raise

    def _undo_by(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        undoing = asyncio.get_running_loop().create_task(work)
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        return undoing

    async def launch_from(self, plan: KernelPlan, files: Path, run: SnapshotRun) -> Address:
        """Restore a kernel from ``files``, a snapshot that is in no store; only after nothing else.

        :raises NoSnapshot: when it does not answer
        :raises GvisorKernelError: see ``Runtime.start``
        """
        return await self._bridge.run(self._launch_from(plan, files, run))

    async def _launch_from(self, plan: KernelPlan, files: Path, run: SnapshotRun) -> Address:
        self._plan = self._planned = plan
        root = state_root() / "sockets"
        kernel = self._kernel = await self._bridge.open_kernel(plan.identity, plan.address, root)
        start = get_runtime(plan.spec.runtime).start
        sandbox = await self._in_worker(start, plan.spec, make_launch_request(plan), files)
        await self._resume(kernel, plan, Restored(sandbox, "", run))
        return kernel.address

    async def checkpoint(self, directory: Path, seconds: float) -> SnapshotRun:
        """Write a snapshot of the idle kernel into ``directory``, within ``seconds``.

        The sandbox ends. No client may be connected.

        :raises LaunchError: when there is no kernel, or its guest does not answer in time
        :raises SnapshotError: when the snapshot cannot be written
        """
        return await self._bridge.run(self._checkpoint(directory, seconds))

    async def _checkpoint(self, directory: Path, seconds: float) -> SnapshotRun:
        kernel, sandbox, plan = self._kernel, self._sandbox, self._plan
        if kernel is None or sandbox is None or plan is None:
            raise LaunchError("There is no kernel to take a snapshot of.")
        run = await kernel.quiesce(seconds)
        # The sandbox ends when the snapshot is written. Keep its state as for a restart: its
        # removal would kill the checkpoint command, whose status is still needed.
        kernel.expect_end(restart=True)
        await self._in_worker(sandbox.checkpoint, directory, seconds)
        return run
