"""One launch of a kernel: in the sandbox of the last one, from a snapshot, or in a new sandbox.

On the bridge's loop. When to launch, and what ends if a launch fails, is in ``session.py``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import nullcontext, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gvisor_kernel.bridge import Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.bridge.link_streams import OpenEgress
from gvisor_kernel.bridge.linked_sandbox import close_sandbox
from gvisor_kernel.config.settings import DEFAULT_RUNTIME
from gvisor_kernel.egress import audit
from gvisor_kernel.egress.process import EgressWorker, Grant
from gvisor_kernel.errors import LaunchError, NoSnapshot, SandboxError, StartTimedOut
from gvisor_kernel.kernel.facts import KernelEvents, Start, StartKind, Waking
from gvisor_kernel.kernel.host_paths import describe_paths
from gvisor_kernel.kernel.learned_modules import learning_variables
from gvisor_kernel.kernel.plan import KernelPlan, kernel_argv, kernel_variables, make_launch_request
from gvisor_kernel.kernel.preparation import SpareKeeper, renew_outdated, request_snapshot
from gvisor_kernel.kernel.restore import Restored, find_obstacle, make_asking_request, restore
from gvisor_kernel.kernel.saved_kernel import SavedKernel
from gvisor_kernel.kernel.workspace import OWN_OUTPUTS, SHOWN, VARIABLE, describe_workspace
from gvisor_kernel.link import ADOPT
from gvisor_kernel.runtimes import get_runtime, get_snapshot_runtime
from gvisor_kernel.runtimes.base import (
    FoundSandbox,
    LaunchRequest,
    Sandbox,
    SavingRuntime,
    SnapshotRuntime,
)
from gvisor_kernel.runtimes.state.saved import find_wake_seconds
from gvisor_kernel.runtimes.waits import hearing, until
from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

RESUME_SECONDS = 15.0
"""Seconds that a restored kernel has to answer. After that a cold one is started instead."""


class Launch:
    """Starts a kernel by ``plan``, once.

    ``sandbox``: that of the last kernel, if there is one. ``tells``: tell the user what the kernel
    lacks. If a method fails or is cancelled, the caller ends the kernel's sandbox.
    """

    def __init__(
        self, plan: KernelPlan, workers: Workers, sandbox: Sandbox | None, *, tells: bool
    ) -> None:
        self.plan = plan
        self.sandbox = sandbox
        """The kernel's sandbox, once there is one. The caller sets it to None when it ends it."""
        self.waits_for = ""
        """The resource that is waited for, if an engine has told."""
        self._way: StartKind = "cold"
        self._began = time.monotonic()
        self._workers = workers
        self._tells = tells

    @property
    def start(self) -> Start:
        """Return the kind of start that is tried, and the seconds since the beginning."""
        return Start(self._way, time.monotonic() - self._began)

    async def start_in_kept(self, kernel: KernelBridge, last: KernelPlan | None) -> bool:
        """Start a kernel in the last one's sandbox. ``last``: the plan by which that was made.

        False if it may not be kept, or if that fails, as it may be broken.
        """
        if not self._may_reuse(kernel, last):
            return False
        self._way = "restart"
        try:
            await self._start(kernel)
        except LaunchError as error:
            log.warning("Could not reuse the sandbox: %s Starting a new one.", error.fact)
            return False
        return True

    def _may_reuse(self, kernel: KernelBridge, last: KernelPlan | None) -> bool:
        return (
            last is not None
            and self.plan.spec.restart == "kernel"
            and kernel.sandbox is not None
            and kernel.sandbox is self.sandbox
            and (self.plan.spec, self.plan.request) == (last.spec, last.request)
        )

    async def start_in_new(self, kernel: KernelBridge) -> None:
        """Start a kernel in another sandbox, from a snapshot if there is one.

        One that does not begin in time is replaced once: on a busy machine that is rare, and
        nothing of a client has run in it.

        :raises GvisorKernelError: see ``Runtime.start``
        """
        try:
            await self._start_in_new(kernel)
        except StartTimedOut as error:
            log.warning("%s: %s Starting another one.", kernel.identity.name, error.fact)
            await kernel.end_sandbox()
            self.sandbox = None
            try:
                await self._start_in_new(kernel)
            except StartTimedOut as again:
                fact = f"{again.fact} Nor did another one."
                raise LaunchError(fact, again.hint, again.detail) from again
            kernel.note(f"this is the second sandbox of the start. The first: {error.fact}")

    async def _start_in_new(self, kernel: KernelBridge) -> None:
        plan, self._way = self.plan, "cold"
        runtime = get_runtime(plan.spec.runtime)
        restores = isinstance(runtime, SnapshotRuntime) or runtime.finds_snapshots
        if plan.spec.snapshot == "off" or not restores:
            await self._make_sandbox(kernel)
        elif (obstacle := find_obstacle(plan)) is not None:
            await self._make_sandbox(kernel)
            kernel.note(f"the kernel starts without a snapshot: {obstacle}")
        else:
            begin = self._restore_there if runtime.finds_snapshots else self._restore
            try:
                await begin(kernel)
                return
            except NoSnapshot as error:
                reason, self._way = error.fact, "cold"
            if not runtime.finds_snapshots:
                await self._make_sandbox(kernel)
            kernel.note(f"the kernel starts without a snapshot: {reason}")
            # For the next kernel of this kind.
            await self._workers.run(
                request_snapshot, plan, self.sandbox, lambda: kernel.death is None
            )
        await self._start(kernel)

    async def start_from(
        self,
        kernel: KernelBridge,
        files: Path,
        run: SnapshotRun,
        saved: SavedKernel | None = None,
    ) -> None:
        """Restore a kernel from ``files``, a snapshot that is in no store.

        ``saved``: goes on from there, in the directory of its own last sandbox.

        :raises NoSnapshot: when it does not answer
        :raises GvisorKernelError: see ``Runtime.start``
        """
        runtime = get_runtime(self.plan.spec.runtime)
        if not isinstance(runtime, SavingRuntime):
            raise runtime.explain_no_snapshots()
        start: Callable[..., Sandbox] = runtime.start
        spec, request = self.plan.spec, make_launch_request(self.plan)
        if saved is not None:
            request = replace(request, saved_in=saved.directory, kept=saved.shown)
            spec = replace(spec, start_timeout=find_wake_seconds(files, spec.start_timeout))
            start, asked = partial(saved.restore, start), self.plan.request
            KernelEvents.instance().tell(Waking(asked.kernel_id, asked.kernel_name))
        # A node has CPUs of its own, and a queue. What the guest does then has no turn to keep.
        is_here = saved is not None and spec.runtime == DEFAULT_RUNTIME
        async with Bridge.instance().restores if is_here else nullcontext():
            sandbox = await self._workers.run(start, spec, request, files)
        await self._resume(kernel, Restored(sandbox, "", run), spec.start_timeout, saved=saved)

    # -- a cold start ----------------------------------------------------------------------------

    async def _make_sandbox(self, kernel: KernelBridge) -> None:
        sandbox = await self._start_sandbox(kernel, make_launch_request(self.plan))
        await self._greet(kernel, sandbox)

    async def _start_sandbox(self, kernel: KernelBridge, request: LaunchRequest) -> Sandbox:
        runtime = get_runtime(self.plan.spec.runtime)
        loop = asyncio.get_running_loop()

        def note_wait(text: str) -> None:
            self.waits_for = text
            with suppress(RuntimeError):  # this process is exiting
                loop.call_soon_threadsafe(kernel.show_wait, text)

        with hearing(note_wait):
            return await self._workers.run(runtime.start, self.plan.spec, request)

    async def _greet(self, kernel: KernelBridge, sandbox: Sandbox) -> None:
        hello = await kernel.attach(
            sandbox, sandbox.log_path, sandbox.view.transcripts, self.plan.spec.start_timeout
        )
        step("guest answered")
        await self._verify(sandbox, dict(hello.facts))
        self.sandbox = sandbox

    @staticmethod
    async def _verify(sandbox: Sandbox, said: dict[str, str] | None = None) -> None:
        await asyncio.get_running_loop().run_in_executor(None, sandbox.verify, said)
        step("sandbox checked from outside")

    async def _start(self, kernel: KernelBridge) -> None:
        plan, sandbox = self.plan, self.sandbox
        assert sandbox is not None
        environment = await self._find_variables(sandbox)
        self._note_outputs(kernel, environment)
        argv, seconds = list(kernel_argv(plan)), plan.spec.start_timeout
        egress = make_egress(kernel, plan, sandbox, self._workers.run)
        await kernel.start_kernel(argv, environment, sandbox.view.workdir, seconds, egress=egress)
        step("kernel's process started")

    async def _find_variables(self, sandbox: Sandbox) -> dict[str, str]:
        plan, describe = self.plan, partial(describe_workspace, tells=self._tells)
        words: dict[str, str] = await self._workers.run(describe, plan.spec, sandbox)
        paths: dict[str, str] = await self._workers.run(describe_paths, plan, sandbox)
        variables = kernel_variables(plan, sandbox.view.environment)
        return {**variables, **words, **paths, **learning_variables(plan)}

    @staticmethod
    def _note_outputs(kernel: KernelBridge, environment: Mapping[str, str]) -> None:
        """Note in the log, which must be open, that /workspace/outputs is not the outputs."""
        if SHOWN not in environment[VARIABLE].split():
            kernel.note(OWN_OUTPUTS)

    # -- a restore -------------------------------------------------------------------------------

    async def _restore(self, kernel: KernelBridge) -> None:
        """Restore the kernel from a snapshot.

        :raises NoSnapshot: when there is none, or when the restored kernel does not answer
        :raises GvisorKernelError: see ``restore``
        """
        plan, self._way = self.plan, "snapshot"
        runtime = get_snapshot_runtime(plan.spec.runtime)

        def take_spare(key: SnapshotKey, run: SnapshotRun) -> Sandbox | None:
            spare = SpareKeeper.instance().take(plan, key, run)
            if spare is not None:
                self._way = "spare"
            return spare

        await self._resume(kernel, await self._workers.run(restore, runtime, plan, take_spare))
        SpareKeeper.instance().request(plan)

    async def _restore_there(self, kernel: KernelBridge) -> None:
        """Start a sandbox whose runtime looks for a snapshot itself, and let its kernel go on.

        :raises NoSnapshot: when there is none, or when the restored kernel does not answer. Then
            there is a sandbox without a kernel.
        :raises GvisorKernelError: see ``Runtime.start``
        """
        sandbox = await self._start_sandbox(kernel, make_asking_request(self.plan))
        found, lacks = None, ""
        if isinstance(sandbox, FoundSandbox):
            found, lacks = sandbox.found, sandbox.lacks
        if found is None:
            await self._greet(kernel, sandbox)
            raise NoSnapshot(lacks or "no snapshot fits")
        self._way = "snapshot"
        try:
            await self._resume(kernel, Restored.find(sandbox, found, self.plan))
        except NoSnapshot:
            request = replace(make_launch_request(self.plan), unfit=found.key)
            await self._greet(kernel, await self._start_sandbox(kernel, request))
            raise

    async def _resume(
        self,
        kernel: KernelBridge,
        restored: Restored,
        seconds: float = RESUME_SECONDS,
        *,
        saved: SavedKernel | None = None,
    ) -> None:
        """Let a restored kernel go on as that of the plan. It has ``seconds`` to answer.

        :raises NoSnapshot: when it does not answer; then its sandbox was closed
        """
        plan, sandbox = self.plan, restored.sandbox
        mode = ADOPT if saved is None else saved.mode
        try:
            if saved is not None:
                await self._workers.run(saved.check_mapped, sandbox)
            await self._verify(sandbox)  # before it gets any message of a client
            environment = await self._find_variables(sandbox)
            await kernel.attach_restored(
                sandbox,
                sandbox.log_path,
                sandbox.view.transcripts,
                restored.run,
                environment,
                sandbox.view.workdir,
                min(RESUME_SECONDS, plan.spec.start_timeout) if mode == ADOPT else seconds,
                egress=make_egress(kernel, plan, sandbox, self._workers.run),
                mode=mode,
            )
            self._note_outputs(kernel, environment)
            step("kernel adopted its key and environment")
        except BaseException as error:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.shield(self._workers.undo_by(give_up(kernel, restored, error)))
            if not isinstance(error, SandboxError):
                raise
            raise NoSnapshot(error.fact, error.hint, error.detail) from error
        self.sandbox = sandbox
        run_beside(renew_outdated, plan, restored, lambda: kernel.death is None)


# -- workers ---------------------------------------------------------------------------------------
# Work of one kernel that blocks; and what undoes it if nobody waits for it any more.


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


# -- the socket for the streams of a kernel's run, which its plan's routes serve -------------------
# The bridge opens it, when a program in the sandbox connects first.


def make_egress(
    kernel: KernelBridge,
    plan: KernelPlan,
    sandbox: Sandbox,
    in_worker: Callable[..., Awaitable[socket.socket]],
) -> OpenEgress | None:
    """Return what opens a socket for the streams of a run by ``plan``; None without routes.

    ``in_worker``: calls a function that blocks in a worker. Called on the bridge's loop.
    """
    if not plan.routes:
        return None
    loop = asyncio.get_running_loop()

    def write_log(line: str) -> None:
        loop.call_soon_threadsafe(kernel.note_egress, line)

    def show_refused(text: str) -> None:
        loop.call_soon_threadsafe(kernel.show_refused, text)

    record = sandbox.log_path.with_name(audit.FILE)
    grant = Grant(plan.identity.name, plan.routes, record, plan.door, show_refused)

    async def open_egress() -> socket.socket:
        return await in_worker(EgressWorker.instance().open, grant, write_log)

    return open_egress


def find_opener(sandbox: Sandbox) -> Callable[[], socket.socket]:
    """Return what opens one more socket that the routes of the kernel in ``sandbox`` serve; see
    ``EgressWorker.open``. The socket ends at once if no kernel with routes runs there."""
    grant = Grant("", (), sandbox.log_path.with_name(audit.FILE), is_beside=True)
    return partial(EgressWorker.instance().open, grant, lambda _: None)
