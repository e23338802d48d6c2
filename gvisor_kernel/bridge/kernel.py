"""The life of one kernel between its clients and its sandbox: start, restore, end, memory limit.

Decides what happens when. Messages are passed by ``exchange``; the guest is asked, and its sandbox
closed, by ``attached_sandbox``; ``run`` reports a death. Everything runs on the bridge's loop.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

import zmq

from gvisor_kernel.bridge.addresses import Address, KernelIdentity, SnapshotRun
from gvisor_kernel.bridge.attached_sandbox import AttachedSandbox
from gvisor_kernel.bridge.deaths import Death
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.bridge.hibernation import ENDED_STATUS, Hibernation
from gvisor_kernel.bridge.last_look import LastLook
from gvisor_kernel.bridge.limits import KILL_GRACE_SECONDS, MemoryWatch, Sharing
from gvisor_kernel.bridge.link_streams import OpenEgress
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.run import KernelRun, ShutdownRequests
from gvisor_kernel.bridge.sandbox_link import SandboxLink
from gvisor_kernel.bridge.service import ServiceCalls
from gvisor_kernel.bridge.wire import WireError, WireMessage, parse_object
from gvisor_kernel.errors import LaunchError, StartTimedOut
from gvisor_kernel.link import (
    ADOPT,
    Channel,
    Event,
    Exited,
    Hello,
    LocalProtocolError,
    Log,
    LogSource,
    Message,
    Resume,
    Signal,
    Start,
    Stats,
)
from gvisor_kernel.link.state import State

RESTART_SECONDS = 60.0
"""Seconds that the sandbox of a dead kernel is kept for a restart."""
KILL_SECONDS = 6.0
"""Seconds that PID 1 has to report the end of a killed kernel, including its last messages. After
that the sandbox is ended, and the files in it are lost."""


class KernelBridge:
    """A kernel's sockets from ``Bridge.open_kernel`` to ``close``, and its sandboxes meanwhile.

    ``exit_status`` and ``alive`` may be read from any thread. Use everything else on the bridge's
    loop (``Bridge.call``).
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: KernelIdentity,
        address: Address,
        base: Path,
        executor: Executor,
        sharing: Sharing,
    ) -> None:
        """Bind the client sockets. ``executor`` checks and signs large messages.

        :raises LaunchError: when the sockets cannot be opened; see ClientSockets
        """
        self.identity = identity
        self.shutdowns = ShutdownRequests()
        self.stats: Stats | None = None
        """The guest's last statistics; for people."""
        self._loop = asyncio.get_running_loop()
        self._records = Records()
        self._exchange = Exchange(
            *(context, identity, address, base, self._records),
            *(self._is_shutdown_for_this_kernel, executor),
        )
        self._attached = AttachedSandbox(
            *(identity, self._exchange, self._records, sharing),
            *(self._on_event, self._on_link_end),
        )
        self.run = KernelRun(identity, self._exchange, self._attached, self._records)
        """The kernel that starts, runs or has ended."""
        self.service = ServiceCalls(self._send_service, self._find_queued)
        """Files and commands in the sandbox, while a kernel runs."""
        self.hibernation = Hibernation(self._exchange, self._attached, self.run, self.service)
        self.last_look = LastLook(self.run, self.service.release)
        self.service.on_left = self.last_look.begin
        self._finishing: asyncio.Task[None] | None = None
        """The report of the kernel's end."""
        self._ending: asyncio.Task[None] | None = None
        """The end of the sandbox."""
        self._removal_timer: asyncio.TimerHandle | None = None
        self._detached = False
        self.outlives = False
        """Its sandbox goes on when this process exits: somebody saves the kernel then."""

    # -- for the provisioner ---------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """The address that clients connect to; it stays over restarts."""
        return self._exchange.address

    @property
    def exit_status(self) -> int | None:
        """None while a kernel runs or starts, else as in ``subprocess``."""
        return self.run.exit_status

    @property
    def death(self) -> Death | None:
        """Return this kernel's death, once known; None if its end was requested."""
        return self.run.death

    @property
    def alive(self) -> bool:
        """Return whether a kernel runs or starts, or is asleep."""
        return self.exit_status is None and (self._link is not None or self.asleep)

    @property
    def asleep(self) -> bool:
        """Return whether the kernel is saved on the disk, and has no sandbox. Any thread."""
        return self.hibernation.asleep

    @property
    def sandbox(self) -> LinkedSandbox | None:
        """The sandbox, unless its link has ended."""
        return self._attached.sandbox if self._attached.linked else None

    @property
    def memory_used(self) -> int | None:
        """Bytes that the sandbox held at the last measurement; None without one. Any thread."""
        memory = self._attached.memory
        return memory.used if memory is not None and self._attached.linked else None

    @property
    def paused(self) -> bool:
        """Return whether the sandbox is stopped until the next message. Any thread."""
        link = self._link
        return link is not None and not link.ended and link.stopped

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that were received from sandboxes and sent to them so far. Any thread."""
        return self._attached.carried

    def call_before_removal(self, callback: Callable[[LinkedSandbox], Awaitable[None]]) -> None:
        """Await ``callback`` when a sandbox has ended, before its files are removed.

        It takes a second at most, and raises nothing.
        """
        self._attached.before_removal = callback

    @property
    def _link(self) -> SandboxLink | None:
        return self._exchange.link

    async def attach(
        self, sandbox: LinkedSandbox, log_path: Path, transcripts: Path | None, timeout: float
    ) -> Hello:
        """Take over ``sandbox`` and wait up to ``timeout`` seconds for its guest.

        :raises LaunchError: when the guest does not answer: the sandbox has been ended, and the
            caller calls ``end_sandbox``; or when this process is exiting: the sandbox is still the
            caller's
        """
        self._adopt(sandbox, log_path, transcripts)
        return await self._attached.greet(timeout)

    async def attach_restored(
        self,
        sandbox: LinkedSandbox,
        log_path: Path,
        transcripts: Path | None,
        snapshot: SnapshotRun,
        environment: dict[str, str],
        cwd: str,
        timeout: float,
        egress: OpenEgress | None = None,
        *,
        mode: str = ADOPT,
    ) -> None:
        """Take over ``sandbox``, which was restored from ``snapshot``, with its kernel.

        Returns when the kernel has adopted its own key, environment and random seed. Then delivers
        the messages that clients sent meanwhile. ``egress`` is as in ``start_kernel``. ``mode``: of
        ``Resume``.

        :raises LaunchError: when that fails. The caller closes the sandbox.
        """
        self._adopt(sandbox, log_path, transcripts)
        self.run.number = snapshot.run
        self._exchange.clients.expose()
        key = secrets.token_hex(32)
        variables, seed = tuple(environment.items()), secrets.token_hex(64)
        resume = Resume(snapshot.run, variables, cwd, key, seed, egress is not None, mode)
        self._exchange.restoring = True
        try:
            answer = await self._attached.resume(resume, timeout, egress)
            if snapshot.told and not answer.rekeyed and mode == ADOPT:
                raise WireError("it cannot receive the environment variables that it is passed")
            self._exchange.set_kernel_key(key if answer.rekeyed else snapshot.key)
            if snapshot.code and (snapshot.always or not answer.rekeyed):
                await self._attached.wait(self._exchange.run_first(snapshot.code), timeout)
        except (LocalProtocolError, WireError) as error:
            raise self._attached.launch_error(f"The kernel cannot be restored: {error}.") from error
        finally:
            self._exchange.renewal = None
            self._exchange.restoring = False
        origin = "a snapshot" if mode == ADOPT else "a saved kernel"
        self.note(f"the kernel was restored from {origin}")
        self.hibernation.note_awake()
        self._exchange.deliver_waiting()
        assert self._link is not None
        self._link.flush()
        self._exchange.clients.resume_reading()

    def _adopt(self, sandbox: LinkedSandbox, log_path: Path, transcripts: Path | None) -> None:
        if self._detached:
            raise LaunchError("No kernel can be started: this process is exiting.")
        limit = self.identity.memory_limit
        memory = MemoryWatch(
            *(sandbox, limit, self._over_limit, self._far_over_limit, self._near_limit)
        )
        self._attached.take_over(sandbox, memory, log_path, transcripts)
        self._exchange.forget_failures()
        self._begin_run()

    def _begin_run(self) -> None:
        self.last_look.forget()
        self.run.begin()
        self.shutdowns.begin()

    async def quiesce(self, timeout: float) -> SnapshotRun:
        """Wait until no data is on its way in either direction, so that a snapshot may be taken.

        The kernel must be idle, and no client may send to it.

        :raises LaunchError: when the guest does not answer within ``timeout`` seconds, or ends
        """
        await self._attached.quiesce(timeout)
        return self.hibernation.describe_run()

    async def start_kernel(
        self,
        argv: list[str],
        environment: dict[str, str],
        cwd: str,
        timeout: float,
        egress: OpenEgress | None = None,
    ) -> None:
        """Start a kernel in the attached sandbox, and wait until its process exists.

        Delivers the messages that clients sent meanwhile. Call ``wait_for_end`` before. The streams
        of a kernel go to what ``egress`` opens. Without it the kernel has none.

        :raises LaunchError: when the process does not exist within ``timeout`` seconds, the sandbox
            or the kernel has ended before, START is too long, or an address cannot be exposed
        """
        if not self._attached.linked:
            raise self._attached.launch_error("The sandbox ended before its kernel was started.")
        self.run.number += 1
        self._begin_run()
        key = secrets.token_hex(32)
        self._exchange.set_kernel_key(key)
        self._exchange.clients.expose()
        variables, has_egress = tuple(environment.items()), egress is not None
        start = Start(self.run.number, tuple(argv), variables, cwd, key, egress=has_egress)
        try:
            await self._attached.start(start, timeout, egress)
        except StartTimedOut:
            self.run.end_expected = True  # no death: there was no kernel yet
            self._attached.end_link("the kernel did not start in time")
            raise
        self._exchange.clients.resume_reading()

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group, if there is a kernel."""
        link = self._link
        if link is None or link.ended or link.connection.state is not State.RUNNING:
            return
        if self.last_look.is_under_way:  # it has ended already
            return
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self.run.end_expected = True
        with suppress(LocalProtocolError):
            link.connection.send(Signal(self.run.number, signum))
        link.note_activity()
        link.flush()

    def expect_end(self, restart: bool) -> None:
        """Note that a shutdown was requested: the next exit is expected.

        ``restart``: keep the sandbox for the next kernel.
        """
        self.run.end_expected = True
        self.run.keep_sandbox = self.run.restarts = restart
        self.hibernation.end()
        if self._link is not None:
            self._link.suspend_limit(KILL_SECONDS)

    async def kill(self) -> None:
        """Kill the kernel, and its sandbox if PID 1 does not report the end in KILL_SECONDS."""
        self.hibernation.end()
        self.signal(signal.SIGKILL)
        if self._link is not None:
            self._link.suspend_limit(KILL_SECONDS)
        while not self.run.exited.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await self.run.exited.wait()
            # no timeout: LAST_SECONDS of the look's own
            if not self.run.exited.is_set() and not await self.last_look.wait():
                self._attached.end_link("PID 1 did not end the kernel")
                break
        await self._wait_until_finished()

    async def wait_for_end(self) -> None:
        """Wait until a pending end of the kernel or the sandbox is complete.

        A sandbox that is still alive then is kept.
        """
        await self._wait_until_finished()
        if self._removal_timer is not None:
            self._removal_timer.cancel()
        if self._ending is not None:
            # no timeout: it is finished or undone, by steps that have timeouts
            await asyncio.shield(self._ending)

    async def end_sandbox(self) -> None:
        """End the sandbox and remove its files, but keep the client sockets. Idempotent.

        Concurrent callers wait for the same end.
        """
        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.shield(self._begin_end())

    def _begin_end(self) -> asyncio.Task[None]:
        if self._ending is None:
            self._ending = self._loop.create_task(self._end_sandbox())
        return self._ending

    async def _end_sandbox(self) -> None:
        try:
            self.run.end_expected = True
            self._attached.end_link("the sandbox was closed")
            await self._wait_until_finished()
            if self._removal_timer is not None:
                self._removal_timer.cancel()
            await self._attached.close()
        finally:
            self._ending = None

    async def detach(self) -> LinkedSandbox | None:
        """Kill the sandbox and close the client sockets for good; the caller closes the sandbox."""
        self._detached = True
        sandbox = self._attached.release()
        self.run.end_expected = True
        self._attached.end_link("this process is exiting")
        self._exchange.close()
        if self.exit_status is None:
            self.run.exit_status = ENDED_STATUS
        return sandbox

    async def close(self) -> None:
        """End the sandbox and close the client sockets. Idempotent."""
        await self.end_sandbox()
        self._exchange.close()

    def _is_shutdown_for_this_kernel(self, request: WireMessage) -> bool:
        """Return False for a request to a kernel that has ended; else expect an end."""
        if not self.shutdowns.arrive(running=self._exchange.running):
            return False
        with suppress(WireError):
            content = parse_object(request.content, "content")
            self.expect_end(restart=content.get("restart") is True)
            return True
        self.expect_end(restart=False)
        return True

    # -- from the sandbox ------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Message) and event.channel is Channel.SERVICE:
            assert self._link is not None
            self._link.connection.consumed(event)
            self.service.take(event.parts[0])
        elif isinstance(event, Message):
            if event.channel is Channel.SHELL:
                self.run.has_answered = True
            self._exchange.from_kernel(event)
        elif isinstance(event, Exited):
            self._kernel_ended(event.status)
        elif isinstance(event, Stats):
            self.stats = event
        elif isinstance(event, Log):
            self._records.write_inside(event)
            if event.source is LogSource.REFUSED:
                self._exchange.show_refused(event.text)
        else:
            self._attached.take_answer(event)

    # -- ends ------------------------------------------------------------------------------------

    def _on_link_end(self, reason: str) -> None:
        self.note(f"the link ended: {reason}")
        has_no_kernel = self._attached.fail_answers(reason)
        if self.asleep:
            return
        if has_no_kernel:
            self.run.exit_status = ENDED_STATUS
            self.service.end_run("The sandbox has ended.")
            return
        self.run.note_loss(reason)
        if self.exit_status is None and self._finishing is None:
            self._kernel_ended(ENDED_STATUS)

    def _send_service(self, part: bytes) -> None:
        if not self._exchange.running:
            raise LocalProtocolError("no kernel runs in it.")
        assert self._link is not None
        self._link.send_message(Channel.SERVICE, [part])

    def _find_queued(self) -> int:
        """Return the bytes on the channel SERVICE that the guest has not taken."""
        return self._link.connection.queued(Channel.SERVICE) if self._link is not None else 0

    def _kernel_ended(self, status: int) -> None:
        if self._exchange.restoring and self._attached.linked:
            self._attached.end_link("its kernel ended during the restore")
        elif self._finishing is None:
            self._finishing = self._loop.create_task(self._finish(status))

    async def _finish(self, status: int) -> None:
        try:
            await self.run.finish(status)
        finally:
            self._finishing = None
            self.service.end_run("The kernel of the sandbox has ended.")
            if self._attached.sandbox is not None:
                wait = RESTART_SECONDS if self.run.keep_sandbox else 0.0
                self._removal_timer = self._loop.call_later(wait, self._end_unless_restarted)

    def _end_unless_restarted(self) -> None:
        if self.exit_status is not None:
            self._begin_end()

    async def _wait_until_finished(self) -> None:
        if self._finishing is not None:
            await asyncio.shield(self._finishing)  # no timeout: bounded by FLUSH_SECONDS

    def note(self, text: str) -> None:
        """Write ``text`` into the sandbox's log."""
        self._records.note(text)

    def show_wait(self, text: str) -> None:
        """Show what the start waits for in the cell that waits for the kernel, if there is one."""
        self._exchange.show_wait(text)

    def note_egress(self, text: str) -> None:
        """Write what requests to the network caused into the sandbox's log."""
        self._records.note_egress(text)

    def show_refused(self, text: str) -> None:
        """Show which connection was refused, and why, in the cell that runs."""
        self._exchange.show_refused(text)

    # -- memory ----------------------------------------------------------------------------------

    def _near_limit(self) -> bool:
        return self._link is not None and self._link.trim()

    def _over_limit(self, used: int) -> None:
        if self._exchange.running and self.run.cause is None:
            self.run.cause = Death("memory", used=used, limit=self.identity.memory_limit)
            self.signal(signal.SIGKILL)
            self._loop.call_later(KILL_GRACE_SECONDS, self._end_if_still_over, self.run.number)

    def _far_over_limit(self, used: int) -> None:
        self.run.cause = Death("memory", used=used, limit=self.identity.memory_limit)
        self._attached.end_link("the sandbox exceeded its memory limit")

    def _end_if_still_over(self, run: int) -> None:
        """End the sandbox if PID 1 has not ended kernel number ``run`` yet."""
        if self._attached.linked and self.run.number == run and self._exchange.running:
            self._attached.end_link("PID 1 did not end a kernel over its memory limit")
