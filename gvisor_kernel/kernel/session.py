"""One sandboxed kernel: a runtime's sandbox and the bridge's sockets, brought together.

Used by the provisioner and by the launcher, which differ only in who asks. Every method may be
awaited on any loop: the work is done on the bridge's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gvisor_kernel.bridge import Address, Bridge, KernelBridge, SnapshotRun
from gvisor_kernel.bridge.sandbox_link import close_sandbox
from gvisor_kernel.errors import LaunchError, NoSnapshot, SandboxError
from gvisor_kernel.kernel.background_builder import SnapshotBuilder
from gvisor_kernel.kernel.plan import KernelPlan, full_request, kernel_argv
from gvisor_kernel.kernel.restore import Restored, find_obstacle, restore
from gvisor_kernel.kernel.warm_pool import Spares
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import MountView, Sandbox
from gvisor_kernel.runtimes.state.records import state_root
from gvisor_kernel.tracing import step, tracing

T = TypeVar("T")
log = logging.getLogger(__name__)

VIEWED_IN_WORKSPACE = "/mnt/user-data/uploads"
RESUME_SECONDS = 15.0
"""How long a restored kernel has to answer; then a cold one is started instead."""


class SandboxedKernel:
    """At most one kernel at a time, in at most one sandbox; both may be renewed by ``launch``."""

    def __init__(self) -> None:
        self._bridge = Bridge.instance()
        self._kernel: KernelBridge | None = None
        self._sandbox: Sandbox | None = None
        self._plan: KernelPlan | None = None
        self._launching: asyncio.Task[Any] | None = None
        self._undoing: set[asyncio.Task[None]] = set()

    # -- state, from any thread ------------------------------------------------------------------

    @property
    def exit_status(self) -> int | None:
        """None while the kernel lives; 0 when there is none, or when it is another process's."""
        if self._kernel is None:
            return 0
        if self._bridge.ended:
            return self._kernel.exit_status or 0
        return None if self._kernel.alive else (self._kernel.exit_status or 0)

    @property
    def address(self) -> Address | None:
        return self._kernel.address if self._kernel is not None else None

    @property
    def sandbox(self) -> Sandbox | None:
        return self._sandbox

    def host_path(self, path: str) -> Path | None:
        """The host's path of a file that the kernel calls ``path``, where it is mounted.

        None for all else, also for what leads out of its mount (a link planted inside).
        """
        if self._sandbox is None or "\0" in path:
            return None
        inside = Path(self._sandbox.workdir, path)
        if ".." in inside.parts:
            return None
        views = list(self._sandbox.mounts)
        views += [
            MountView(view.source, self._sandbox.workdir, True)
            for view in views
            if view.target == VIEWED_IN_WORKSPACE
        ]
        for view in views:
            if inside.is_relative_to(view.target):
                try:
                    root = Path(view.source).resolve(strict=True)
                    found = (root / inside.relative_to(view.target)).resolve(strict=True)
                except (OSError, RuntimeError):
                    continue
                if found.is_relative_to(root):
                    return found
        return None

    # -- actions, from any loop; quiet once this process's bridge has ended ------------------------

    async def launch(self, plan: KernelPlan) -> Address:
        """Start a kernel by ``plan``; returns where clients connect.

        In the sandbox of the last one, where that stands, was made by an equal plan and may be
        kept. Raises what ``Runtime.start`` raises; nothing is left behind then, nor when this is
        cancelled: ``close`` waits until all is undone.
        """
        if self._bridge.ended:
            raise LaunchError("No kernel can be started any more: this process ends.")
        return await self._bridge.awaited(self._launch(plan))

    async def signal(self, signum: int) -> None:
        """Signal the kernel and its children; quiet when there are none."""
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.awaited(self._signal(self._kernel, signum))

    async def kill(self) -> None:
        """End the kernel at once; quiet when there is none."""
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.awaited(self._kernel.kill())

    async def expect_end(self, restart: bool) -> None:
        """A shutdown was requested by a client's message: the exit to come is no accident."""
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.awaited(self._expect_end(self._kernel, restart))

    async def end_sandbox(self) -> None:
        """End the sandbox; clients' sockets stay for the next launch. Idempotent."""
        self._sandbox = None
        if self._kernel is not None and not self._bridge.ended:
            await self._bridge.awaited(self._kernel.end_sandbox())

    async def close(self) -> None:
        """End all and remove all. Idempotent."""
        if not self._bridge.ended:
            await self._bridge.awaited(self._close())
        self._kernel = self._sandbox = None

    # -- on the bridge's loop --------------------------------------------------------------------

    @staticmethod
    async def _signal(kernel: KernelBridge, signum: int) -> None:
        kernel.signal(signum)

    @staticmethod
    async def _expect_end(kernel: KernelBridge, restart: bool) -> None:
        kernel.shutdowns.announce()
        kernel.expect_end(restart)

    async def _close(self) -> None:
        launching = self._launching
        if launching is not None:
            launching.cancel()
            await asyncio.wait({launching})
        if self._undoing:
            await asyncio.wait(self._undoing)
        kernel, self._kernel, self._sandbox = self._kernel, None, None
        if kernel is not None:
            await self._bridge.close_kernel(kernel)

    async def _launch(self, plan: KernelPlan) -> Address:
        self._launching = asyncio.current_task()
        try:
            with tracing():
                return await self._launch_or_undo(plan)
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
        kernel = self._kernel
        try:
            if kernel.alive:  # started twice without an end between, as managers allow
                kernel.expect_end(restart=True)
                await kernel.kill()
            await kernel.settle()
            if self._may_reuse(kernel, plan) and await self._start_again(kernel, plan):
                return kernel.address
            await kernel.end_sandbox()
            self._plan = plan
            if plan.spec.snapshot == "off" or not get_runtime(plan.spec.runtime).restores:
                self._sandbox = await self._new_sandbox(kernel, plan)
            elif (obstacle := find_obstacle(plan)) is not None:
                self._sandbox = await self._new_sandbox(kernel, plan)
                kernel.note(f"the kernel starts without an image: {obstacle}")
            else:
                try:
                    await self._restore(kernel, plan)
                    return kernel.address
                except NoSnapshot as error:
                    reason = error.fact
                self._sandbox = await self._new_sandbox(kernel, plan)
                kernel.note(f"the kernel starts without an image: {reason}")
                # For the next one of this kind.
                SnapshotBuilder.instance().want(plan)
            await self._start(kernel, plan)
        except BaseException as error:
            self._sandbox = None
            if is_new:
                self._kernel = None
                undo = self._bridge.close_kernel(kernel)
            else:  # its clients, and its manager, know where it was: it can be tried again there
                undo = kernel.end_sandbox()
            # Whoever cancels twice does not wait here; ``close`` does, for all that is undone.
            await asyncio.shield(self._undo_by(undo))
            if isinstance(error, LaunchError) and not error.hint:
                hint = get_runtime(plan.spec.runtime).advise(error.detail)
                raise type(error)(error.fact, hint, error.detail) from error
            raise
        return kernel.address

    async def _start(self, kernel: KernelBridge, plan: KernelPlan) -> None:
        sandbox = self._sandbox
        assert sandbox is not None
        environment = {**sandbox.kernel_environment, **plan.environment}
        argv, seconds = list(kernel_argv(plan)), plan.spec.start_timeout
        await kernel.start_kernel(argv, environment, sandbox.workdir, seconds)
        step("kernel's process started")

    async def _start_again(self, kernel: KernelBridge, plan: KernelPlan) -> bool:
        """Whether a kernel starts in the sandbox of the last one, which may have spoilt it."""
        try:
            await self._start(kernel, plan)
        except LaunchError as error:
            log.warning("A kernel starts in a new sandbox. In that of the last one: %s", error.fact)
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
        """Let the kernel go on from an image. Raises NoSnapshot, and what ``restore`` raises."""
        runtime = get_runtime(plan.spec.runtime)
        take_spare = partial(Spares.instance().take, plan)
        restored = await self._in_worker(restore, runtime, plan, take_spare)
        sandbox = restored.sandbox
        try:
            await self._verify(sandbox)  # before anything of a client's gets there
            await kernel.attach_restored(
                sandbox,
                sandbox.log_path,
                sandbox.transcripts,
                restored.run,
                {**sandbox.kernel_environment, **plan.environment},
                sandbox.workdir,
                min(RESUME_SECONDS, plan.spec.start_timeout),
            )
            step("kernel told who it is")
        except BaseException as error:
            await asyncio.shield(self._undo_by(self._give_up(kernel, restored, error)))
            if not isinstance(error, SandboxError):
                raise
            raise NoSnapshot(str(error)) from error
        self._sandbox = sandbox
        Spares.instance().want(plan)

    @staticmethod
    async def _give_up(kernel: KernelBridge, restored: Restored, error: BaseException) -> None:
        await kernel.end_sandbox()
        await close_sandbox(restored.sandbox)  # if the bridge has not even taken it over
        if not isinstance(error, SandboxError):
            return  # it says nothing of the image: the start was cancelled, for one
        with suppress(RuntimeError):  # this process is ending
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, restored.discard, str(error))

    async def _new_sandbox(self, kernel: KernelBridge, plan: KernelPlan) -> Sandbox:
        runtime = get_runtime(plan.spec.runtime)
        sandbox = await self._in_worker(runtime.start, plan.spec, full_request(plan))
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
        """``work`` in a worker; when this is cancelled, a sandbox that it started is closed."""
        loop = asyncio.get_running_loop()
        try:
            starting = loop.run_in_executor(None, copy_context().run, work, *arguments)
        except RuntimeError as error:  # the executor: this process is ending
            raise LaunchError(f"No kernel can be started any more: {error}.") from error
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._undo_by(self._undo(starting))
            raise

    def _undo_by(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        undoing = asyncio.get_running_loop().create_task(work)
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        return undoing

    async def checkpoint(self, directory: Path, seconds: float) -> SnapshotRun:
        """Write the image of the idle kernel into ``directory``; its sandbox ends.

        Nobody may be connected to it. Raises LaunchError, SnapshotError.
        """
        return await self._bridge.awaited(self._checkpoint(directory, seconds))

    async def _checkpoint(self, directory: Path, seconds: float) -> SnapshotRun:
        kernel, sandbox, plan = self._kernel, self._sandbox, self._plan
        if kernel is None or sandbox is None or plan is None:
            raise LaunchError("There is no kernel to take an image of.")
        run = await kernel.quiesce(seconds)
        # The sandbox ends with the writing. What is left of it stays, as it does for a restart:
        # removed at once, it would take along the command that still has to say how it went.
        kernel.expect_end(restart=True)
        await self._in_worker(sandbox.checkpoint, directory, seconds)
        return run

    @staticmethod
    async def _undo(starting: asyncio.Future[Any]) -> None:
        with suppress(Exception):  # then nothing was started
            started = await starting
            sandbox = started.sandbox if isinstance(started, Restored) else started
            if isinstance(sandbox, Sandbox):
                await close_sandbox(sandbox)
