"""The runs of one kernel: requests are sent, and what comes back is given to who waits for it.

Two tasks read iopub and shell at all times, so that a kernel never waits for a program that runs
nothing; messages that belong to no run are dropped. Runs take turns. The kernel itself is started
and ended elsewhere (``Kernel``).
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

from gvisor_kernel.api.collector import Collector, Event, with_text
from gvisor_kernel.api.execution import Execution
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.strict_json import parse_json

GRACE_SECONDS = 5.0
"""How long code may go on after its interrupt, before the kernel is killed."""
LAST_SECONDS = 5.0
"""How long the messages of a kernel that has died are waited for."""
QUIET_SECONDS = 0.3
"""Time without a message after which a dead kernel's messages have all come."""
POLL_SECONDS = 1.0
EXIT_POLL_SECONDS = 0.02
WELCOME_SECONDS = 2.0
MAX_PART = 256 * 1024 * 1024
"""Bytes of JSON in one part of a message: as much as the link carries."""
MAX_WAITING = 16
"""Messages that wait for a program that is slow: a sandbox decides how large they are. The bridge
keeps the others back."""

Emit = Callable[[Event], Awaitable[None]]


class Kernel(Protocol):
    """The kernel whose runs these are."""

    def find_end(self) -> str | None:
        """Return why there is no kernel; None while it runs."""

    async def interrupt(self) -> None:
        """Interrupt the code that runs now."""

    async def kill_kernel(self) -> None:
        """Kill the kernel."""


@dataclass
class _Run:
    """The run that the kernel has now.

    ``finished`` is set when its last message has come, or when a listener has failed (``failure``);
    ``replied`` when the code has ended. Its output may still be on the way then; ``idle`` when
    all of it has come, also that of a kernel that has died.
    """

    collector: Collector
    emit: Emit
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    replied: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    failure: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.collector.is_idle and self.collector.has_reply

    def check(self) -> None:
        """Set ``idle``, and ``finished`` if nothing more comes."""
        if self.collector.is_idle:
            self.idle.set()
        if self.is_over:
            self.finished.set()


class Runner:
    """Runs code by ``client``, from ``start`` to ``stop``."""

    def __init__(self, client: AsyncKernelClient, kernel: Kernel) -> None:
        self.turn = asyncio.Lock()
        """Held by the run, or by a restart."""
        self._client = client
        self._kernel = kernel
        self._readers: list[asyncio.Task[None]] = []
        self._welcome = asyncio.Event()
        self._answered = asyncio.Event()
        self._run: _Run | None = None
        self._came = 0
        """Messages of iopub so far."""
        client.session.unpack = _unpack
        client.context.setsockopt(zmq.RCVHWM, MAX_WAITING)  # of the sockets that it will make

    async def start(self, connection: KernelConnectionInfo) -> None:
        """Connect to the kernel. Returns when it answers, and this client gets its output.

        Otherwise the start of a slow kernel would count for the timeout of the first run.

        :raises SandboxError: when the kernel ends before
        """
        self._client.load_connection_info(connection)
        self._client.start_channels(hb=False, stdin=False)
        self._readers = [
            asyncio.create_task(self._read_iopub()),
            asyncio.create_task(self._read_shell()),
        ]
        self._client.kernel_info()
        for came in (self._welcome, self._answered):
            while not came.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(WELCOME_SECONDS):
                        await came.wait()
                        break
                end = self._kernel.find_end()
                if end is not None:
                    raise SandboxError(f"The kernel of this sandbox has ended: {end}")
                self._client.kernel_info()  # whatever comes on iopub now is as good

    def stop(self) -> None:
        """Read no more."""
        for reader in self._readers:
            reader.cancel()
        self._client.stop_channels()

    # -- a run -----------------------------------------------------------------------------------

    async def run(
        self, code: str, timeout: float | None, emit: Emit, collect: Callable[[str], Collector]
    ) -> Execution:
        """Run code in a kernel that runs; ``collect`` makes the collector of a request.

        The caller holds ``turn``. If this is cancelled, the code is ended.

        :raises SandboxError: the messages cannot be read
        """
        request = str(self._client.execute(code, allow_stdin=False, stop_on_error=False))
        run = self._run = _Run(collect(request), emit)
        try:
            if await self._wait_for(run, run.finished, timeout):
                return await self._finish(run)
            how = await self._stop(run)
            text = f"The code ran longer than {timeout:g} s and"
            text += (
                " was interrupted."
                if how == "interrupt"
                else (" ignored its interrupt; the kernel was killed.")
            )
            return run.collector.finish(how, with_text(run.collector.error, "Timeout", text))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._stop(run)))
            raise
        finally:
            self._run = None

    async def end_run(self) -> None:
        """End the code that runs now, if any."""
        if self._run is not None:
            await self._stop(self._run)

    async def _wait_for_exit(self) -> None:
        """Wait for a kernel that is about to exit, which takes a moment after its reply."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                while self._kernel.find_end() is None:
                    await asyncio.sleep(EXIT_POLL_SECONDS)

    async def _finish(self, run: _Run) -> Execution:
        if run.failure is not None:
            raise run.failure
        if run.collector.asks_exit:
            await self._wait_for_exit()
        end = self._kernel.find_end()
        if end is not None and (run.collector.asks_exit or not run.collector.has_reply):
            return run.collector.finish("death", with_text(None, "KernelDied", end))
        return run.collector.finish(None)

    async def _wait_for(self, run: _Run, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait until ``event`` is set, or the kernel has ended; False if it takes longer."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        while not event.is_set():
            if any(reader.done() for reader in self._readers):
                raise SandboxError("The messages of this sandbox can no longer be read.")
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

    async def _stop(self, run: _Run) -> str:
        """End the run: by an interrupt, or else by killing the kernel; return which."""
        if run.is_over or self._kernel.find_end() is not None:
            return "interrupt"
        run.finished.clear()  # a listener may have set it
        await self._kernel.interrupt()
        # Output that the program has not taken yet does not mean that the code goes on.
        replied = await self._wait_for(run, run.replied, GRACE_SECONDS)
        if replied and self._kernel.find_end() is None:
            await self._wait_for(run, run.finished, LAST_SECONDS)
            return "interrupt"
        await self._kernel.kill_kernel()
        await self._wait_for(run, run.finished, LAST_SECONDS)
        return "kill"

    # -- messages --------------------------------------------------------------------------------

    async def _read_iopub(self) -> None:
        while True:
            message = await _read(self._client.get_iopub_msg)
            self._came += 1
            self._welcome.set()
            run = self._run
            if message is None or run is None or _parent_of(message) != run.collector.request:
                continue
            try:
                event = run.collector.add(message)
                if event is not None and run.failure is None:
                    await run.emit(event)
            except Exception as error:  # of the program's callback: ends its run
                run.failure = error
                run.finished.set()
            run.check()

    async def _read_shell(self) -> None:
        while True:
            message = await _read(self._client.get_shell_msg)
            self._answered.set()
            run = self._run
            if message is None or run is None or _parent_of(message) != run.collector.request:
                continue
            run.collector.add_reply(message.get("content"))
            run.replied.set()
            run.check()


def _unpack(data: bytes) -> Any:
    """Parse a part of a message; jupyter_client's own function has no bound on nesting.

    :raises ValueError: it is not JSON, or over a bound
    """
    return parse_json(data.decode("utf-8", "replace"), MAX_PART)


def _parent_of(message: dict[str, Any]) -> str | None:
    parent = message.get("parent_header")
    return parent.get("msg_id") if isinstance(parent, dict) else None


async def _read(read: Callable[..., Awaitable[dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the next message of a channel; None for one that is none of the session's."""
    try:
        return await read(timeout=None)
    except (Empty, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None
