"""Saves a kernel that goes on until it is saved, and keeps its clients' messages meanwhile.

A kernel that was saved is ``asleep``: it has no sandbox, its clients are connected, and the first
message that only the kernel can answer wakes it. When to save, and where to, is decided elsewhere;
``kernel`` attaches the sandbox in which it goes on. Everything runs on the bridge's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from gvisor_kernel.bridge.addresses import SnapshotRun
from gvisor_kernel.bridge.attached_sandbox import AttachedSandbox
from gvisor_kernel.bridge.deaths import Death
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.bridge.run import KernelRun
from gvisor_kernel.bridge.service import ServiceCalls
from gvisor_kernel.errors import NotIdle, SandboxError
from gvisor_kernel.link import LocalProtocolError

ENDED_STATUS = -9
"""The exit status of a kernel whose sandbox ended without reporting one."""
T = TypeVar("T")
REST_SECONDS = 2.0
"""Seconds after which clients' sockets of a kernel that is asleep are closed, if nobody is
connected, and between tries."""
QUIET_SECONDS = 5.0
"""Seconds that PID 1 has to read what was sent to it. It takes 5 ms if the sandbox is idle."""


class Hibernation:
    """The sleep of one kernel, over all its sandboxes."""

    def __init__(
        self, exchange: Exchange, attached: AttachedSandbox, run: KernelRun, service: ServiceCalls
    ) -> None:
        self.asleep = False
        """The kernel was saved, and has no sandbox."""
        self.idle_seconds = 0.0
        """After this time without anything to do ``on_idle`` is called; 0: never."""
        self.on_idle: Callable[[], object] = lambda: None
        self.on_rest: Callable[[], None] = lambda: None
        """Called when an idle sandbox was stopped."""
        self.exchange = exchange
        """The messages of clients and of the kernel, and what is known of it."""
        self._attached = attached
        self._run = run
        self._service = service
        self._is_saving = False
        self._timer: asyncio.TimerHandle | None = None
        self._resting: asyncio.TimerHandle | None = None
        attached.on_sleep = self._note_sleep
        exchange.clients.on_open = self._rest_later

    async def save(
        self,
        write: Callable[[SnapshotRun], Awaitable[T]],
        undo: Callable[[T], Awaitable[None]],
        *,
        ends: bool = False,
    ) -> T:
        """Save the kernel, and let it go on as if nothing had happened. Return what ``write`` does.

        ``ends``: the kernel is ``asleep`` afterwards, and its sandbox has ended. ``write`` writes
        the sandbox to the disk, and lets it go on; ``undo`` removes what it has returned, and
        raises nothing.

        :raises NotIdle: when the kernel has something to do, or gets it meanwhile
        :raises SandboxError: when it cannot be saved, as ``write`` raises it
        """
        exchange, link = self.exchange, self._attached.link
        if link is None or not exchange.running or self._is_saving:
            raise NotIdle("The kernel does not run, or is being saved.")
        if exchange.pending or not exchange.settled or self._service.is_used:
            raise NotIdle(exchange.describe_work())
        exchange.held = self._is_saving = True
        undo_later = None
        try:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await link.quiesce()
            except (TimeoutError, LocalProtocolError) as error:
                raise NotIdle("The kernel's sandbox does not answer now.") from error
            self._suspend()
            received = link.received
            saved = await write(self.describe_run())
            undo_later = partial(undo, saved)
            if link.ended:
                raise SandboxError("The sandbox ended while its kernel was saved.")
            if link.received != received or not exchange.settled:
                raise NotIdle("The kernel has worked, or was asked for something, meanwhile.")
        except BaseException:
            if undo_later is not None:
                await asyncio.shield(undo_later())  # no timeout: it removes a few files
            self._go_on()
            raise
        finally:
            self._is_saving = False
        if not ends:
            self._go_on()
            return saved
        self.asleep = True
        exchange.known.slept_debugged |= exchange.known.debugs
        link.end("the kernel hibernates")
        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.shield(self._attached.close())
        self._rest_later()
        return saved

    def adopt(self, saved: SnapshotRun) -> None:
        """Begin with a kernel that another process has saved."""
        self._run.number = saved.run
        self.exchange.known.load(saved.known)
        self.asleep = self.exchange.held = True
        self.exchange.works = bool(saved.known.get("works"))
        self.exchange.cut = str(saved.known.get("cut", ""))
        self._run.begin()

    def describe_run(self) -> SnapshotRun:
        """Return the kernel as another process has to know it, to take it over."""
        exchange = self.exchange
        known = exchange.known.dump() | {"works": exchange.pending, "cut": exchange.find_cell()}
        # attached over a wake, and detached since then
        known["left_debugger"] = exchange.known.slept_debugged and not exchange.known.debugs
        return SnapshotRun(self._run.number, exchange.kernel_key, known=known)

    def note_awake(self) -> None:
        """Note that the kernel runs again."""
        self.asleep = self.exchange.held = False

    async def lose(self, reason: str) -> None:
        """Count a kernel whose saved state somebody has removed as dead, and tell of it."""
        self._run.cause = Death("sandbox", loss=reason)
        await self._run.finish(ENDED_STATUS)

    def end(self) -> None:
        """Count a kernel that is asleep as ended. What was saved of it is the caller's."""
        if self.asleep:
            self.note_awake()
            self._run.end_expected = True
            self._run.exit_status = ENDED_STATUS
            self._run.exited.set()
            self.exchange.forget_requests()

    def _rest_later(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        if self.asleep:
            self._resting = asyncio.get_running_loop().call_later(REST_SECONDS, self._rest)

    def _rest(self) -> None:
        """Hold nothing open for a kernel that is asleep, unless somebody is connected."""
        if not (self.exchange.settled and self.exchange.clients.rest()):
            self._rest_later()

    def _suspend(self) -> None:
        """Watch no silence while the sandbox is written, and memory only for far too much."""
        if self._attached.link is not None:
            self._attached.link.suspend_timers()
        if self._attached.memory is not None:
            self._attached.memory.only_overruns = True

    def _go_on(self) -> None:
        self.exchange.held = False
        link, memory = self._attached.link, self._attached.memory
        if link is None or link.ended:
            return
        link.go_on()
        if memory is not None:
            memory.only_overruns = False
            memory.start()
        self.exchange.deliver_waiting()
        link.flush()
        self.exchange.clients.resume_reading()

    def _note_sleep(self, stopped: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if stopped:
            self.on_rest()
        if stopped and self.idle_seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.idle_seconds, self._find_idle)

    def _find_idle(self) -> None:
        link = self._attached.link
        if link is not None and link.stopped and not self.asleep:
            self.on_idle()
