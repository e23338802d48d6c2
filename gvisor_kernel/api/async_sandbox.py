"""``AsyncSandbox``: one kernel in one sandbox, for a program with an event loop.

jupyter_client's manager and client do the work. Two tasks read iopub and shell at all times, so
that a kernel never waits for a program that runs nothing; messages that belong to no run are
dropped. Runs take turns.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import Any, Self

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient

from gvisor_kernel.api.collector import Collector, Event, Output, with_text
from gvisor_kernel.api.execution import Execution, ExecutionError, Printed, Result
from gvisor_kernel.api.files import AsyncFiles
from gvisor_kernel.api.manager import describe_folder, make_manager
from gvisor_kernel.api.shell import ShellResult, run_shell
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.strict_json import parse_json

MAX_OUTPUT = 1024 * 1024
"""Bytes of text of each stream, and of results, in one Execution, unless a program says more."""
GRACE_SECONDS = 5.0
"""How long code may go on after its interrupt, before the kernel is killed."""
LAST_SECONDS = 5.0
"""How long the messages of a kernel that has died are waited for."""
POLL_SECONDS = 1.0
WELCOME_SECONDS = 2.0
MAX_PART = 256 * 1024 * 1024
"""Bytes of JSON in one part of a message: as much as the link carries."""
MAX_WAITING = 16
"""Messages that wait for a program that is slow: a sandbox decides how large they are. The bridge
keeps the others back."""
KEPT_OUTPUTS = 8
"""Runs whose whole output can still be read."""

OnText = Callable[[str], Awaitable[None] | None]
OnResult = Callable[[Result], Awaitable[None] | None]
OnError = Callable[[ExecutionError], Awaitable[None] | None]


@dataclass
class _Run:
    """The run that the kernel has now.

    ``finished`` is set when its last message has come, or when a listener has failed (``failure``);
    ``replied`` when the code has ended. Its output may still be on the way then; ``idle`` when
    all of it has come, also that of a kernel that has died.
    """

    collector: Collector
    emit: Callable[[Event], Awaitable[None]]
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


class AsyncSandbox:
    """A kernel in a sandbox of its own. Use it in the loop in which it was started.

    ``language``: "python", "bash", "typescript" or "java". ``uploads``: a folder that the sandbox
    reads, at /mnt/user-data/uploads and, copied on write, in /workspace. ``outputs``: one that it
    writes, at /mnt/user-data/outputs. None shows no folder of the host. ``timeout``: seconds for
    each run that sets none; None for no limit. ``max_output``: bytes of text and of results in one
    Execution. ``settings``: any setting of a kernelspec, such as ``image``, ``memory_limit`` (or
    ``memory``), ``preload`` or ``egress``. What Jupyter's configuration sets counts before them.

    ``async with`` starts and ends it; so do ``start`` and ``close``.
    """

    def __init__(
        self,
        *,
        language: str = "python",
        uploads: str | Path | None = None,
        outputs: str | Path | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
        **settings: Any,
    ) -> None:
        folders = {"uploads": describe_folder(uploads), "outputs": describe_folder(outputs)}
        self._manager = make_manager(language, {**folders, **settings})
        self.language = language
        self.timeout = timeout
        self.max_output = max_output
        self.files = AsyncFiles(self)
        self._client: AsyncKernelClient | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._welcome = asyncio.Event()
        self._turn = asyncio.Lock()
        self._run: _Run | None = None
        self._outputs: dict[str, Collector] = {}
        self._closed = False
        self._pid = os.getpid()

    # -- life ------------------------------------------------------------------------------------

    @classmethod
    async def create(cls, **arguments: Any) -> Self:
        """Return a sandbox that has started. Arguments: those of the class.

        :raises GvisorKernelError: see ``start``
        """
        return await cls(**arguments).start()

    async def start(self) -> Self:
        """Start the kernel. A failed start leaves nothing behind.

        :raises GvisorKernelError: when a setting is wrong, or the sandbox cannot be started
        """
        if self._client is not None or self._closed:
            raise SandboxError("This sandbox was started before.", "make another one.")
        self._client = client = self._manager.client()
        client.session.unpack = _unpack
        client.context.setsockopt(zmq.RCVHWM, MAX_WAITING)  # of the sockets that it will make
        try:
            await self._manager.start_kernel()
            client.load_connection_info(self._manager.get_connection_info(session=True))
            client.start_channels(hb=False, stdin=False)
            self._readers = [
                asyncio.create_task(self._read_iopub(client)),
                asyncio.create_task(self._read_shell(client)),
            ]
            await self._subscribe(client)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.close()))
            raise
        return self

    async def _subscribe(self, client: AsyncKernelClient) -> None:
        """Wait until this client gets what the kernel publishes."""
        while not self._welcome.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(WELCOME_SECONDS):
                    await self._welcome.wait()
                    return
            self._check_alive()
            client.kernel_info()  # whatever comes on iopub now is as good

    async def close(self) -> None:
        """End the kernel and its sandbox. Idempotent."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        for reader in self._readers:
            reader.cancel()
        try:
            if self._manager.has_kernel or self._manager.provisioner is not None:
                await self._manager.shutdown_kernel(now=True)
        finally:
            if self._client is not None:
                self._client.stop_channels()
            for collector in self._outputs.values():
                collector.close()
            self._outputs.clear()

    async def __aenter__(self) -> Self:
        if self._client is None:
            await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # -- facts -----------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The name of the sandbox in ``gvisor-kernel list``; "" while there is none."""
        kernel = self._provisioner._kernel if self._provisioner is not None else None
        sandbox = kernel.sandbox if kernel is not None else None
        return str(sandbox.identity) if sandbox is not None else ""

    @property
    def alive(self) -> bool:
        """Whether the kernel runs."""
        return self._find_end() is None

    @property
    def _provisioner(self) -> GVisorProvisioner | None:
        provisioner = self._manager.provisioner
        return provisioner if isinstance(provisioner, GVisorProvisioner) else None

    def _find_end(self) -> str | None:
        """Return why there is no kernel; None while it runs."""
        provisioner = self._provisioner
        if self._closed or provisioner is None or provisioner._kernel is None:
            return "It was closed." if self._closed else "It was not started."
        return provisioner._kernel.find_end()

    def _check_alive(self) -> None:
        end = self._find_end()
        if end is not None:
            hint = "make another one." if self._closed else "call restart()."
            raise SandboxError(f"The kernel of this sandbox does not run: {end}", hint)

    # -- running code ----------------------------------------------------------------------------

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
        max_output: int | None = None,
    ) -> Execution:
        """Run code in the kernel and return what it gave. Runs take turns.

        After ``timeout`` seconds, by default the sandbox's, the code is interrupted, and the kernel
        is killed if it goes on for GRACE_SECONDS; ``ended_by`` tells which. If this is cancelled,
        the code is ended in the same way. The callbacks get what comes as it comes, also what is
        over ``max_output``; they may be coroutine functions.

        :raises SandboxError: the kernel does not run any more; an exception or a death of the code
            itself is in the result
        """

        async def emit(event: Event) -> None:
            calls: list[Any] = []
            if isinstance(event, Printed):
                listener = on_stderr if event.stream == "stderr" else on_stdout
                calls = [listener(event.text)] if listener is not None else []
            elif isinstance(event, Result):
                calls = [on_result(event)] if on_result is not None else []
            elif on_error is not None:
                calls = [on_error(event)]
            for call in calls:
                if inspect.isawaitable(call):
                    await call

        return await self._execute(code, timeout, emit, max_output)

    run_code = run

    async def stream(
        self, code: str, *, timeout: float | None = None, max_output: int | None = None
    ) -> AsyncIterator[Event | Execution]:
        """Yield what code gives as it comes, and the Execution at the end; otherwise as ``run``.

        Code whose output nobody takes waits. Leaving the loop ends the code.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue(1)
        is_left = False

        async def emit(event: Event) -> None:
            if not is_left:
                await events.put(event)

        running = asyncio.ensure_future(self._execute(code, timeout, emit, max_output))
        running.add_done_callback(lambda _: _put_end(events))
        try:
            while True:
                taking = asyncio.ensure_future(events.get())
                await asyncio.wait({taking, running}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    break
                event = taking.result()
                if event is None:
                    break
                yield event
            yield await running
        finally:
            is_left = True
            while not events.empty():  # the reader of iopub may wait for room
                events.get_nowait()
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running

    async def _execute(
        self,
        code: str,
        timeout: float | None,
        emit: Callable[[Event], Awaitable[None]],
        max_output: int | None = None,
        *,
        arguments: dict[str, Any] | None = None,
    ) -> Execution:
        """Run code. With ``arguments``, it is one of ``programs.py``: it finds them in its request,
        and has no place in the kernel's history."""
        if self._pid != os.getpid():
            raise SandboxError("This sandbox belongs to the process that forked this one.")
        async with self._turn:
            self._check_alive()
            assert self._client is not None
            request = _send(self._client, code, arguments)
            collector = Collector(request, self.max_output if max_output is None else max_output)
            run = self._run = _Run(collector, emit)
            self._keep_output(collector)
            try:
                return await self._wait(run, self.timeout if timeout is None else timeout)
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(self._stop(run)))
                raise
            finally:
                self._run = None

    async def _wait(self, run: _Run, timeout: float | None) -> Execution:
        if await self._wait_for(run, run.finished, timeout):
            return self._finish(run)
        how = await self._stop(run)
        seconds = f"{timeout:g} s"
        if how == "kill":
            text = f"The code ran longer than {seconds} and ignored its interrupt; the kernel was"
            error = with_text(run.collector.error, "Timeout", f"{text} killed.")
        else:
            text = f"The code ran longer than {seconds} and was interrupted."
            error = with_text(run.collector.error, "Timeout", text)
        return run.collector.finish(how, error)

    def _finish(self, run: _Run) -> Execution:
        if run.failure is not None:
            raise run.failure
        end = self._find_end()
        if end is not None and not run.collector.has_reply:
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
            if self._find_end() is not None:  # its last messages are on their way
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await run.idle.wait()
                return True
        return True

    async def _stop(self, run: _Run) -> str:
        """End the run: by an interrupt, or else by killing the kernel; return which."""
        if run.is_over or self._find_end() is not None:
            return "interrupt"
        run.finished.clear()  # a listener may have set it
        await self.interrupt()
        # Output that the program has not taken yet does not mean that the code goes on.
        if await self._wait_for(run, run.replied, GRACE_SECONDS) and self._find_end() is None:
            await self._wait_for(run, run.finished, LAST_SECONDS)
            return "interrupt"
        if self._provisioner is not None:
            await self._provisioner.kill()
        await self._wait_for(run, run.finished, LAST_SECONDS)
        return "kill"

    def _keep_output(self, collector: Collector) -> None:
        self._outputs[collector.request] = collector
        while len(self._outputs) > KEPT_OUTPUTS:
            self._outputs.pop(next(iter(self._outputs))).close()

    async def output(self, execution: Execution | ShellResult) -> Output:
        """Return all output of one of the last KEPT_OUTPUTS runs or commands, up to 64 MiB.

        :raises SandboxError: it is kept no longer
        """
        collector = self._outputs.get(execution.id)
        if collector is None:
            raise SandboxError(
                "The output of this run is not kept any more.",
                f"ask for it before {KEPT_OUTPUTS} others have run.",
            )
        return await asyncio.to_thread(collector.read_output)

    async def shell(
        self,
        command: str,
        *,
        timeout: float | None = None,
        max_output: int | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> ShellResult:
        """Run a command of the shell in the sandbox, in the kernel's folder, without input.

        ``on_output`` gets what it prints as it comes.

        :raises SandboxError: the kernel does not run, or the language is not Python or Bash
        """
        return await run_shell(self, command, timeout, max_output, on_output)

    async def interrupt(self) -> None:
        """Interrupt the code that runs now, if any."""
        self._check_alive()
        await self._manager.interrupt_kernel()

    async def restart(self) -> None:
        """Start a new kernel: variables are gone; files in the sandbox stay if it still lives.

        :raises GvisorKernelError: it cannot be started
        """
        if self._closed:
            self._check_alive()
        run = self._run
        if run is not None:
            await self._stop(run)
        async with self._turn:
            await self._manager.restart_kernel(now=True)

    # -- messages --------------------------------------------------------------------------------

    async def _read_iopub(self, client: AsyncKernelClient) -> None:
        while True:
            message = await _read(client.get_iopub_msg)
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

    async def _read_shell(self, client: AsyncKernelClient) -> None:
        while True:
            message = await _read(client.get_shell_msg)
            run = self._run
            if message is None or run is None or _parent_of(message) != run.collector.request:
                continue
            run.collector.add_reply(message.get("content"))
            run.replied.set()
            run.check()


def _send(client: AsyncKernelClient, code: str, arguments: dict[str, Any] | None) -> str:
    """Send a request to run code; return its id."""
    is_own = arguments is not None
    content: dict[str, Any] = {"code": code, "silent": is_own, "store_history": not is_own}
    content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": False}
    if is_own:
        content["arguments"] = json.dumps(arguments)  # a path may be no text in UTF-8
    message = client.session.msg("execute_request", content)
    client.shell_channel.send(message)
    return str(message["header"]["msg_id"])


def _unpack(data: bytes) -> Any:
    """Parse a part of a message; jupyter_client's own function has no bound on nesting.

    :raises ValueError: it is not JSON, or over a bound
    """
    return parse_json(data.decode("utf-8", "replace"), MAX_PART)


def _put_end(events: asyncio.Queue[Event | None]) -> None:
    with suppress(asyncio.QueueFull):  # then the reader finds it done
        events.put_nowait(None)


def _parent_of(message: dict[str, Any]) -> str | None:
    parent = message.get("parent_header")
    return parent.get("msg_id") if isinstance(parent, dict) else None


async def _read(read: Callable[..., Awaitable[dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the next message of a channel; None for one that is none of the session's."""
    try:
        return await read(timeout=None)
    except (Empty, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None
