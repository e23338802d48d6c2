"""Lets a server's kernels hibernate instead of culling them, and as it stops.

What hibernation is, is in ``kernel/hibernation``; sessions are kept in ``saved_sessions``. On the
server's loop.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from jupyter_core.utils import ensure_async
from tornado.util import TimeoutError as Interrupted

from gvisor_kernel.errors import GvisorKernelError, NotIdle
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.runtimes.state.kept_packages import wait_until_kept
from gvisor_kernel.server.resting import Resting
from gvisor_kernel.server.sandboxes import Sandboxes
from gvisor_kernel.server.saved_sessions import SavedSessions, TakingBack
from gvisor_kernel.shown_text import printable

log = logging.getLogger(__name__)

STOP_SECONDS = 75.0
"""Seconds that a server's stop may take for all kernels: a service manager kills it after 90."""
KEEP_SECONDS = 20.0
"""Seconds of them in which the packages of these kernels may be kept."""
AT_ONCE = 2
"""Kernels that are begun at the same time."""
LIST_SECONDS, BEGIN_SECONDS = 20.0, 2.0
"""Seconds that a server's start waits until all kernels are listed, and then until they can be
used; the rest follows."""


class Hibernating:
    """The hibernation of one server's kernels."""

    def __init__(self, application: Any, sandboxes: Sandboxes, *, leaves: bool) -> None:
        """``leaves``: leave kernels to the next server of this root, and take them back."""
        self._application = application
        self._manager = application.kernel_manager
        self._sandboxes = sandboxes
        self._leaves = leaves
        self._culled: ContextVar[str] = ContextVar("culled", default="")
        self._sessions: SavedSessions | None = None
        self._resting = Resting(self._manager, sandboxes)
        self._taking: tuple[TakingBack, asyncio.Task[None]] | None = None
        self._leaving: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Take kernels and sessions back before the server listens. Called as it loads."""
        if not self._leaves:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # the usual case: nothing runs yet
            with suppress(RuntimeError, Interrupted):  # a signal has stopped the loop
                self._application.io_loop.run_sync(self._load)
            if self._leaving is not None:  # or the server would run on
                self._application.stop()
        else:
            self._begin_taking()

    async def _load(self) -> None:
        back, taking = self._begin_taking()
        with suppress(TimeoutError):
            async with asyncio.timeout(LIST_SECONDS):
                await back.listed.wait()
        await asyncio.wait({taking}, timeout=BEGIN_SECONDS)

    def _begin_taking(self) -> tuple[TakingBack, asyncio.Task[None]]:
        self._resting.start()
        back = TakingBack(self._application, self._resting.begin)
        self._taking = back, asyncio.create_task(back.run())
        return self._taking

    def start(self) -> None:
        """Begin to keep sessions. Called as the server begins."""
        self._resting.start()
        if self._leaves:
            self._sessions = SavedSessions(self._application, self._sandboxes)
            self._sessions.start()

    # -- culling ---------------------------------------------------------------------------------

    def replace_culling(self) -> None:
        """Let a kernel that the server culls hibernate instead. One that works goes on, and one
        that cannot hibernate is culled."""
        manager, application = self._manager, self._application
        cull, shut_down = manager.cull_kernel_if_idle, manager.shutdown_kernel
        stop_if_unused = application.shutdown_no_activity

        async def cull_kernel_if_idle(kernel_id: str) -> None:
            if self._resting.is_asleep(kernel_id):
                return
            mark = self._culled.set(kernel_id)
            try:
                await ensure_async(cull(kernel_id))
            finally:
                self._culled.reset(mark)

        async def shutdown_kernel(kernel_id: str, *args: Any, **more: Any) -> Any:
            kernel = self._sandboxes.find_kernel(kernel_id)
            culled = self._culled.get()  # no timeout: a variable of this task
            if kernel is not None and culled == kernel_id:
                try:
                    await kernel.hibernation.hibernate()
                    return None
                except GvisorKernelError as error:
                    log.info("%s", error)
                    # The server takes a kernel for idle once a reply came to any request of it.
                    if isinstance(error, NotIdle) and not manager.cull_busy:
                        return None
            return await ensure_async(shut_down(kernel_id, *args, **more))

        def shutdown_no_activity() -> None:
            """A kernel that hibernates keeps no server that nobody uses."""
            kernels = manager.list_kernel_ids()
            if not (self._leaves and kernels and all(map(self._resting.is_asleep, kernels))):
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
        self._resting.end()
        if self._leaves:  # also one that is stopped before it has begun
            sessions = self._sessions or SavedSessions(self._application, self._sandboxes)
            sessions.end()
            if self._leaving is None:
                self._leaving = asyncio.ensure_future(self._leave_all(sessions))
            await asyncio.shield(self._leaving)  # no timeout: STOP_SECONDS

    async def _leave_all(self, saved: SavedSessions) -> None:
        if self._taking is not None:  # or those that have not begun are shut down
            self._taking[0].end()
            await asyncio.wait({self._taking[1]}, timeout=LIST_SECONDS)
        loop, sessions = asyncio.get_running_loop(), await saved.find()
        deadline = loop.time() + STOP_SECONDS
        kernels = {
            one: kernel
            for one in self._manager.list_kernel_ids()
            if (kernel := self._sandboxes.find_kernel(one)) is not None
        }
        for kernel_id in kernels:
            self._manager.get_kernel(kernel_id).stop_restarter()  # or it begins those anew
        # Those that are asleep cost nothing; of the others, the one that was used last comes last.
        asleep = self._resting.is_asleep
        order = sorted(kernels, key=lambda it: (not asleep(it), self._find_used(it)))
        leaving: dict[str, asyncio.Future[None]] = {}

        async def leave_next() -> None:
            """Leave one kernel after another: one that is slow has its share of the time."""
            while len(leaving) < len(order):
                kernel_id, left = order[len(leaving)], len(order) - len(leaving)
                # Not cancelled: half of it is undone by the end of the kernel.
                leaving[kernel_id] = asyncio.ensure_future(kernels[kernel_id].hibernation.leave())
                seconds = AT_ONCE * (deadline - loop.time()) / max(left, AT_ONCE)
                await asyncio.wait({leaving[kernel_id]}, timeout=max(0.0, seconds))

        await asyncio.gather(*(leave_next() for _ in range(AT_ONCE)))  # no timeout: STOP_SECONDS
        if leaving:
            await asyncio.wait(leaving.values(), timeout=max(0.0, deadline - loop.time()))
        for kernel_id, done in leaving.items():
            name = next((printable(it.path) for it in sessions.get(kernel_id, [])), kernel_id)
            if not done.done():
                log.warning("%s does not hibernate in time, and ends with the server.", name)
            elif (error := done.exception()) is not None:
                log.warning("%s does not hibernate, and ends with the server: %s", name, error)
            else:
                log.info("%s hibernates, for the next server.", name)
        saved_now = sum(done.done() and done.exception() is None for done in leaving.values())
        self._application.log.info("%d kernels hibernate, for the next server.", saved_now)
        # What is not kept by then must not be upgraded before the kernel goes on.
        await in_thread(wait_until_kept, min(KEEP_SECONDS, deadline - loop.time()))

    def _find_used(self, kernel_id: str) -> datetime:
        used = getattr(self._manager.get_kernel(kernel_id), "last_activity", None)
        return used if isinstance(used, datetime) else datetime.max.replace(tzinfo=UTC)
