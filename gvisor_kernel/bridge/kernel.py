"""One kernel, seen from both sides: clients on ZMQ, a sandbox on a link. On the bridge's loop.

A message's way, in one pass: ``_from_client`` checks and signs what a client sent and hands it to
the link; ``_from_kernel`` does the same the other way. Everything else here is birth and death.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import zmq

from gvisor_kernel.bridge.clients import Address, ClientSockets
from gvisor_kernel.bridge.deaths import describe_status, explain_death, explain_loss, tell_death
from gvisor_kernel.bridge.identity import ImageRun, KernelIdentity
from gvisor_kernel.bridge.idle import Sleep
from gvisor_kernel.bridge.memory import ASK_SECONDS, MemoryWatch, describe_excess
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.sandbox_link import LinkedSandbox, SandboxLink, close_sandbox
from gvisor_kernel.bridge.settling import Settling
from gvisor_kernel.bridge.shutdowns import ShutdownRequests
from gvisor_kernel.bridge.waiting import Sent, WaitingMessages
from gvisor_kernel.bridge.wire import Signer, WireError, WireMessage, new_message, split_message
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.link import (
    Channel,
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

TO_KERNEL_ABOVE = 1024 * 1024
"""Bytes waiting for the kernel on one channel; above, its clients' socket is not read."""
TOLD_PENDING = 1000
"""Requests whose headers are kept, to tell in the right cell why a kernel died."""
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
    ) -> None:
        """Raises LaunchError when the sockets cannot be opened; see ClientSockets."""
        self.identity = identity
        self.exit_status: int | None = None
        """None while a kernel runs or starts; see ``subprocess`` for the numbers."""
        self.facts: dict[str, str] = {}
        """What the guest said of itself before any kernel ran; for people."""
        self.stats: Stats | None = None
        self._loop = asyncio.get_running_loop()
        self._host = Signer(identity.key, identity.signature_scheme)
        self._inner = Signer(secrets.token_hex(32).encode())
        self._inner_key = ""
        self._sandbox: LinkedSandbox | None = None
        self._link: SandboxLink | None = None
        self._records = Records()
        self._waiting = WaitingMessages()
        self._pending: dict[str, bytes] = {}
        self._run = 0
        self._started: asyncio.Future[None] | None = None
        self._greeted: asyncio.Future[Hello] | None = None
        self._resumed: asyncio.Future[Resumed] | None = None
        self._settling: Settling | None = None
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
        self._clients = ClientSockets(
            context, address, base, self._from_client, self._may_take, self._welcome
        )

    # -- what the provisioner asks ---------------------------------------------------------------

    @property
    def address(self) -> Address:
        return self._clients.address

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
        self._link = self._make_link(sandbox)
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
        image: ImageRun,
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
        self._clients.expose()
        key = secrets.token_hex(32)
        resume = Resume(image.run, tuple(environment.items()), cwd, key, secrets.token_hex(64))
        self._resumed = self._loop.create_future()
        try:
            self._link = self._make_link(sandbox, resume)
            self._watch_memory(sandbox)
            answer = await self._answer(self._resumed, timeout)
            self._inner_key = key if answer.rekeyed else image.key
            self._inner = Signer(self._inner_key.encode())
            if image.code and (image.always or not answer.rekeyed):
                self._settling = Settling(image.code, self._loop.create_future())
                self._link.send_message(Channel.SHELL, self._inner.sign(self._settling.request))
                await self._answer(self._settling.done, timeout)
        except (LocalProtocolError, WireError) as error:
            raise self._launch_error(f"The kernel cannot be restored: {error}.") from error
        finally:
            self._resumed = self._settling = None
        self.note("the kernel goes on from an image")
        self._deliver_waiting()
        self._link.flush()
        self._clients.resume()

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

    def _make_link(self, sandbox: LinkedSandbox, resume: Resume | None = None) -> SandboxLink:
        sleep = Sleep(lambda: not self._pending, self._sleep_changed)
        return SandboxLink(
            *(sandbox, self._on_event, self._on_link_end, self._on_room, resume),
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

    async def quiesce(self, timeout: float) -> ImageRun:
        """Let nothing be under way in either direction, so that an image may be taken.

        The kernel must be idle, and nobody may send to it. Raises LaunchError.
        """
        assert self._link is not None
        await self._answer(self._link.quiesce(), timeout)
        return ImageRun(self._run, self._inner_key)

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
        self._inner, self._inner_key = Signer(key.encode()), key
        self._clients.expose()
        self._started = self._loop.create_future()
        start = Start(self._run, tuple(argv), tuple(environment.items()), cwd, key)
        try:
            self._link.connection.send(start)
            self._deliver_waiting()
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
        self._clients.resume()

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

    async def kill(self) -> None:
        """End the kernel now; its sandbox too, should PID 1 not see to it."""
        self.signal(signal.SIGKILL)
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
        self._clients.close()
        if self.exit_status is None:
            self.exit_status = ENDED_STATUS
        return sandbox

    async def close(self) -> None:
        """End the sandbox and close the sockets. Idempotent."""
        await self.end_sandbox()
        self._clients.close()

    # -- from clients ----------------------------------------------------------------------------

    def _may_take(self, channel: Channel) -> bool:
        if channel is Channel.IOPUB:
            return True
        if self._running():
            assert self._link is not None
            return self._link.connection.queued(channel) < TO_KERNEL_ABOVE
        return not self._waiting.full

    def _running(self) -> bool:
        link = self._link
        if link is None or link.ended or self._settling is not None:
            return False
        return link.connection.state is State.RUNNING

    def _from_client(self, channel: Channel, parts: list[bytes]) -> None:
        """Check what a client sent and pass it on, or keep it for the kernel that is starting."""
        if channel is Channel.HB:
            if self._link is not None and self._link.stopped:
                self._clients.send(channel, parts)  # in the place of a kernel that was well
            else:
                self._to_kernel(channel, parts)
            return
        try:
            message = split_message(parts)
            self._host.check(message)
            kind, message_id = message.kind, message.id
        except WireError as error:
            self.note(f"a client's message on {channel.name.lower()} was dropped: {error}")
            return
        if channel is Channel.CONTROL and kind == "shutdown_request":
            if not self.shutdowns.arrive(running=self._running()):
                return  # meant for the kernel that has ended, not for the next one
            self.expect_end(restart=b"true" in message.content)
        if kind == "execute_request" and len(self._pending) < TOLD_PENDING:
            self._pending[message_id] = message.header
        self._records.asked(message)
        self._to_kernel(channel, message)

    def _to_kernel(self, channel: Channel, message: Sent) -> None:
        if not self._running():
            self._waiting.add(channel, message)
            return
        assert self._link is not None
        parts = message if isinstance(message, list) else self._inner.sign(message)
        try:
            self._link.send_message(channel, parts)
        except LocalProtocolError as error:
            self.note(f"a client's message on {channel.name.lower()} was dropped: {error}")

    def _deliver_waiting(self) -> None:
        for channel, message in self._waiting.take():
            self._to_kernel(channel, message)

    def _on_room(self) -> None:
        """The link has taken bytes: clients' sockets may be read again."""
        self._clients.resume()

    def _welcome(self, topic: bytes) -> None:
        """Tell a new subscriber that it is connected (JEP 65): no output is missed from here on."""
        content = {"subscription": topic.decode("utf-8", "replace")}
        self._publish(new_message("iopub_welcome", content, b"{}", topic))

    def _publish(self, message: WireMessage) -> None:
        self._clients.send(Channel.IOPUB, self._host.sign(message))

    # -- from the sandbox ------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Message):
            self._from_kernel(event)
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

    def _from_kernel(self, message: Message) -> None:
        """Check what the kernel sent, sign it, send it; then give the credit back."""
        link = self._link
        assert link is not None

        def taken() -> None:
            link.connection.consumed(message)
            link.flush()

        channel = message.channel
        if channel is Channel.HB:
            self._clients.send(channel, message.parts, taken)
            return
        try:
            checked = split_message(message.parts)
            self._inner.check(checked)
            wanted = checked.kind != "iopub_welcome"
            if self._settling is not None and self._settling.takes(channel, checked):
                wanted = False
            else:
                self._take_note(channel, checked)
        except WireError as error:
            self.note(f"the kernel's message on {channel.name.lower()} was dropped: {error}")
            wanted = False
        if wanted:
            self._clients.send(channel, self._host.sign(checked), taken)
        else:
            taken()

    def _take_note(self, channel: Channel, message: WireMessage) -> None:
        if channel is Channel.SHELL:
            self._pending.pop(message.parent_id, None)
        self._records.answered(channel, message)

    # -- ends ------------------------------------------------------------------------------------

    def _on_link_end(self, reason: str) -> None:
        self.note(f"the link ended: {reason}")
        settled = None if self._settling is None else self._settling.done
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
            self._death = explain_loss(reason, self._memory)
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
        reason = self._death
        if reason is None and not self._asked_to_end:
            reason = explain_death(status, self._memory)
        if reason is not None:
            self._tell(reason)
        self._pending.clear()
        self._waiting.drop_executions()
        await self._settle_memory()
        deadline = self._loop.time() + FLUSH_SECONDS
        while self._clients.waiting() and self._loop.time() < deadline:
            await asyncio.sleep(0.01)

    def _end_lonely(self) -> None:
        if self.exit_status is not None:
            self._begin_end()

    async def _finished(self) -> None:
        if self._finishing is not None:
            await asyncio.shield(self._finishing)

    def _tell(self, reason: str) -> None:
        """Show ``reason`` in the cell that was running, as an error of its own."""
        log.warning("%s: %s", self.identity.name, reason)
        self.note(reason)
        if not self._pending:
            return
        for message in tell_death(reason, next(iter(self._pending.values()))):
            self._publish(message)

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
        if self._running() and self._death is None:
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
        if link is not None and not link.ended and self._run == run and self._running():
            link.end("PID 1 did not end a kernel over its memory limit")
