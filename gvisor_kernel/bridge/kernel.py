"""One kernel, seen from both sides: clients on ZMQ, a sandbox on a link. On the bridge's loop.

Its birth and its death, and what is awaited meanwhile. How messages pass stands in ``exchange``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import zmq

from gvisor_kernel.bridge.clients import Address
from gvisor_kernel.bridge.deaths import describe_status, explain_death, explain_loss
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.bridge.identity import KernelIdentity, SnapshotRun
from gvisor_kernel.bridge.idle import Sleep
from gvisor_kernel.bridge.memory import ASK_SECONDS, MemoryWatch, describe_excess
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.sandbox_link import LinkedSandbox, SandboxLink, close_sandbox
from gvisor_kernel.bridge.sharing import Sharing
from gvisor_kernel.bridge.shutdowns import ShutdownRequests
from gvisor_kernel.bridge.wire import WireError, WireMessage, parse_object
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.link import (
    Event,
    Exited,
    Hello,
    LocalProtocolError,
    Log,
    Message,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
)
from gvisor_kernel.link.state import State

T = TypeVar("T")
log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""How long clients may take to read a dead kernel's last messages before its exit is reported."""
LONELY_SECONDS = 60.0
"""How long a sandbox whose kernel died is kept for a restart."""
KILL_SECONDS = 6.0
"""How long PID 1 has to report a kernel that was to be killed, its last messages included; then
its sandbox is ended too, and with it the files in there."""
ENDED_STATUS = -9
"""The exit status of a kernel whose sandbox ended without telling one."""


class KernelBridge:
    """From ``Bridge.open_kernel`` to ``close``; across restarts, which keep its sockets.

    The attributes ``exit_status`` and ``alive`` may be read from any thread; everything else is
    called on the bridge's loop (``Bridge.call``).
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
        """``executor``: for long work on messages. ``sharing``: of all kernels of the bridge.

        Raises LaunchError when the sockets cannot be opened; see ClientSockets.
        """
        self.identity = identity
        self.exit_status: int | None = None
        """None while a kernel runs or starts; see ``subprocess`` for the numbers."""
        self.facts: dict[str, str] = {}
        """What the guest said of itself before any kernel ran; for people."""
        self.stats: Stats | None = None
        self._loop = asyncio.get_running_loop()
        self._sharing = sharing
        self._sandbox: LinkedSandbox | None = None
        self._link: SandboxLink | None = None
        self._records = Records()
        self._deaths = Limiter()
        self._run = 0
        self._started: asyncio.Future[None] | None = None
        self._greeted: asyncio.Future[Hello] | None = None
        self._resumed: asyncio.Future[Resumed] | None = None
        self._exited = asyncio.Event()
        self._death: str | None = None
        self._asked_to_end = False
        self.shutdowns = ShutdownRequests()
        self._keep_sandbox = True
        self._memory: MemoryWatch | None = None
        self._lonely: asyncio.TimerHandle | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._detached = False
        self._exchange = Exchange(
            *(context, identity, address, base, self._records),
            *(self._is_shutdown_for_this_kernel, executor),
        )

    # -- what the provisioner asks ---------------------------------------------------------------

    @property
    def address(self) -> Address:
        return self._exchange.address

    @property
    def sandbox(self) -> LinkedSandbox | None:
        """The sandbox, while its link stands."""
        return self._sandbox if self._link is not None and not self._link.ended else None

    @property
    def alive(self) -> bool:
        """Whether a kernel runs or starts."""
        return self._link is not None and self.exit_status is None

    async def attach(
        self, sandbox: LinkedSandbox, log_path: Path, transcripts: Path | None, timeout: float
    ) -> Hello:
        """Take over ``sandbox`` and wait ``timeout`` seconds for its guest.

        Raises LaunchError, with the sandbox ended and closed.
        """
        self._take_over(sandbox, log_path, transcripts)
        self._greeted = self._loop.create_future()
        self._use_link(sandbox)
        try:
            hello = await self._answer(self._greeted, timeout)
        finally:
            self._greeted = None
        self.facts = dict(hello.facts)
        self.note(f"sandbox is up: {self.facts}")
        self._watch_memory(sandbox)
        return hello

    async def attach_restored(
        self,
        sandbox: LinkedSandbox,
        log_path: Path,
        transcripts: Path | None,
        image: SnapshotRun,
        environment: dict[str, str],
        cwd: str,
        timeout: float,
    ) -> None:
        """Take over ``sandbox``, restored from ``image``, with its kernel.

        Returns once that kernel is another one than all others of the image. What clients sent
        meanwhile is delivered. Raises LaunchError, with the sandbox ended; it is to be closed.
        """
        self._take_over(sandbox, log_path, transcripts)
        self._run = image.run
        self._exchange.expose()
        key = secrets.token_hex(32)
        resume = Resume(image.run, tuple(environment.items()), cwd, key, secrets.token_hex(64))
        self._resumed = self._loop.create_future()
        self._exchange.holding = True
        try:
            self._use_link(sandbox, resume)
            self._watch_memory(sandbox)
            answer = await self._answer(self._resumed, timeout)
            if image.told and not answer.rekeyed:
                raise WireError("it cannot be told the variables that are passed on to it")
            self._exchange.sign_for(key if answer.rekeyed else image.key)
            if image.code and (image.always or not answer.rekeyed):
                await self._answer(self._exchange.settle(image.code), timeout)
        except (LocalProtocolError, WireError) as error:
            raise self._launch_error(f"The kernel cannot be restored: {error}.") from error
        finally:
            self._resumed = self._exchange.settling = None
            self._exchange.holding = False
        self.note("the kernel goes on from an image")
        self._exchange.deliver_waiting()
        assert self._link is not None
        self._link.flush()
        self._exchange.resume()

    def _take_over(self, sandbox: LinkedSandbox, log_path: Path, transcripts: Path | None) -> None:
        if self._detached:
            raise LaunchError("No kernel can be started any more: this process ends.")
        self._records.open(log_path, transcripts)
        self._sandbox = sandbox
        self._begin_run()

    def _begin_run(self) -> None:
        self._death = None
        self._asked_to_end = False
        self.exit_status = None
        self._exited.clear()
        self._keep_sandbox = True
        self.shutdowns.begin()

    def _use_link(self, sandbox: LinkedSandbox, resume: Resume | None = None) -> None:
        sleep = Sleep(lambda: not self._exchange.pending, self._sleep_changed)
        self._link = self._exchange.link = SandboxLink(
            *(sandbox, self._on_event, self._on_link_end, self._exchange.resume),
            *(self._sharing.add(), resume),
            sleep if self.identity.idle_stop and sandbox.pauses else None,
        )

    async def _answer(self, answer: asyncio.Future[T], timeout: float) -> T:
        """What the guest answers; its sandbox is ended if that takes longer than ``timeout``."""
        assert self._link is not None
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            self._link.end(f"no answer within start_timeout, {timeout:g} s")
            raise self._launch_error(
                f"The sandbox of {self.identity.name} did not answer within {timeout:g} s.",
                "raise the setting start_timeout, or see what holds it up with: "
                "gvisor-kernel doctor",
            ) from None

    def _watch_memory(self, sandbox: LinkedSandbox) -> None:
        limit = self.identity.memory_limit
        self._memory = MemoryWatch(sandbox, limit, self._over_limit, self._far_over_limit)
        self._memory.start()

    async def quiesce(self, timeout: float) -> SnapshotRun:
        """Let nothing be under way in either direction, so that an image may be taken.

        The kernel must be idle, and nobody may send to it. Raises LaunchError.
        """
        assert self._link is not None
        await self._answer(self._link.quiesce(), timeout)
        return SnapshotRun(self._run, self._exchange.inner_key)

    async def start_kernel(
        self, argv: list[str], environment: dict[str, str], cwd: str, timeout: float
    ) -> None:
        """Start a kernel in the attached sandbox; returns once its process exists.

        Called after ``settle``. Raises LaunchError. What clients sent meanwhile is delivered.
        """
        if self._link is None or self._link.ended:
            raise self._launch_error("The sandbox ended before its kernel was started.")
        self._run += 1
        self._begin_run()
        key = secrets.token_hex(32)
        self._exchange.sign_for(key)
        self._exchange.expose()
        self._started = self._loop.create_future()
        start = Start(self._run, tuple(argv), tuple(environment.items()), cwd, key)
        try:
            self._link.connection.send(start)
            self._exchange.deliver_waiting()
            self._link.flush()
            async with asyncio.timeout(timeout):
                await self._started
        except LocalProtocolError as error:
            raise self._launch_error(
                f"The kernel cannot be started: {error}",
                "where it is too long: pass fewer or shorter variables (setting environment, or "
                "env in the kernelspec). Else restart the kernel.",
            ) from error
        except TimeoutError:
            self._link.end("the kernel did not start in time")
            raise self._launch_error(
                f"The kernel's process did not start within {timeout:g} s.",
                "raise the setting start_timeout.",
            ) from None
        finally:
            self._started = None
        self._exchange.resume()

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group. Quiet when there is none."""
        link = self._link
        if link is None or link.ended or link.connection.state is not State.RUNNING:
            return
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self._asked_to_end = True
        with suppress(LocalProtocolError):
            link.connection.send(Signal(self._run, signum))
        link.moved()
        link.flush()

    def expect_end(self, restart: bool) -> None:
        """A shutdown was requested: the next exit is no accident."""
        self._asked_to_end = True
        self._keep_sandbox = restart
        if self._link is not None:
            self._link.hurry(KILL_SECONDS)

    async def kill(self) -> None:
        """End the kernel now; its sandbox too, should PID 1 not see to it."""
        self.signal(signal.SIGKILL)
        if self._link is not None:
            self._link.hurry(KILL_SECONDS)
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await self._exited.wait()
        except TimeoutError:
            if self._link is not None:
                self._link.end("PID 1 did not end the kernel")
        await self._finished()

    async def settle(self) -> None:
        """Let an end that is under way be done; a sandbox that still stands then is kept."""
        await self._finished()
        if self._lonely is not None:
            self._lonely.cancel()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def end_sandbox(self) -> None:
        """End the sandbox and remove what it had; the sockets stay. Idempotent.

        Whoever calls this while it is under way waits for the same end.
        """
        await asyncio.shield(self._begin_end())

    def _begin_end(self) -> asyncio.Task[None]:
        if self._ending is None:
            self._ending = self._loop.create_task(self._end_sandbox())
        return self._ending

    async def _end_sandbox(self) -> None:
        try:
            self._asked_to_end = True
            if self._link is not None:
                self._link.end("it was closed")
            await self._finished()
            if self._lonely is not None:
                self._lonely.cancel()
            if self._memory is not None:
                self._memory.stop()
            sandbox, self._sandbox = self._sandbox, None
            if sandbox is not None:
                await close_sandbox(sandbox)
            self._records.close()
        finally:
            self._ending = None

    async def detach(self) -> LinkedSandbox | None:
        """Kill the sandbox and close the sockets for good; the caller closes the sandbox."""
        self._detached = True
        sandbox, self._sandbox = self._sandbox, None
        self._asked_to_end = True
        if self._link is not None:
            self._link.end("this process ends")
        self._exchange.close()
        if self.exit_status is None:
            self.exit_status = ENDED_STATUS
        return sandbox

    async def close(self) -> None:
        """End the sandbox and close the sockets. Idempotent."""
        await self.end_sandbox()
        self._exchange.close()

    def _is_shutdown_for_this_kernel(self, request: WireMessage) -> bool:
        """False for one that was meant for the kernel that has ended; else an end is expected."""
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
        if isinstance(event, Message):
            self._exchange.from_kernel(event)
        elif isinstance(event, Hello):
            if self._greeted is not None and not self._greeted.done():
                self._greeted.set_result(event)
        elif isinstance(event, Started):
            if self._started is not None and not self._started.done():
                self._started.set_result(None)
        elif isinstance(event, Resumed):
            if self._resumed is not None and not self._resumed.done():
                self._resumed.set_result(event)
        elif isinstance(event, Exited):
            self._kernel_ended(event.status)
        elif isinstance(event, Stats):
            self.stats = event
        elif isinstance(event, Log):
            self._records.keep(event)

    # -- ends ------------------------------------------------------------------------------------

    def _on_link_end(self, reason: str) -> None:
        self.note(f"the link ended: {reason}")
        settling = self._exchange.settling
        settled = None if settling is None else settling.done
        for awaited in (self._greeted, self._resumed, settled):
            if awaited is not None and not awaited.done():
                awaited.set_exception(
                    self._launch_error(
                        f"The sandbox of {self.identity.name} ended at once: {reason}."
                    )
                )
                self.exit_status = ENDED_STATUS
                return
        if self._death is None and not self._asked_to_end:
            panic = self._sandbox.find_panic() if self._sandbox is not None else ""
            self._death = explain_loss(reason, self._memory, panic)
        if self.exit_status is None and self._finishing is None:
            self._kernel_ended(ENDED_STATUS)

    def _kernel_ended(self, status: int) -> None:
        if self._resumed is not None and self._link is not None and not self._link.ended:
            self._link.end("its kernel ended while it was restored")
        elif self._finishing is None:
            self._finishing = self._loop.create_task(self._finish(status))

    async def _finish(self, status: int) -> None:
        """Tell why a kernel died, let its last messages out, then report its exit."""
        try:
            await self._let_out(status)
        finally:
            self.exit_status = status
            self._exited.set()
            self._finishing = None
            if self._sandbox is not None:
                wait = LONELY_SECONDS if self._keep_sandbox else 0.0
                self._lonely = self._loop.call_later(wait, self._end_lonely)

    async def _let_out(self, status: int) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(
                self._launch_error(
                    f"The kernel of {self.identity.name} did not start (exit status {status})."
                )
            )
        self.note(f"the kernel ended {describe_status(status)}")
        await self._exchange.settle_out(FLUSH_SECONDS)
        self._records.sum_up()
        reason = self._death
        if reason is None and not self._asked_to_end:
            reason = explain_death(status, self._memory)
        if reason is not None:
            self._tell(reason)
        self._exchange.forget_cells()
        await self._settle_memory()
        await self._exchange.let_out(FLUSH_SECONDS)

    def _end_lonely(self) -> None:
        if self.exit_status is not None:
            self._begin_end()

    async def _finished(self) -> None:
        if self._finishing is not None:
            await asyncio.shield(self._finishing)

    def _tell(self, reason: str) -> None:
        """Write down why the kernel died, and show it in the cell that was running."""
        line = self._deaths.take(f"{self.identity.name}: {reason}")
        if line is not None:
            log.warning("%s", line)
        self.note(reason)
        self._exchange.tell(reason)

    def _launch_error(self, fact: str, hint: str = "") -> LaunchError:
        tail = self._sandbox.stderr_tail() if self._sandbox is not None else ""
        tail = "\n".join([*self._records.recent, tail])
        if not hint and not tail:
            hint = "check this machine with: gvisor-kernel doctor"
        return LaunchError(fact, hint, tail)

    def note(self, text: str) -> None:
        """Write ``text`` into the sandbox's log."""
        self._records.note(text)

    # -- memory ----------------------------------------------------------------------------------

    def _sleep_changed(self, stopped: bool) -> None:
        """What is stopped takes no memory, so nobody looks."""
        if self._memory is not None:
            self._memory.stop()
            if not stopped:
                self._memory.start()

    def _over_limit(self, used: int) -> None:
        if self._exchange.running and self._death is None:
            self._death = describe_excess(used, self.identity.memory_limit)
            self.signal(signal.SIGKILL)
            self._loop.call_later(ASK_SECONDS, self._end_if_still_over, self._run)

    def _far_over_limit(self, used: int) -> None:
        self._death = describe_excess(used, self.identity.memory_limit)
        if self._link is not None:
            self._link.end("it was over its memory limit")

    async def _settle_memory(self) -> None:
        """A sandbox whose files alone nearly fill its memory ends with its kernel."""
        link, memory = self._link, self._memory
        if self._death is None or link is None or link.ended or memory is None:
            return
        if not await memory.has_fallen():
            link.end("its files alone nearly fill its memory limit")

    def _end_if_still_over(self, run: int) -> None:
        """PID 1 had its time to end kernel number ``run``."""
        link = self._link
        if link is not None and not link.ended and self._run == run and self._exchange.running:
            link.end("PID 1 did not end a kernel over its memory limit")
