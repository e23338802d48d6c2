"""``AsyncSandbox``: one kernel in one sandbox, for a program with an event loop.

jupyter_client's manager and client do the work. Code runs in the kernel (``runner``); files and
commands are the matter of the sandbox itself (``files``, ``shell``), whatever the kernel does.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

from gvisor_kernel.api.between_runs import BetweenRuns
from gvisor_kernel.api.collector import MAX_OUTPUT, MAX_RICH, Collector, Event, Output
from gvisor_kernel.api.execution import Execution, ExecutionError, Printed, Result, choose_seconds
from gvisor_kernel.api.files import AsyncFiles, list_outputs
from gvisor_kernel.api.lasting import LastingState, wait_for_all
from gvisor_kernel.api.manager import describe_folder, describe_uploads, make_manager
from gvisor_kernel.api.runner import Emit, KernelEnded, Runner, put_end
from gvisor_kernel.api.shell import ShellResult, run_shell
from gvisor_kernel.artifacts.outputs import Listing
from gvisor_kernel.bridge.deaths import End
from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.change import Applied, Change, Changes, Undone
from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.egress.environment import PROGRAM, Door
from gvisor_kernel.errors import GvisorKernelError, OutputsError, SandboxError
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.jupyter.provisioner import GVisorProvisioner
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.kernel.session import SandboxedKernel

KEPT_OUTPUTS = 8
"""Runs whose whole output can still be read."""

OnText = Callable[[str], Awaitable[None] | None]
OnResult = Callable[[Result], Awaitable[None] | None]
OnError = Callable[[ExecutionError], Awaitable[None] | None]


class AsyncSandbox(LastingState):
    """A kernel in a sandbox of its own. Use it in the loop in which it was started.

    ``language``: "python", "bash", "typescript" or "java". ``uploads``: a folder that the sandbox
    reads, at /mnt/user-data/uploads and, copied on write, in /workspace. ``outputs``: one that it
    writes, at /mnt/user-data/outputs. None shows no folder of the host. ``timeout``: seconds for
    each run that sets none; None for no limit. ``max_output``: bytes of text in one Execution, of
    each stream and of results; ``max_rich``: of pictures and other forms. ``settings``: any setting
    of a kernelspec, such as ``image``, ``memory_limit`` (or ``memory``), ``preload`` or ``egress``.
    What Jupyter's configuration sets counts before them; mounts, routes and limits beyond it are
    refused. ``lasting``: it outlives this process, also one that is killed, unless it is closed;
    ``attach`` takes it over.

    ``async with`` starts and ends it; so do ``start`` and ``close``.
    """

    _door: ClassVar[Door] = PROGRAM

    def __init__(
        self,
        *,
        language: str = "python",
        uploads: str | Path | None = None,
        outputs: str | Path | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
        max_rich: int = MAX_RICH,
        lasting: bool = False,
        **settings: Any,
    ) -> None:
        self._arguments = {"language": language, "uploads": uploads, "outputs": outputs, **settings}
        self._arguments |= {"timeout": timeout, "max_output": max_output, "max_rich": max_rich}
        self._arguments["lasting"] = lasting
        self._outputs_folder = describe_folder(outputs)
        folders = {"uploads": describe_uploads(uploads), "outputs": self._outputs_folder}
        self._manager = make_manager(language, {**folders, **settings}, self._door)
        self._manager.lasting = lasting
        self.language = language
        self.timeout = timeout
        self.max_output = max_output
        self.max_rich = max_rich
        self.files = AsyncFiles(self.open_call)
        self._runner: Runner | None = None
        self._between = BetweenRuns(lambda: self._kernel)
        self._outputs: dict[str, Collector] = {}
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
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
        return await self._start()

    async def _start(self, *, resumes: bool = False, stays: bool = False) -> Self:
        """``resumes``: a saved kernel goes on while it is connected to; ``stays``: if it does not,
        it is left as it was."""
        if self._runner is not None or self._closed:
            raise SandboxError("This sandbox was started before.", "make another one.")
        self._loop = asyncio.get_running_loop()
        self._runner = Runner(self._manager.client(), self, self._between)
        try:
            await self._manager.start_kernel()
            begin = [self._runner.start(self._manager.get_connection_info(session=True))]
            if resumes:
                begin.append(self._require_kernel().hibernation.resume())
            await wait_for_all(begin)
        except BaseException:
            if stays and self._kernel is not None:
                with suppress(GvisorKernelError):
                    await self._leave(self._kernel)
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End the kernel and its sandbox. Idempotent; if it is cancelled, it goes on behind."""
        if self._pid != os.getpid():
            return
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._manager.has_kernel or self._manager.provisioner is not None:
                await self._manager.shutdown_kernel(now=True)
        finally:
            if self._runner is not None:
                self._runner.stop()
            for collector in self._outputs.values():
                collector.close()
            self._outputs.clear()

    kill = close

    async def __aenter__(self) -> Self:
        if self._runner is None:
            await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- facts -----------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The name of the sandbox in ``gvisor-kernel list``; "" while there is none."""
        facts = self._kernel.describe() if self._kernel is not None else None
        return str(facts.identity or "") if facts is not None else ""

    @property
    def closed(self) -> bool:
        """Return whether it was ended by ``close``."""
        return self._closed

    @property
    def alive(self) -> bool:
        """Return whether the kernel runs."""
        return self.find_end() is None

    @property
    def _provisioner(self) -> GVisorProvisioner | None:
        provisioner = self._manager.provisioner
        return provisioner if isinstance(provisioner, GVisorProvisioner) else None

    @property
    def _kernel(self) -> SandboxedKernel | None:
        return self._provisioner.sandboxed_kernel if self._provisioner is not None else None

    def find_end(self) -> End | None:
        """Return why there is no kernel; None while it runs."""
        if self._closed or self._kernel is None:
            return "It was closed." if self._closed else "It was not started."
        return self._kernel.find_end()

    def _check_alive(self) -> None:
        end = self.find_end()
        if end is None:
            return
        if self._closed:
            raise SandboxError(f"This sandbox cannot be used: {end}", "make another one.")
        if self._runner is None:
            hint = "use it in async with, call start(), or make it with create()."
            raise SandboxError(f"This sandbox cannot be used: {end}", hint)
        raise KernelEnded(end)

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
        max_rich: int | None = None,
    ) -> Execution:
        """Run code in the kernel and return what it gave. Runs take turns.

        After ``timeout`` seconds, by default the sandbox's, the code is interrupted, and the kernel
        is killed if it goes on for GRACE_SECONDS; ``ended_by`` tells which. If this is cancelled,
        the code is ended in the same way. The callbacks get what comes as it comes, also what is
        over a limit; they may be coroutine functions. A sandbox that hibernates is woken first, in
        ``start_timeout``; ``timeout`` begins then.

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
                    await call  # no timeout: the program's own listener

        return await self._execute(code, timeout, emit, (max_output, max_rich))

    run_code = run

    async def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        max_output: int | None = None,
        max_rich: int | None = None,
    ) -> AsyncIterator[Event | Execution]:
        """Yield what code gives as it comes, and the Execution at the end; otherwise as ``run``.

        Code whose output nobody takes waits. Leaving the loop ends the code.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue(1)
        is_left = False

        async def emit(event: Event) -> None:
            if not is_left:
                await events.put(event)

        limits = max_output, max_rich
        running = asyncio.ensure_future(self._execute(code, timeout, emit, limits))
        running.add_done_callback(lambda _: put_end(events))
        try:
            while True:
                # no timeout: the program's code: its timeout, or Ctrl-C
                taking = asyncio.ensure_future(events.get())
                # no timeout: the program's code: its timeout, or Ctrl-C
                await asyncio.wait({taking, running}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    break
                event = taking.result()  # no timeout: it is done
                if event is None:
                    break
                yield event
            yield await running  # no timeout: the program's code: its timeout, or Ctrl-C
        finally:
            is_left = True
            while not events.empty():  # the reader of iopub may wait for room
                events.get_nowait()
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running  # no timeout: the program's code: its timeout, or Ctrl-C

    async def _execute(
        self, code: str, timeout: float | None, emit: Emit, limits: tuple[int | None, int | None]
    ) -> Execution:
        self._check_owner()
        if not isinstance(code, str):
            raise TypeError(f"The code must be text, not {type(code).__name__}.")
        try:
            code.encode()
        except UnicodeEncodeError:
            raise ValueError(
                "The code has characters that UTF-8 does not have (lone surrogates)."
            ) from None
        seconds = choose_seconds(timeout, self.timeout)
        self._check_alive()
        assert self._runner is not None

        def collect(request: str) -> Collector:
            return self.collect(request, *limits)

        return await self._runner.run(code, seconds, emit, collect)

    def collect(
        self, name: str, max_output: int | None = None, max_rich: int | None = None
    ) -> Collector:
        """Return a collector whose output is kept for ``output``, as that of ``name``."""
        collector = Collector(
            name,
            self.max_output if max_output is None else max_output,
            self.max_rich if max_rich is None else max_rich,
        )
        self._keep_output(collector)
        return collector

    async def open_call(self, content: Mapping[str, object], data: bytes = b"") -> SandboxCall:
        """Ask the sandbox itself something; for ``files`` and ``shell``.

        :raises SandboxError: the kernel does not run, or too many calls are under way
        """
        self._between.note_use()
        return await self._require_kernel().open_call(content, data)

    def _require_kernel(self) -> SandboxedKernel:
        self._check_owner()
        self._check_alive()
        assert self._kernel is not None
        return self._kernel

    def _check_owner(self) -> None:
        if self._pid != os.getpid():
            raise SandboxError("This sandbox belongs to the process that forked this one.")
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise SandboxError(
                "This sandbox belongs to another event loop.",
                "use it where it was started, or use Sandbox, which any thread may use.",
            )

    def _keep_output(self, collector: Collector) -> None:
        self._outputs[collector.request] = collector
        while len(self._outputs) > KEPT_OUTPUTS:
            self._outputs.pop(next(iter(self._outputs))).close()

    async def output(self, execution: Execution | ShellResult) -> Output:
        """Return all output of one of the last KEPT_OUTPUTS runs or commands, up to 64 MiB.

        :raises SandboxError: it is kept no longer
        """
        collector = self._outputs.get(getattr(execution, "id", ""))
        if collector is None:
            raise SandboxError(
                "The output of this run is not kept any more.",
                f"ask for it before {KEPT_OUTPUTS} others have run.",
            )
        try:
            return await in_thread(collector.read_output)
        except (OSError, ValueError) as error:
            raise SandboxError(f"The output of this run cannot be read: {error}.") from error

    async def shell(
        self,
        command: str,
        *,
        timeout: float | None = None,
        max_output: int | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> ShellResult:
        """Run a command of the shell in the sandbox, in /workspace, without input.

        It runs beside the kernel's code, with the kernel's environment. After ``timeout`` seconds
        it gets SIGINT, and SIGKILL if it goes on for 5 s. Processes that it leaves in the
        background live on until the kernel ends. ``on_output`` gets what it prints as it comes.

        :raises SandboxError: the kernel does not run
        """
        seconds = choose_seconds(timeout, self.timeout)
        call = await self.open_call({"do": "run", "command": command})
        collector = self.collect(uuid4().hex, max_output)
        return await run_shell(call, collector, seconds, self.find_end, on_output)

    async def outputs(self) -> Listing:
        """Return what lies in the folder ``outputs`` on the host, also after the end.

        Links and special files are named apart from files, in ``others``. See ``open_output``.

        :raises OutputsError: there is no such folder, or it cannot be read
        """
        if self._outputs_folder is None:
            raise OutputsError("This sandbox has no folder for outputs.", "name one: outputs=.")
        return await in_thread(list_outputs, self._outputs_folder)

    # -- changes ---------------------------------------------------------------------------------

    async def changes(self) -> Changes:
        """Return what was changed in /workspace, against the folder ``uploads`` on disk.

        :raises SandboxError: the kernel does not run
        :raises ChangesError: the sandbox does not answer as it should
        """
        return await self._find_changes().list()

    async def diff(self, change: Change) -> str:
        """Return the text diff of a change as it was listed; a remark if there is none.

        Names, control characters and what nobody sees are escaped in it.
        """
        return (await self._find_changes().diff(change)).text

    async def apply(
        self,
        changes: Iterable[Change | str] | Change | str,
        *,
        named: Iterable[str] = (),
        unseen: bool = False,
        force: bool = False,
    ) -> Applied:
        """Write changes to the folder ``uploads`` on disk: those that ``changes`` gave, or paths.

        What has changed since ``changes``, on one of both sides, is refused, and so is a file that
        was changed on disk since the kernel was started; ``force`` replaces it nevertheless. Links
        and special files are never written. A path stands for what is below it as well, as it is
        now: whoever says ``unseen`` needs no look. A file that may run later without being opened
        (``Change.runs``) is applied only if its own path is given, here or in ``named``; one of
        ``.git`` needs ``force``, too. ``undo`` of the result is for ``undo``.

        :raises SandboxError: the kernel does not run
        :raises ChangesError: a path is not changed, or nothing can be applied
        """
        asked = [changes] if isinstance(changes, Change | str) else list(changes)
        return await self._find_changes().apply_asked(asked, named, unseen=unseen, force=force)

    @staticmethod
    async def undo(undo: str | None = None) -> Undone:
        """Undo an ``apply``, by its ``undo``; by default the last one of this user.

        It needs no sandbox that runs. What was changed on disk since then is refused, and stays.

        :raises ChangesError: there is nothing to undo, or its folder is not there any more
        """
        return await in_thread(undo_apply, undo)

    def _find_changes(self) -> KernelChanges:
        return KernelChanges(self._require_kernel())

    async def interrupt(self) -> None:
        """Interrupt the code that runs now, if any. Commands of ``shell`` go on."""
        self._check_alive()
        await self._manager.interrupt_kernel()

    async def kill_kernel(self) -> None:
        """Kill the kernel, and what runs in its sandbox. ``restart`` starts a new one."""
        if self._provisioner is not None:
            await self._provisioner.kill()

    async def restart(self) -> None:
        """Start a new kernel: variables are gone; files in the sandbox stay if it still lives.

        Returns when the kernel answers. A sandbox lives for a minute after its kernel has died.

        :raises GvisorKernelError: it cannot be started
        """
        if self._closed:
            self._check_alive()
        runner = self._runner
        if runner is None:
            raise SandboxError("The sandbox was not started.", "call start().")
        restarting = asyncio.ensure_future(self._restart(runner))
        try:
            await asyncio.shield(restarting)  # no timeout: a start, which start_timeout bounds
        except asyncio.CancelledError:
            # no timeout: a start, which start_timeout bounds
            await asyncio.wait({restarting})  # half a restart would be no kernel
            raise

    async def _restart(self, runner: Runner) -> None:
        await runner.end_run()
        async with runner.turn:
            await self._manager.restart_kernel(now=True)
            await runner.wait_for_kernel()
