"""``Sandbox``: an ``AsyncSandbox`` for programs without an event loop. Any thread may use it."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, overload

from gvisor_kernel.api import mapping
from gvisor_kernel.api.async_sandbox import AsyncSandbox
from gvisor_kernel.api.collector import MAX_OUTPUT, MAX_RICH, Event
from gvisor_kernel.api.execution import Execution, ExecutionError, Result
from gvisor_kernel.api.files import MAX_READ, AsyncFiles
from gvisor_kernel.api.loop_thread import LoopThread
from gvisor_kernel.api.mapping import MapResult
from gvisor_kernel.api.shell import ShellResult
from gvisor_kernel.changes.apply import undo_apply
from gvisor_kernel.changes.change import Undone
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.kernel.lasting import LastingSandbox, list_lasting

P = ParamSpec("P")
S = TypeVar("S", covariant=True)  # AsyncSandbox has methods of its base classes
T = TypeVar("T")


class _Blocking(Generic[S]):
    """The blocking form of ``_target``, whose coroutines run in ``_thread``."""

    _thread: LoopThread
    _target: S


def _blocking(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Blocking[S], P], T]:
    """Return a method of ``_target`` as one that waits for its result."""

    @wraps(method)
    def call(self: _Blocking[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(method(self._target, *args, **kwargs))

    return call


class Sandbox(_Blocking[AsyncSandbox]):
    """A kernel in a sandbox of its own, which starts at once. Arguments: those of AsyncSandbox.

    End it with ``close``, or use ``with``. A process that exits ends those that are open, but for
    one with ``lasting=True``: the next program takes it over by ``attach``.

    :raises GvisorKernelError: when a setting is wrong, or the sandbox cannot be started
    """

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
        self._thread = LoopThread.instance()

        async def start() -> AsyncSandbox:
            sandbox = AsyncSandbox(
                language=language,
                uploads=uploads,
                outputs=outputs,
                timeout=timeout,
                max_output=max_output,
                max_rich=max_rich,
                lasting=lasting,
                **settings,
            )
            return await sandbox.start()

        self._adopt(self._thread.run(start()))

    def _adopt(self, sandbox: AsyncSandbox) -> None:
        self._target = sandbox
        self.files = Files(self._thread, sandbox.files)
        if not sandbox.lasting:
            self._thread.note_open(sandbox)

    @classmethod
    def create(cls, **arguments: Any) -> Self:
        """Return a sandbox that has started. Arguments: those of the class."""
        return cls(**arguments)

    @classmethod
    def attach(cls, id: str, **arguments: Any) -> Self:
        """Return a sandbox whose kernel goes on as another program has left it; see
        ``AsyncSandbox.attach``."""
        thread = LoopThread.instance()
        return cls._of(thread, thread.run(AsyncSandbox.attach(id, **arguments)))

    @staticmethod
    def saved() -> tuple[LastingSandbox, ...]:
        """Return what programs of this user have left; see ``AsyncSandbox.saved``."""
        return list_lasting()

    @classmethod
    def _of(cls, thread: LoopThread, sandbox: AsyncSandbox) -> Self:
        """Return the blocking form of a sandbox that has started in ``thread``."""
        self = cls.__new__(cls)
        self._thread = thread
        self._adopt(sandbox)
        return self

    def close(self) -> None:
        """End the kernel and its sandbox. Idempotent."""
        if self._thread.is_inherited:
            return
        self._thread.run(self._target.close())
        self._thread.note_closed(self._target)

    kill = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def id(self) -> str:
        """The name of the sandbox in ``gvisor-kernel list``; "" while there is none."""
        return self._target.id

    @property
    def alive(self) -> bool:
        """Return whether the kernel runs."""
        return self._target.alive

    @property
    def is_hibernated(self) -> bool:
        """Return whether the kernel is saved on the disk, and has no memory."""
        return self._target.is_hibernated

    @property
    def language(self) -> str:
        """The language of its kernel."""
        return self._target.language

    def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_stdout: Callable[[str], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
        on_result: Callable[[Result], None] | None = None,
        on_error: Callable[[ExecutionError], None] | None = None,
        max_output: int | None = None,
        max_rich: int | None = None,
    ) -> Execution:
        """Run code in the kernel and return what it gave; see ``AsyncSandbox.run``.

        The callbacks are called in another thread, one at a time; they may use other sandboxes,
        and interrupt this one. Ctrl-C ends the code.

        :raises SandboxError: the kernel does not run any more
        """
        running = self._target.run(
            code,
            timeout=timeout,
            on_stdout=_in_thread(on_stdout),
            on_stderr=_in_thread(on_stderr),
            on_result=_in_thread(on_result),
            on_error=_in_thread(on_error),
            max_output=max_output,
            max_rich=max_rich,
        )
        try:
            return self._thread.run(running)
        except _Ended as ended:
            raise ended.reason from None

    run_code = run

    def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        max_output: int | None = None,
        max_rich: int | None = None,
    ) -> Iterator[Event | Execution]:
        """Yield what code gives as it comes, and the Execution at the end.

        :raises SandboxError: the kernel does not run any more
        """
        events = self._target.stream(
            code, timeout=timeout, max_output=max_output, max_rich=max_rich
        )
        try:
            while True:
                event = self._thread.run(_next(events))
                if event is None:
                    return
                yield event
        finally:
            self._thread.finish(_close(events))

    output = _blocking(AsyncSandbox.output)

    def shell(
        self, command: str, *, timeout: float | None = None, max_output: int | None = None
    ) -> ShellResult:
        """Run a command of the shell in the sandbox, in /workspace, without input.

        :raises SandboxError: the kernel does not run
        """
        return self._thread.run(self._target.shell(command, timeout=timeout, max_output=max_output))

    outputs = _blocking(AsyncSandbox.outputs)
    changes = _blocking(AsyncSandbox.changes)
    diff = _blocking(AsyncSandbox.diff)
    apply = _blocking(AsyncSandbox.apply)
    interrupt = _blocking(AsyncSandbox.interrupt)
    restart = _blocking(AsyncSandbox.restart)
    hibernate = _blocking(AsyncSandbox.hibernate)
    leave = _blocking(AsyncSandbox.leave)
    move = _blocking(AsyncSandbox.move)
    checkpoint = _blocking(AsyncSandbox.checkpoint)
    checkpoints = _blocking(AsyncSandbox.checkpoints)
    remove_checkpoint = _blocking(AsyncSandbox.remove_checkpoint)
    rewind = _blocking(AsyncSandbox.rewind)

    def branch(
        self,
        n: int = 1,
        *,
        name: str | None = None,
        reseed: bool = False,
        from_checkpoint: str | None = None,
    ) -> list[Self]:
        """Return ``n`` sandboxes that go on from the present state, or from that of a checkpoint;
        see ``AsyncSandbox.branch``."""
        branching = self._target.branch(
            n, name=name, reseed=reseed, from_checkpoint=from_checkpoint
        )
        made = self._thread.run(branching)
        return [self._of(self._thread, one) for one in made]

    @staticmethod
    def undo(undo: str | None = None) -> Undone:
        """Undo an ``apply``; see ``AsyncSandbox.undo``."""
        return undo_apply(undo)

    @staticmethod
    def map(
        function: Callable[..., Any] | str,
        inputs: Sequence[Any],
        *,
        workers: int = 4,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[MapResult]:
        """Call a function with each of ``inputs``, each call in a clean sandbox of its own.

        ``function``: a function without outer variables, or its source. Inputs and results are
        JSON. At most ``workers`` run at once. Other arguments: those of AsyncSandbox.

        :raises GvisorKernelError: when a sandbox cannot be started
        :raises ValueError: when there is no source, or an input is not JSON
        """
        work = mapping.run_map(function, inputs, workers=workers, timeout=timeout, **settings)
        return LoopThread.instance().run(work)


class Files(_Blocking[AsyncFiles]):
    """``sandbox.files``: the blocking form of AsyncFiles."""

    def __init__(self, thread: LoopThread, files: AsyncFiles) -> None:
        self._thread, self._target = thread, files

    @overload
    def read(self, path: str, format: Literal["text"] = "text", *, limit: int = ...) -> str: ...

    @overload
    def read(self, path: str, format: Literal["bytes"], *, limit: int = ...) -> bytes: ...

    def read(
        self, path: str, format: Literal["text", "bytes"] = "text", *, limit: int = MAX_READ
    ) -> str | bytes:
        """Return a file's content; see ``AsyncFiles.read``."""
        if format == "bytes":
            return self._thread.run(self._target.read(path, "bytes", limit=limit))
        return self._thread.run(self._target.read(path, limit=limit))

    read_range = _blocking(AsyncFiles.read_range)
    write = _blocking(AsyncFiles.write)
    upload = _blocking(AsyncFiles.upload)
    download = _blocking(AsyncFiles.download)
    list = _blocking(AsyncFiles.list)
    exists = _blocking(AsyncFiles.exists)
    make_dir = _blocking(AsyncFiles.make_dir)
    rename = _blocking(AsyncFiles.rename)
    move = _blocking(AsyncFiles.move)
    remove = _blocking(AsyncFiles.remove)


class _Ended(Exception):
    """A listener has raised ``reason``, such as SystemExit, which would end the loop."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


def _in_thread(listener: Callable[[T], None] | None) -> Callable[[T], Awaitable[None]] | None:
    """Return a listener that leaves the loop, which is that of all sandboxes, free meanwhile."""
    if listener is None:
        return None

    # Of the caller: in a notebook what a listener prints appears below the cell that runs.
    context = contextvars.copy_context()

    def call(event: T) -> BaseException | None:
        try:
            context.run(listener, event)
        except BaseException as error:  # StopIteration and SystemExit cannot pass through a future
            return error
        return None

    async def listen(event: T) -> None:
        error = await in_thread(call, event)
        if error is not None:
            raise _Ended(error)

    return listen


async def _next(events: Any) -> Event | Execution | None:
    event: Event | Execution | None = await anext(events, None)
    return event


async def _close(events: Any) -> None:
    with suppress(RuntimeError):  # somebody takes an event just now, who ends it later
        await events.aclose()
