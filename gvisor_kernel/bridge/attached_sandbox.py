"""The sandbox that a kernel has now: links it, asks its guest, watches its memory, closes it.

Decides neither when it starts a kernel or ends (``kernel``) nor why a kernel died (``run``), and
reads no message (``exchange``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gvisor_kernel.bridge.addresses import KernelIdentity
from gvisor_kernel.bridge.exchange import Exchange
from gvisor_kernel.bridge.limits import MemoryWatch, Sharing
from gvisor_kernel.bridge.link_streams import OpenEgress
from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox, PausableSandbox, close_sandbox
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.sandbox_link import SandboxLink
from gvisor_kernel.bridge.sleep import SleepPolicy
from gvisor_kernel.errors import LaunchError, StartTimedOut
from gvisor_kernel.link import Event, Hello, LocalProtocolError, Resume, Resumed, Start, Started

T = TypeVar("T")

MAX_LAST_LINE = 300
"""Characters of a dead kernel's stderr that are shown as its last output."""


class AttachedSandbox:
    """At most one sandbox, from ``take_over`` to ``close``; then there may be another.

    Calls ``on_event(event)`` for each event of the link; the owner passes answers of the guest to
    ``take_answer``. Calls ``on_end(reason)`` when the link has ended; the owner calls
    ``fail_answers``.
    """

    def __init__(
        self,
        identity: KernelIdentity,
        exchange: Exchange,
        records: Records,
        sharing: Sharing,
        on_event: Callable[[Event], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.sandbox: LinkedSandbox | None = None
        self.memory: MemoryWatch | None = None
        """The watch of this sandbox, or of the last one."""
        self._received = self._sent = 0
        """Bytes on links before this one."""
        self._identity = identity
        self._exchange = exchange
        self._records = records
        self._sharing = sharing
        self._on_event = on_event
        self._on_end = on_end
        self.before_removal: Callable[[LinkedSandbox], Awaitable[None]] | None = None
        """Awaited when a sandbox has ended, before its files are removed. Bounded, never raises."""
        self.on_sleep: Callable[[bool], None] = lambda stopped: None
        """Called when an idle sandbox was stopped, or resumed."""
        self._loop = asyncio.get_running_loop()
        self._awaited: dict[type, asyncio.Future[Any]] = {}
        """The answers of the guest that are awaited, by their class."""
        self._quiesced: asyncio.Future[None] | None = None

    @property
    def link(self) -> SandboxLink | None:
        """The link to this sandbox, or to the last one."""
        return self._exchange.link

    @property
    def linked(self) -> bool:
        """Return whether there is a link that has not ended."""
        return self.link is not None and not self.link.ended

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that were received and sent on all links so far. Any thread."""
        link = self.link
        received, sent = (link.received, link.sent) if link is not None else (0, 0)
        return self._received + received, self._sent + sent

    # -- begin and end ---------------------------------------------------------------------------

    def take_over(
        self,
        sandbox: LinkedSandbox,
        memory: MemoryWatch,
        log_path: Path,
        transcripts: Path | None,
    ) -> None:
        """Take over ``sandbox``. ``greet`` or ``resume`` links it, and starts ``memory``."""
        self._records.open(log_path, transcripts)
        self.sandbox, self.memory = sandbox, memory

    def end_link(self, reason: str) -> None:
        """Kill the sandbox and end its link, which calls ``on_end``. Idempotent."""
        if self.link is not None:
            self.link.end(reason)

    def release(self) -> LinkedSandbox | None:
        """Hand the sandbox back: the caller closes it."""
        sandbox, self.sandbox = self.sandbox, None
        return sandbox

    async def close(self) -> None:
        """Remove the files of the sandbox, whose link has ended, and close its log. Idempotent."""
        if self.memory is not None:
            self.memory.stop()
        sandbox = self.release()
        if sandbox is not None:
            try:
                if self.before_removal is not None:
                    await self.before_removal(sandbox)
            finally:
                await close_sandbox(sandbox)
        self._records.close()

    def _connect(self, resume: Resume | None = None) -> None:
        """:raises LocalProtocolError: when ``resume`` is too large"""
        sandbox = self.sandbox
        assert sandbox is not None
        self._received, self._sent = self.carried
        sleep = SleepPolicy(lambda: not self._exchange.pending, self._on_sleep_change)
        self._exchange.link = SandboxLink(
            *(sandbox, self._on_event, self._on_end, self._exchange.clients.resume_reading),
            *(self._sharing.add(), resume),
            sleep if self._identity.idle_stop and isinstance(sandbox, PausableSandbox) else None,
            lambda: self._exchange.pending,
        )

    def _on_sleep_change(self, stopped: bool) -> None:
        """Measure memory only while the sandbox runs: a stopped one takes no more."""
        if self.memory is not None:
            self.memory.stop()
            if not stopped:
                self.memory.start()
        self.on_sleep(stopped)

    async def end_if_memory_stays(self) -> None:
        """End a sandbox whose files nearly fill its memory: they would kill the next kernel."""
        link, memory = self.link, self.memory
        if link is None or link.ended or memory is None:
            return
        if not await memory.has_fallen():
            link.end("the files in the sandbox nearly fill its memory limit")

    # -- questions to the guest ------------------------------------------------------------------

    async def greet(self, timeout: float) -> Hello:
        """Connect to a new sandbox, and return the HELLO of its guest.

        :raises LaunchError: when none comes within ``timeout`` seconds, or the sandbox ends
        """
        with self._awaiting(Hello) as answer:
            self._connect()
            hint = "raise the setting start_timeout, or look for the cause with: "
            hello = await self.wait(answer, timeout, f"{hint}gvisor-kernel doctor", StartTimedOut)
        self._records.note(f"sandbox is up: {dict(hello.facts)}")
        assert self.memory is not None
        self.memory.start()
        return hello

    async def resume(self, resume: Resume, timeout: float, egress: OpenEgress | None) -> Resumed:
        """Connect to a restored sandbox, and return the RESUMED of its guest.

        ``egress`` is as in ``LinkStreams.carry``, here and below.

        :raises LaunchError: when none comes within ``timeout`` seconds, or the sandbox ends
        :raises LocalProtocolError: when ``resume`` is too large
        """
        with self._awaiting(Resumed) as answer:
            self._connect(resume)
            assert self.link is not None
            self.link.streams.carry(egress, self._records.note)
            assert self.memory is not None
            self.memory.start()
            return await self.wait(answer, timeout)

    async def start(self, start: Start, timeout: float, egress: OpenEgress | None) -> None:
        """Send START and the messages of clients that wait, and wait until the process exists.

        :raises StartTimedOut: when it does not within ``timeout`` seconds, and got no message of a
            client; the sandbox lives, and is the caller's to end
        :raises LaunchError: when it does not although it got one, when the kernel or the sandbox
            ends before, or when START is too long
        """
        link = self.link
        assert link is not None
        try:
            with self._awaiting(Started) as started:
                link.connection.send(start)
                link.streams.carry(egress, self._records.note)
                self._exchange.deliver_waiting()
                link.flush()
                async with asyncio.timeout(timeout):
                    await started
        except LocalProtocolError as error:
            raise self.launch_error(
                f"The kernel cannot be started: {error}",
                "if it is too long, pass fewer or shorter variables (setting environment, or env "
                "in the kernelspec). Otherwise restart the kernel.",
            ) from error
        except TimeoutError:
            has_sent = self._exchange.has_sent
            if has_sent:
                link.end("the kernel did not start in time")
            raise self.launch_error(
                f"The kernel's process did not start within {timeout:g} s.",
                "raise the setting start_timeout.",
                LaunchError if has_sent else StartTimedOut,
            ) from None

    async def quiesce(self, timeout: float) -> None:
        """Wait until no data is on its way in either direction.

        :raises LaunchError: when the guest does not answer within ``timeout`` seconds, or ends
        """
        assert self.link is not None
        try:
            self._quiesced = self.link.quiesce()
            await self.wait(self._quiesced, timeout)
        except LocalProtocolError as error:
            raise self.launch_error(f"The sandbox has ended: {error}") from error
        finally:
            self._quiesced = None

    async def wait(
        self,
        answer: asyncio.Future[T],
        timeout: float,
        hint: str = "look for the cause with: gvisor-kernel doctor",
        kind: type[LaunchError] = LaunchError,
    ) -> T:
        """Await an answer from inside; end the sandbox after ``timeout`` seconds without one.

        :raises LaunchError: when there is none, of that ``kind``
        """
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            self.end_link(f"no answer within {timeout:g} s")
            raise self.launch_error(
                f"The sandbox of {self._identity.name} did not answer within {timeout:g} s.",
                hint,
                kind,
            ) from None

    # -- answers of the guest --------------------------------------------------------------------

    def take_answer(self, event: Event) -> None:
        """Take an answer of the guest; one that nobody awaits is ignored."""
        awaited = self._awaited.get(type(event))
        if awaited is not None and not awaited.done():
            awaited.set_result(event)

    @contextmanager
    def _awaiting(self, kind: type[T]) -> Iterator[asyncio.Future[T]]:
        """Give the future of an answer of that class."""
        awaited: asyncio.Future[T] = self._loop.create_future()
        self._awaited[kind] = awaited
        try:
            yield awaited
        finally:
            del self._awaited[kind]

    def fail_start(self, status: int) -> None:
        """Fail the awaited start of a kernel that has ended with ``status``, if one is awaited."""
        started = self._awaited.get(Started)
        if started is not None and not started.done():
            started.set_exception(
                self.launch_error(
                    f"The kernel of {self._identity.name} did not start (exit status {status})."
                )
            )

    def fail_answers(self, reason: str) -> bool:
        """Fail what is awaited from a link that has ended, except the start of a process.

        Returns whether that was an answer without which the sandbox has no kernel.
        """
        renewal = self._exchange.renewal
        settled = None if renewal is None else renewal.done
        for awaited in (self._awaited.get(Hello), self._awaited.get(Resumed), settled):
            if awaited is not None and not awaited.done():
                awaited.set_exception(
                    self.launch_error(
                        f"The sandbox of {self._identity.name} ended during the start: {reason}."
                    )
                )
                return True
        if self._quiesced is not None and not self._quiesced.done():
            self._quiesced.set_exception(
                self.launch_error(
                    f"The sandbox of {self._identity.name} ended before its snapshot: {reason}."
                )
            )
        return False

    # -- what it wrote ---------------------------------------------------------------------------

    def find_last_line(self) -> str:
        """Return the last line that was written inside, or nothing."""
        lines = [
            line.strip() for line in [*self._read_stderr().splitlines(), *self._records.recent]
        ]
        return next((line[:MAX_LAST_LINE] for line in reversed(lines) if line), "")

    def find_panic(self) -> str:
        """Return what the runtime said as it failed, if it did."""
        return self.sandbox.find_panic() if self.sandbox is not None else ""

    def find_cause(self) -> str:
        """Return what the engine says of the end of the sandbox, if there is one that does."""
        return self.sandbox.find_cause() if self.sandbox is not None else ""

    def launch_error(
        self, fact: str, hint: str = "", kind: type[LaunchError] = LaunchError
    ) -> LaunchError:
        """Return an error with the last lines from inside as its detail."""
        tail = self._read_stderr()
        tail = "\n".join([*self._records.recent, tail])
        if not hint and not tail:
            hint = "check this machine with: gvisor-kernel doctor"
        return kind(fact, hint, tail)

    def _read_stderr(self) -> str:
        return self.sandbox.stderr_tail() if self.sandbox is not None else ""
