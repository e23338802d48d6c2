"""The runs of one kernel: requests are sent, and what comes back is given to who waits for it.

Two tasks read iopub and shell at all times, so that a kernel never waits for a program that runs
nothing; messages that belong to no run are dropped. Runs take turns. Each has a task of its own:
who waits for it may be cancelled at any moment, and then the code is ended behind it. The kernel
itself is started and ended elsewhere (``Kernel``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty
from typing import Any, Protocol

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo

from gvisor_kernel.api.between_runs import BetweenRuns
from gvisor_kernel.api.collector import Collector, Event, LeftOut, with_text
from gvisor_kernel.api.execution import MORE_MEMORY, Execution, describe_kernel_end
from gvisor_kernel.bridge.deaths import End, describe_end
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.strict_json import TooManyValues, parse_json

GRACE_SECONDS = 5.0
"""Seconds that code may go on after its interrupt, before the kernel is killed."""
BEGIN_SECONDS = 1.0
"""Seconds that an interrupt waits for its code to begin: one that comes between the request and the
code ends ipykernel, or is lost."""
LAST_SECONDS = 5.0
"""Seconds that the messages of a kernel that has died are waited for."""
QUIET_SECONDS = 0.3
"""Time without a message after which a dead kernel's messages have all come."""
POLL_SECONDS = 1.0
EXIT_POLL_SECONDS = 0.02
WELCOME_SECONDS = 2.0
MAX_PART = 256 * 1024 * 1024
"""Bytes of JSON in one part of a message: as much as the link carries."""
MAX_VALUES = 1_000_000
"""Values in one part: each takes up to a hundred bytes of memory, whatever its JSON takes."""
MAX_WAITING = 16
"""Messages that wait for a program that is slow: a sandbox decides how large they are. The bridge
keeps the others back."""

Emit = Callable[[Event], Awaitable[None]]
Collect = Callable[[str], Collector]


class KernelEnded(SandboxError):
    """The kernel of a sandbox does not run. ``end``: why; ``what``: what was found of it."""

    def __init__(
        self,
        end: End,
        what: str = "The kernel of this sandbox does not run",
        hint: str = "call restart().",
    ) -> None:
        super().__init__(f"{what}: {describe_end(end, MORE_MEMORY)}", hint)
        self.end, self.what = end, what


class Kernel(Protocol):
    """The kernel whose runs these are."""

    def find_end(self) -> End | None:
        """Return why there is no kernel; None while it runs."""

    async def wake(self) -> None:
        """Let a kernel that hibernates go on; if it cannot, the code's reply says why."""

    async def interrupt(self) -> None:
        """Interrupt the code that runs now."""

    async def kill_kernel(self) -> None:
        """Kill the kernel."""


@dataclass
class _Run:
    """A run that has the kernel, or waits for its turn.

    ``began``: its code has begun. ``finished`` is set when its last message has come, when a
    listener has failed (``failure``), or when nobody waits for it (``abandoned``); ``replied`` when
    the code has ended. Its output may still be on the way then; ``idle`` when all of it has come,
    also that of a kernel that has died.
    """

    emit: Emit
    collector: Collector | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    replied: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    failure: BaseException | None = None
    abandoned: bool = False
    emitting: asyncio.Future[None] | None = None
    """A listener that is called now. It ends with the run: the next one has the same reader."""

    def abandon(self) -> None:
        """Say that nobody waits for it any more."""
        self.abandoned = True
        self.finished.set()
        self.release()

    def release(self) -> None:
        """End the listener that is called now."""
        if self.emitting is not None:
            self.emitting.cancel()

    def check(self, collector: Collector) -> None:
        """Set what has come to an end."""
        if collector.is_idle:
            self.idle.set()
        if collector.has_reply:
            self.replied.set()
        if collector.is_idle and collector.has_reply:
            self.finished.set()


class Runner:
    """Runs code by ``client``, from ``start`` to ``stop``."""

    def __init__(self, client: AsyncKernelClient, kernel: Kernel, between: BetweenRuns) -> None:
        self.turn = asyncio.Lock()
        """Held by the run, or by a restart."""
        self._client = client
        self._kernel = kernel
        self._between = between
        self._readers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[Execution]] = set()
        self._welcome = asyncio.Event()
        self._answered = asyncio.Event()
        self._run: _Run | None = None
        self._came = 0
        """Messages of iopub so far."""
        client.session.unpack = _unpack
        client.context.setsockopt(zmq.RCVHWM, MAX_WAITING)  # of the sockets that it will make

    async def start(self, connection: KernelConnectionInfo) -> None:
        """Connect to the kernel. Returns when it answers; see ``wait_for_kernel``.

        :raises SandboxError: when the kernel ends before
        """
        self._client.load_connection_info(connection)
        self._client.start_channels(hb=False, stdin=False)
        self._readers = [
            asyncio.create_task(self._read_iopub()),
            asyncio.create_task(self._read_shell()),
        ]
        await self.wait_for_kernel()

    async def wait_for_kernel(self) -> None:
        """Wait until a kernel that was started answers, and this client gets its output.

        Otherwise the rest of its start would count for the timeout of the first run.

        :raises SandboxError: when the kernel ends before
        """
        for came in (self._welcome, self._answered):
            came.clear()
        self._client.kernel_info()
        for came in (self._welcome, self._answered):
            while not came.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(WELCOME_SECONDS):
                        await came.wait()
                        break
                end = self._kernel.find_end()
                if end is not None:
                    raise KernelEnded(end, "The kernel of this sandbox has ended", hint="")
                self._client.kernel_info()  # whatever comes on iopub now is as good

    def stop(self) -> None:
        """Read no more."""
        for reader in self._readers:
            reader.cancel()
        self._client.stop_channels()

    # -- a run -----------------------------------------------------------------------------------

    async def run(
        self, code: str, timeout: float | None, emit: Emit, collect: Collect
    ) -> Execution:
        """Run code when it is its turn; ``collect`` makes the collector of a request.

        If this is cancelled, the code is ended, and this waits for that; a second cancellation
        ends the wait alone.

        :raises SandboxError: the kernel does not run, or its messages cannot be read
        """
        run = _Run(emit)
        task = asyncio.create_task(self._take_turn(run, code, timeout, collect))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            # no timeout: the program's code: its timeout, or Ctrl-C
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            run.abandon()
            await asyncio.wait({task})  # no timeout: bounded by GRACE_SECONDS and LAST_SECONDS
            raise

    def _forget(self, task: asyncio.Task[Execution]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waited for it may have gone

    async def _take_turn(
        self, run: _Run, code: str, timeout: float | None, collect: Collect
    ) -> Execution:
        async with self.turn:
            await self._between.begin()
            await self._kernel.wake()
            if run.abandoned:
                return Execution()
            end = self._kernel.find_end()
            if end is not None:
                raise KernelEnded(end)
            request = str(self._client.execute(code, allow_stdin=False, stop_on_error=False))
            run.collector = collector = collect(request)
            self._run = run
            try:
                return await self._follow(run, collector, timeout)
            finally:
                self._run = None
                run.release()
                self._between.end()

    async def _follow(self, run: _Run, collector: Collector, timeout: float | None) -> Execution:
        is_finished = await self._wait_for(run.finished, timeout, run)
        if is_finished and not run.abandoned and run.failure is None:
            return await self._finish(collector)
        how = await self._stop(run, collector)
        if run.failure is not None:
            raise run.failure
        seconds = "" if timeout is None else f"{timeout:g} s"
        text = f"The code ran longer than {seconds} and"
        end = (
            "was interrupted."
            if how == "interrupt"
            else ("ignored its interrupt; the kernel was killed.")
        )
        return collector.finish(how, with_text(collector.error, "Timeout", f"{text} {end}"))

    async def end_run(self) -> None:
        """End the code that runs now, if any."""
        run = self._run
        if run is not None and run.collector is not None:
            await self._stop(run, run.collector)

    async def _wait_for_exit(self) -> None:
        """Wait for a kernel that is about to exit, which takes a moment after its reply."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                while self._kernel.find_end() is None:  # no timeout: bounded by LAST_SECONDS
                    await asyncio.sleep(EXIT_POLL_SECONDS)

    async def _finish(self, collector: Collector) -> Execution:
        if collector.asks_exit:
            await self._wait_for_exit()
        end = self._kernel.find_end()
        if end is not None and (collector.asks_exit or not collector.has_reply):
            return collector.finish("death", describe_kernel_end("KernelDied", end))
        return collector.finish(None)

    async def _wait_for(self, event: asyncio.Event, seconds: float | None, run: _Run) -> bool:
        """Wait until ``event`` is set, or the kernel has ended; False if it takes longer."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        while not event.is_set():
            for reader in self._readers:
                if reader.done():
                    reason = None if reader.cancelled() else reader.exception()
                    raise SandboxError(
                        "The messages of this sandbox can no longer be read."
                    ) from reason
            left = POLL_SECONDS if end is None else min(POLL_SECONDS, end - loop.time())
            if left <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await event.wait()
            if self._kernel.find_end() is not None:
                await self._wait_for_last(run)
                return True
        return True

    async def _wait_for_last(self, run: _Run) -> None:
        """Wait for the last messages of a kernel that has ended: the bridge has sent them all."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                came = -1
                while came != self._came and not run.idle.is_set():
                    came = self._came
                    with suppress(TimeoutError):
                        async with asyncio.timeout(QUIET_SECONDS):
                            await run.idle.wait()

    async def _stop(self, run: _Run, collector: Collector) -> str:
        """End the run: by an interrupt, or else by killing the kernel; return which."""
        if (collector.is_idle and collector.has_reply) or self._kernel.find_end() is not None:
            return "interrupt"
        await self._wait_for(run.began, BEGIN_SECONDS, run)
        await self._kernel.interrupt()
        # Output that the program has not taken yet does not mean that the code goes on.
        await self._wait_for_either(run)
        if self._kernel.find_end() is None and (run.replied.is_set() or run.idle.is_set()):
            with suppress(TimeoutError):  # an interrupt may have come just before the reply
                async with asyncio.timeout(QUIET_SECONDS if run.idle.is_set() else LAST_SECONDS):
                    await run.idle.wait()
                    await run.replied.wait()
            return "interrupt"
        await self._kernel.kill_kernel()
        await self._wait_for(run.idle, LAST_SECONDS, run)
        return "kill"

    async def _wait_for_either(self, run: _Run) -> None:
        """Wait until the code has ended, for GRACE_SECONDS at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GRACE_SECONDS
        replied = asyncio.ensure_future(self._wait_for(run.replied, GRACE_SECONDS, run))
        # no timeout: awaited together with an end of GRACE_SECONDS
        idle = asyncio.ensure_future(run.idle.wait())
        try:
            await asyncio.wait(
                {replied, idle},
                timeout=end - loop.time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for waiting in (replied, idle):
                waiting.cancel()
            # no timeout: they are cancelled
            await asyncio.gather(replied, idle, return_exceptions=True)

    # -- messages --------------------------------------------------------------------------------

    def _find_run(self, message: dict[str, Any] | None) -> tuple[_Run, Collector] | None:
        """Return the run that a message answers, if it is the present one."""
        run = self._run
        if message is None or run is None or run.collector is None:
            return None
        return (run, run.collector) if _parent_of(message) == run.collector.request else None

    async def _read_iopub(self) -> None:
        while True:
            message = await _read(self._client.get_iopub_msg)
            self._came += 1
            self._welcome.set()
            found = self._find_run(message)
            if message is None or found is None:
                continue
            run, collector = found
            if message.get("msg_type") != "status":
                run.began.set()
            try:
                event = collector.add(message)
                if event is not None and run.failure is None and not run.abandoned:
                    run.emitting = asyncio.ensure_future(run.emit(event))
                    await run.emitting  # no timeout: the program's own listener, until its run ends
            except BaseException as error:  # of the program's listener: ends its run
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    run.release()
                    raise
                run.failure = error
                run.finished.set()
            run.check(collector)

    async def _read_shell(self) -> None:
        while True:
            message = await _read(self._client.get_shell_msg)
            self._answered.set()
            found = self._find_run(message)
            if message is None or found is None:
                continue
            run, collector = found
            collector.add_reply(message.get("content"))
            run.check(collector)


def _unpack(data: bytes) -> Any:
    """Parse a part of a message; jupyter_client's own function has no bound on nesting.

    :raises ValueError: it is not JSON, or over a bound
    """
    try:
        return parse_json(data.decode("utf-8", "replace"), MAX_PART, MAX_VALUES)
    except TooManyValues:
        return LeftOut(len(data))


def _parent_of(message: dict[str, Any]) -> str | None:
    parent = message.get("parent_header")
    return parent.get("msg_id") if isinstance(parent, dict) else None


async def _read(read: Callable[..., Awaitable[dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the next message of a channel; None for one that is none of the session's."""
    try:
        return await read(timeout=None)
    except (Empty, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None


def put_end(events: asyncio.Queue[Event | None]) -> None:
    """Tell whoever reads ``events`` that there is no more."""
    with suppress(asyncio.QueueFull):  # then the reader finds it done
        events.put_nowait(None)
