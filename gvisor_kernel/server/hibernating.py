"""When a server lets its kernels hibernate: instead of culling them, and as it stops.

What hibernation is, is in ``kernel/hibernation``; which sessions a kernel had, in
``saved_sessions``. On the server's loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.kernel.facts import Hibernated, KernelEvent, KernelEvents
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.server.sandboxes import Sandboxes
from gvisor_kernel.server.saved_sessions import (
    SavedSession,
    list_sessions,
    take_back,
    write_sessions,
)
from gvisor_kernel.shown_text import printable

log = logging.getLogger(__name__)

STOP_SECONDS = 75.0
"""Seconds that a server's stop may take for all kernels: a service manager kills it after 90."""
KERNEL_SECONDS = 30.0
"""The same for one kernel. The next one is begun then."""
BEGIN_SECONDS = 20.0
"""Seconds that a server's start waits until kernels are taken back; the rest follows."""


class Hibernating:
    """The hibernation of one server's kernels."""

    def __init__(self, application: Any, sandboxes: Sandboxes, *, leaves: bool) -> None:
        """``leaves``: leave kernels to the next server of this root, and take them back."""
        self._application = application
        self._manager = application.kernel_manager
        self._sandboxes = sandboxes
        self._leaves = leaves
        self._culled: ContextVar[str] = ContextVar("culled", default="")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: asyncio.Task[None] | None = None

    # -- the start -------------------------------------------------------------------------------

    def load(self) -> None:
        """Take kernels and sessions back before the server listens. Called as it loads."""
        if not self._leaves:
            return
        try:
            asyncio.get_running_loop()
            self._keep(take_back(self._application))
        except RuntimeError:  # the usual case: nothing runs yet
            self._application.io_loop.run_sync(self._load)

    async def _load(self) -> None:
        await asyncio.wait({self._keep(take_back(self._application))}, timeout=BEGIN_SECONDS)

    def start(self) -> None:
        """Begin to note the sessions of kernels that hibernate."""
        self._loop = asyncio.get_running_loop()
        if self._leaves:
            KernelEvents.instance().watch(self._on_event)

    def _on_event(self, event: KernelEvent) -> None:
        """Called on the bridge's loop."""
        if isinstance(event, Hibernated) and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._begin_note, event.kernel_id)
            except RuntimeError:  # the server's loop is closed
                KernelEvents.instance().unwatch(self._on_event)

    def _begin_note(self, kernel_id: str) -> None:
        self._keep(self._note(kernel_id))

    async def _note(self, kernel_id: str) -> None:
        kernel = self._sandboxes.find_kernel(kernel_id)
        facts = None if kernel is None else kernel.describe()
        if facts is not None and facts.directory is not None and facts.saved is not None:
            await self._write(kernel_id, facts.directory, await self._list())

    async def _list(self) -> dict[str, list[SavedSession]]:
        try:
            return await list_sessions(self._application.session_manager)
        except Exception as error:  # a manager of another package
            log.warning("The sessions of kernels that hibernate are not kept: %s", error)
            return {}

    async def _write(
        self, kernel_id: str, directory: Path, sessions: Mapping[str, list[SavedSession]]
    ) -> None:
        own, root = sessions.get(kernel_id, []), self._manager.root_dir
        await asyncio.to_thread(write_sessions, directory, root, own)

    def _keep(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- culling ---------------------------------------------------------------------------------

    def replace_culling(self) -> None:
        """Let a kernel that the server culls hibernate instead; one that cannot is culled."""
        manager, application = self._manager, self._application
        cull, shut_down = manager.cull_kernel_if_idle, manager.shutdown_kernel
        stop_if_unused = application.shutdown_no_activity

        async def cull_kernel_if_idle(kernel_id: str) -> None:
            kernel = self._sandboxes.find_kernel(kernel_id)
            if kernel is not None and kernel.asleep:
                return
            mark = self._culled.set(kernel_id)
            try:
                await ensure_async(cull(kernel_id))
            finally:
                self._culled.reset(mark)

        async def shutdown_kernel(kernel_id: str, *args: Any, **more: Any) -> Any:
            kernel = self._sandboxes.find_kernel(kernel_id)
            if kernel is not None and self._culled.get() == kernel_id:
                try:
                    await kernel.hibernation.hibernate()
                    return None
                except GvisorKernelError as error:
                    log.info("%s", error)
            return await ensure_async(shut_down(kernel_id, *args, **more))

        def shutdown_no_activity() -> None:
            """A kernel that hibernates keeps no server that nobody uses."""
            kernels = [self._sandboxes.find_kernel(one) for one in manager.list_kernel_ids()]
            asleep = [kernel for kernel in kernels if kernel is not None and kernel.asleep]
            if not self._leaves or not asleep or len(asleep) < len(kernels):
                stop_if_unused()
                return
            unused = (datetime.now(UTC) - application.web_app.last_activity()).total_seconds()
            limit = application.shutdown_no_activity_timeout
            if unused > limit and not application.extension_manager.any_activity():
                application.log.info("All kernels hibernate; shutting down.")
                application.stop()

        manager.cull_kernel_if_idle = cull_kernel_if_idle
        manager.shutdown_kernel = shutdown_kernel
        application.shutdown_no_activity = shutdown_no_activity

    # -- the stop --------------------------------------------------------------------------------

    async def leave_all(self) -> None:
        """Leave the kernels to the next server. Called as this one stops, perhaps twice."""
        KernelEvents.instance().unwatch(self._on_event)
        if self._leaves:
            if self._leaving is None:
                self._leaving = asyncio.ensure_future(self._leave_all())
            await asyncio.shield(self._leaving)  # no timeout: STOP_SECONDS

    async def _leave_all(self) -> None:
        found = {one: self._sandboxes.find_kernel(one) for one in self._manager.list_kernel_ids()}
        kernels = {one: kernel for one, kernel in found.items() if kernel is not None}
        sessions, deadline = await self._list(), asyncio.get_running_loop().time() + STOP_SECONDS
        for kernel_id in kernels:
            self._manager.get_kernel(kernel_id).stop_restarter()  # or it begins those anew
        # Those that are asleep cost nothing; of the others, the one that was used last comes last.
        order = sorted(kernels, key=lambda it: (not kernels[it].asleep, self._find_used(it)))
        for kernel_id in order:
            names = [printable(it.path) for it in sessions.get(kernel_id, [])] or [kernel_id]
            leaving = self._keep(self._leave(kernel_id, kernels[kernel_id], sessions))
            seconds = min(KERNEL_SECONDS, deadline - asyncio.get_running_loop().time())
            # Not cancelled: half of it is undone by the end of the kernel.
            await asyncio.wait({leaving}, timeout=max(0.0, seconds))
            if not leaving.done():
                log.warning("%s does not hibernate in time, and ends with the server.", names[0])
            elif (error := leaving.exception()) is not None:
                log.warning("%s does not hibernate, and ends with the server: %s", names[0], error)

    async def _leave(
        self,
        kernel_id: str,
        kernel: SandboxedKernel,
        sessions: Mapping[str, list[SavedSession]],
    ) -> None:
        facts = kernel.describe()
        await kernel.hibernation.leave()
        if facts is not None and facts.directory is not None:
            await self._write(kernel_id, facts.directory, sessions)

    def _find_used(self, kernel_id: str) -> datetime:
        used = getattr(self._manager.get_kernel(kernel_id), "last_activity", None)
        return used if isinstance(used, datetime) else datetime.now(UTC)
