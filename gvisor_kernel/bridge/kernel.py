"""The life of one kernel between its clients and its sandbox: start, restore, end, memory limit.

Everything runs on the bridge's loop. Messages are passed by ``exchange``.
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
from gvisor_kernel.bridge.deaths import (
    describe_excess,
    describe_status,
    explain_death,
    explain_loss,
)
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.bridge.identity import KernelIdentity, SnapshotRun
from gvisor_kernel.bridge.idle import SleepPolicy
from gvisor_kernel.bridge.memory import KILL_GRACE_SECONDS, MemoryWatch
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.sandbox_link import LinkedSandbox, SandboxLink, close_sandbox
from gvisor_kernel.bridge.sharing import Sharing
from gvisor_kernel.bridge.shutdowns import ShutdownRequests
from gvisor_kernel.bridge.wire import WireError, WireMessage, parse_object
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.log_files import Limiter
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

FLUSH_SECONDS = 2.0
"""How long clients have to read a dead kernel's last messages before its exit is reported."""
MAX_LAST_LINE = 300
"""Characters of a dead kernel's stderr that are shown as its last output."""
LAST_LINE_SECONDS = 0.2
"""How long that output may take: it comes by a pipe of its own, and nothing marks its end."""
RESTART_SECONDS = 60.0
"""How long the sandbox of a dead kernel is kept for a restart."""
KILL_SECONDS = 6.0
"""How long PID 1 has to report the end of a killed kernel, including its last messages. After that
the sandbox is ended, and the files in it are lost."""
ENDED_STATUS = -9
"""The exit status of a kernel whose sandbox ended without reporting one."""


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
        self.exit_status: int | None = None
        """None while a kernel runs or starts, else as in ``subprocess``."""
        self.facts: dict[str, str] = {}
        """What the guest reported about itself before any kernel ran; for people."""
        self.stats: Stats | None = None
        self._loop = asyncio.get_running_loop()
        self._sharing = sharing
        self._sandbox: LinkedSandbox | None = None
        self._records = Records()
        self._deaths = Limiter()
        self._run = 0
        self._started: asyncio.Future[None] | None = None
        self._hello: asyncio.Future[Hello] | None = None
        self._resumed: asyncio.Future[Resumed] | None = None
        self._quiesced: asyncio.Future[None] | None = None
        self._exited = asyncio.Event()
        self._death: str | None = None
        self.death: str | None = None
        """Why this run's kernel died, once that was reported; None if its end was requested."""
        self._has_answered = False
        """Whether this run's kernel has replied to a request."""
        self.logs_death = True
        """Whether a death is logged as a warning. Not where a command reports it as its error."""
        self._end_expected = False
        self.shutdowns = ShutdownRequests()
        self._keep_sandbox = True
        self._memory: MemoryWatch | None = None
        self._removal_timer: asyncio.TimerHandle | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._detached = False
        self._exchange = Exchange(
            *(context, identity, address, base, self._records),
            *(self._is_shutdown_for_this_kernel, executor),
        )

    # -- for the provisioner ---------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """The address that clients connect to; it stays over restarts."""
        return self._exchange.address

    @property
    def _link(self) -> SandboxLink | None:
        return self._exchange.link

    @property
    def sandbox(self) -> LinkedSandbox | None:
        """The sandbox, unless its link has ended."""
        return self._sandbox if self._link is not None and not self._link.ended else None

    @property
    def alive(self) -> bool:
        """Whether a kernel runs or starts."""
        return self._link is not None and self.exit_status is None

    async def attach(
        self, sandbox: LinkedSandbox, log_path: Path, transcripts: Path | None, timeout: float
    ) -> Hello:
        """Take over ``sandbox`` and wait up to ``timeout`` seconds for its guest.

        :raises LaunchError: when the guest does not answer: the sandbox has been ended, and the
            caller calls ``end_sandbox``; or when this process is exiting: the sandbox is still the
            caller's
        """
        self._adopt(sandbox, log_path, transcripts)
        self._hello = self._loop.create_future()
        self._use_link(sandbox)
        try:
            hello = await self._wait_for_answer(
                self._hello,
                timeout,
                "raise the setting start_timeout, or look for the cause with: gvisor-kernel doctor",
            )
        finally:
            self._hello = None
        self.facts = dict(hello.facts)
        self.note(f"sandbox is up: {self.facts}")
        self._watch_memory(sandbox)
        return hello

    async def attach_restored(
        self,
        sandbox: LinkedSandbox,
        log_path: Path,
        transcripts: Path | None,
        snapshot: SnapshotRun,
        environment: dict[str, str],
        cwd: str,
        timeout: float,
    ) -> None:
        """Take over ``sandbox``, which was restored from ``snapshot``, with its kernel.

        Returns when the kernel has adopted its own key, environment and random seed. Then delivers
        the messages that clients sent meanwhile.

        :raises LaunchError: when that fails. The caller closes the sandbox.
        """
        self._adopt(sandbox, log_path, transcripts)
        self._run = snapshot.run
        self._exchange.expose()
        key = secrets.token_hex(32)
        resume = Resume(snapshot.run, tuple(environment.items()), cwd, key, secrets.token_hex(64))
        self._resumed = self._loop.create_future()
        self._exchange.restoring = True
        try:
            self._use_link(sandbox, resume)
            self._watch_memory(sandbox)
            answer = await self._wait_for_answer(self._resumed, timeout)
            if snapshot.told and not answer.rekeyed:
                raise WireError("it cannot receive the environment variables that it is passed")
            self._exchange.set_kernel_key(key if answer.rekeyed else snapshot.key)
            if snapshot.code and (snapshot.always or not answer.rekeyed):
                await self._wait_for_answer(self._exchange.run_first(snapshot.code), timeout)
        except (LocalProtocolError, WireError) as error:
            raise self._launch_error(f"The kernel cannot be restored: {error}.") from error
        finally:
            self._resumed = self._exchange.renewal = None
            self._exchange.restoring = False
        self.note("the kernel was restored from a snapshot")
        self._exchange.deliver_waiting()
        assert self._link is not None
        self._link.flush()
        self._exchange.resume_reading()

    def _adopt(self, sandbox: LinkedSandbox, log_path: Path, transcripts: Path | None) -> None:
        if self._detached:
            raise LaunchError("No kernel can be started: this process is exiting.")
        self._records.open(log_path, transcripts)
        self._sandbox = sandbox
        self._begin_run()

    def _begin_run(self) -> None:
        self._death = self.death = None
        self._has_answered = False
        self._end_expected = False
        self.exit_status = None
        self._exited.clear()
        self._keep_sandbox = True
        self.shutdowns.begin()

    def _use_link(self, sandbox: LinkedSandbox, resume: Resume | None = None) -> None:
        sleep = SleepPolicy(lambda: not self._exchange.pending, self._on_sleep_change)
        self._exchange.link = SandboxLink(
            *(sandbox, self._on_event, self._on_link_end, self._exchange.resume_reading),
            *(self._sharing.add(), resume),
            sleep if self.identity.idle_stop and sandbox.can_pause else None,
        )

    async def _wait_for_answer(
        self,
        answer: asyncio.Future[T],
        timeout: float,
        hint: str = "look for the cause with: gvisor-kernel doctor",
    ) -> T:
        """Await the guest's answer; end its sandbox after ``timeout`` seconds without one."""
        assert self._link is not None
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            self._link.end(f"no answer within {timeout:g} s")
            raise self._launch_error(
                f"The sandbox of {self.identity.name} did not answer within {timeout:g} s.",
                hint,
            ) from None

    def _watch_memory(self, sandbox: LinkedSandbox) -> None:
        limit = self.identity.memory_limit
        self._memory = MemoryWatch(sandbox, limit, self._over_limit, self._far_over_limit)
        self._memory.start()

    async def quiesce(self, timeout: float) -> SnapshotRun:
        """Wait until no data is on its way in either direction, so that a snapshot may be taken.

        The kernel must be idle, and no client may send to it.

        :raises LaunchError: when the guest does not answer within ``timeout`` seconds, or ends
        """
        assert self._link is not None
        try:
            self._quiesced = self._link.quiesce()
            await self._wait_for_answer(self._quiesced, timeout)
        except LocalProtocolError as error:
            raise self._launch_error(f"The sandbox has ended: {error}") from error
        finally:
            self._quiesced = None
        return SnapshotRun(self._run, self._exchange.kernel_key)

    async def start_kernel(
        self, argv: list[str], environment: dict[str, str], cwd: str, timeout: float
    ) -> None:
        """Start a kernel in the attached sandbox, and wait until its process exists.

        Delivers the messages that clients sent meanwhile. Call ``wait_for_end`` before.

        :raises LaunchError: when the process does not exist within ``timeout`` seconds, the sandbox
            or the kernel has ended before, START is too long, or an address cannot be exposed
        """
        if self._link is None or self._link.ended:
            raise self._launch_error("The sandbox ended before its kernel was started.")
        self._run += 1
        self._begin_run()
        key = secrets.token_hex(32)
        self._exchange.set_kernel_key(key)
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
                "if it is too long, pass fewer or shorter variables (setting environment, or env "
                "in the kernelspec). Otherwise restart the kernel.",
            ) from error
        except TimeoutError:
            self._link.end("the kernel did not start in time")
            raise self._launch_error(
                f"The kernel's process did not start within {timeout:g} s.",
                "raise the setting start_timeout.",
            ) from None
        finally:
            self._started = None
        self._exchange.resume_reading()

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group, if there is a kernel."""
        link = self._link
        if link is None or link.ended or link.connection.state is not State.RUNNING:
            return
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self._end_expected = True
        with suppress(LocalProtocolError):
            link.connection.send(Signal(self._run, signum))
        link.note_activity()
        link.flush()

    def expect_end(self, restart: bool) -> None:
        """Note that a shutdown was requested: the next exit is expected.

        ``restart``: keep the sandbox for the next kernel.
        """
        self._end_expected = True
        self._keep_sandbox = restart
        if self._link is not None:
            self._link.suspend_limit(KILL_SECONDS)

    async def kill(self) -> None:
        """Kill the kernel, and its sandbox if PID 1 does not report the end in KILL_SECONDS."""
        self.signal(signal.SIGKILL)
        if self._link is not None:
            self._link.suspend_limit(KILL_SECONDS)
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await self._exited.wait()
        except TimeoutError:
            if self._link is not None:
                self._link.end("PID 1 did not end the kernel")
        await self._wait_until_finished()

    async def wait_for_end(self) -> None:
        """Wait until a pending end of the kernel or the sandbox is complete.

        A sandbox that is still alive then is kept.
        """
        await self._wait_until_finished()
        if self._removal_timer is not None:
            self._removal_timer.cancel()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def end_sandbox(self) -> None:
        """End the sandbox and remove its files, but keep the client sockets. Idempotent.

        Concurrent callers wait for the same end.
        """
        await asyncio.shield(self._begin_end())

    def _begin_end(self) -> asyncio.Task[None]:
        if self._ending is None:
            self._ending = self._loop.create_task(self._end_sandbox())
        return self._ending

    async def _end_sandbox(self) -> None:
        try:
            self._end_expected = True
            if self._link is not None:
                self._link.end("the sandbox was closed")
            await self._wait_until_finished()
            if self._removal_timer is not None:
                self._removal_timer.cancel()
            if self._memory is not None:
                self._memory.stop()
            sandbox, self._sandbox = self._sandbox, None
            if sandbox is not None:
                await close_sandbox(sandbox)
            self._records.close()
        finally:
            self._ending = None

    async def detach(self) -> LinkedSandbox | None:
        """Kill the sandbox and close the client sockets for good; the caller closes the sandbox."""
        self._detached = True
        sandbox, self._sandbox = self._sandbox, None
        self._end_expected = True
        if self._link is not None:
            self._link.end("this process is exiting")
        self._exchange.close()
        if self.exit_status is None:
            self.exit_status = ENDED_STATUS
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
        if isinstance(event, Message):
            self._has_answered = self._has_answered or event.channel is Channel.SHELL
            self._exchange.from_kernel(event)
        elif isinstance(event, Hello):
            if self._hello is not None and not self._hello.done():
                self._hello.set_result(event)
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
            self._records.write_inside(event)

    # -- ends ------------------------------------------------------------------------------------

    def _on_link_end(self, reason: str) -> None:
        self.note(f"the link ended: {reason}")
        renewal = self._exchange.renewal
        settled = None if renewal is None else renewal.done
        for awaited in (self._hello, self._resumed, settled):
            if awaited is not None and not awaited.done():
                awaited.set_exception(
                    self._launch_error(
                        f"The sandbox of {self.identity.name} ended during the start: {reason}."
                    )
                )
                self.exit_status = ENDED_STATUS
                return
        if self._quiesced is not None and not self._quiesced.done():
            self._quiesced.set_exception(
                self._launch_error(
                    f"The sandbox of {self.identity.name} ended before its snapshot: {reason}."
                )
            )
        if self._death is None and not self._end_expected:
            panic = self._sandbox.find_panic() if self._sandbox is not None else ""
            self._death = explain_loss(reason, self._memory, panic)
        if self.exit_status is None and self._finishing is None:
            self._kernel_ended(ENDED_STATUS)

    def _kernel_ended(self, status: int) -> None:
        if self._resumed is not None and self._link is not None and not self._link.ended:
            self._link.end("its kernel ended during the restore")
        elif self._finishing is None:
            self._finishing = self._loop.create_task(self._finish(status))

    async def _finish(self, status: int) -> None:
        """Explain the death of a kernel, send its last messages, then report its exit."""
        try:
            await self._report_end(status)
        finally:
            self.exit_status = status
            self._exited.set()
            self._finishing = None
            if self._sandbox is not None:
                wait = RESTART_SECONDS if self._keep_sandbox else 0.0
                self._removal_timer = self._loop.call_later(wait, self._end_unless_restarted)

    async def _report_end(self, status: int) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(
                self._launch_error(
                    f"The kernel of {self.identity.name} did not start (exit status {status})."
                )
            )
        self.note(f"the kernel ended {describe_status(status)}")
        await self._exchange.drain_kernel(FLUSH_SECONDS)
        self._records.report_drops()
        reason = self._death
        if reason is None and not self._end_expected:
            reason = explain_death(status, self._memory, await self._find_last_line())
        if reason is not None:
            self._report_death(reason)
        self._exchange.forget_requests()
        await self._end_if_memory_stays()
        await self._exchange.drain_clients(FLUSH_SECONDS)

    def _end_unless_restarted(self) -> None:
        if self.exit_status is not None:
            self._begin_end()

    async def _wait_until_finished(self) -> None:
        if self._finishing is not None:
            await asyncio.shield(self._finishing)

    def _report_death(self, reason: str) -> None:
        """Log why the kernel died, if wanted, and show it in the cell that was running."""
        self.death = reason
        if self.logs_death:
            line = self._deaths.admit(f"{self.identity.name}: {reason}")
            if line is not None:
                log.warning("%s", line)
        self.note(reason)
        self._exchange.show_death(reason)

    async def _find_last_line(self) -> str:
        """Return the last line that a kernel wrote which never answered; else nothing.

        An interpreter without ipykernel says there what it lacks, and nobody sees the log of a
        kernel that did not start.
        """
        if self._has_answered or self._sandbox is None:
            return ""
        await asyncio.sleep(LAST_LINE_SECONDS)
        tail = self._sandbox.stderr_tail().splitlines()
        lines = [line.strip() for line in [*tail, *self._records.recent]]
        return next((line[:MAX_LAST_LINE] for line in reversed(lines) if line), "")

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

    def _on_sleep_change(self, stopped: bool) -> None:
        """Measure memory only while the sandbox runs: a stopped one takes no more."""
        if self._memory is not None:
            self._memory.stop()
            if not stopped:
                self._memory.start()

    def _over_limit(self, used: int) -> None:
        if self._exchange.running and self._death is None:
            self._death = describe_excess(used, self.identity.memory_limit)
            self.signal(signal.SIGKILL)
            self._loop.call_later(KILL_GRACE_SECONDS, self._end_if_still_over, self._run)

    def _far_over_limit(self, used: int) -> None:
        self._death = describe_excess(used, self.identity.memory_limit)
        if self._link is not None:
            self._link.end("the sandbox exceeded its memory limit")

    async def _end_if_memory_stays(self) -> None:
        """End a sandbox whose files nearly fill its memory: they would kill the next kernel."""
        link, memory = self._link, self._memory
        if self._death is None or link is None or link.ended or memory is None:
            return
        if not await memory.has_fallen():
            link.end("the files in the sandbox nearly fill its memory limit")

    def _end_if_still_over(self, run: int) -> None:
        """End the sandbox if PID 1 has not ended kernel number ``run`` yet."""
        link = self._link
        if link is not None and not link.ended and self._run == run and self._exchange.running:
            link.end("PID 1 did not end a kernel over its memory limit")
