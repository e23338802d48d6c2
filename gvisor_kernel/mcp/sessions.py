"""Sessions: the sandboxes of one client, by name. Nothing here knows the protocol.

A session is a kernel in a sandbox of its own. It starts with its first use, and ends when the
client says so, leaves, or does not use it for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gvisor_kernel.api.async_sandbox import KEPT_OUTPUTS, AsyncSandbox
from gvisor_kernel.api.execution import Execution
from gvisor_kernel.api.manager import LANGUAGES
from gvisor_kernel.api.shell import ShellResult
from gvisor_kernel.egress.environment import MCP
from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.mcp.settings import ServerSettings

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
KEPT_ENDS = 32
"""Ended sessions of a client whose end can still be explained."""
END_SECONDS = 15.0
"""How long the sandboxes of a client may take to end."""
DEFAULT_LANGUAGE = "python"
MAX_LARGE = 2
"""Whole outputs that a server has in memory at once: each may have 64 MiB."""


class _Sandbox(AsyncSandbox):
    _door = MCP


@dataclass(eq=False)
class Session:
    """A sandbox under the name that its client knows. ``runs``: the last ones, by number."""

    name: str
    sandbox: AsyncSandbox
    folder: Path | None
    runs: dict[int, Execution] = field(default_factory=dict)
    run_count: int = 0
    calls: int = 0
    used: float = field(default_factory=time.monotonic)
    is_new: bool = True
    """No call has used it yet."""
    is_named: bool = False
    """Each call has to name it, as its client has no default session."""
    _work: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def language(self) -> str:
        """The language of its kernel."""
        return self.sandbox.language

    @property
    def state(self) -> str:
        """``idle``, ``busy``, or ``dead`` if its kernel has ended."""
        if not self.sandbox.alive:
            return "dead"
        return "busy" if self.calls else "idle"

    def check_alive(self) -> None:
        """Check that the kernel runs.

        :raises SandboxError: it does not
        """
        if not self.sandbox.alive:
            fact = f"The kernel of the session {self.name!r} has ended, and its variables are gone."
            raise SandboxError(fact, self._restarting)

    @property
    def _restarting(self) -> str:
        return (
            f'call sandbox_restart_session with session="{self.name}", then run again what the'
            " code relies on. Files in the sandbox stay."
        )

    async def use(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work that needs the kernel, as ``do``.

        :raises SandboxError: it has failed; if the kernel has ended, the hint is about that
        """
        try:
            return await self.do(work)
        except SandboxError as error:
            if error.hint and not self.sandbox.alive:
                error.hint = self._restarting
            raise

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work with the sandbox. If this is cancelled, so is the work, which ends by itself.

        The work has a task of its own: the protocol's library cancels again and again until a
        handler has ended, and an interrupt of a kernel has several steps.
        """
        task = asyncio.ensure_future(work)
        self._work.add(task)
        self.calls += 1
        task.add_done_callback(self._note_done)
        try:
            # no timeout: the timeout of a run, FILE_SECONDS, or a start
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise SandboxError(
                    f"The session {self.name!r} was stopped while it did this."
                ) from None
            task.cancel()
            raise

    def _note_done(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        self.calls -= 1
        self.used = time.monotonic()
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may wait any more

    def keep(self, run: Execution | ShellResult) -> int:
        """Keep by which name the sandbox knows the output of a run; return its number."""
        self.run_count += 1
        self.runs[self.run_count] = Execution(id=run.id)  # its output is in a file
        while len(self.runs) > KEPT_OUTPUTS:
            del self.runs[next(iter(self.runs))]
        return self.run_count

    async def close(self) -> None:
        """End the sandbox. An outputs folder without files is removed. Does not raise."""
        for task in tuple(self._work):
            task.cancel()
        with contextlib.suppress(GvisorKernelError, OSError, RuntimeError):
            await self.sandbox.close()
        if self.folder is not None:
            remove_if_empty(self.folder)


def remove_if_empty(folder: Path) -> None:
    """Remove an outputs folder that has no files."""
    with contextlib.suppress(OSError):
        # by path: a folder in one that a person has named, and that no sandbox sees; only an empty
        # one is removed
        folder.rmdir()


class Sandboxes:
    """Starts the sandboxes of one server, within the limit for all clients together."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.large = asyncio.Semaphore(MAX_LARGE)
        self._taken = 0
        self._first: asyncio.Task[tuple[AsyncSandbox, Path | None]] | None = None

    def start_first(self) -> None:
        """Begin to start a sandbox of the default language, for the first who wants one."""
        self._first = asyncio.ensure_future(self._start(DEFAULT_LANGUAGE))

    async def take(self, name: str, language: str, source: Session | None = None) -> Session:
        """Return a session with a sandbox that has started. ``give_back`` ends it. ``source``: it
        goes on from the state of that one.

        :raises GvisorKernelError: it cannot be started, or the server has too many
        """
        if self._taken >= self.settings.limits.all_sessions:
            raise SandboxError(
                f"This server has {self._taken} sessions, which is its limit.",
                "stop a session with sandbox_stop_session, or try again later.",
            )
        self._taken += 1
        try:
            if source is not None:
                [sandbox], folder = await source.use(source.sandbox.branch()), None
            else:
                sandbox, folder = await self._take(language)
        except BaseException:
            self._taken -= 1
            raise
        return Session(name, sandbox, folder)

    async def _take(self, language: str) -> tuple[AsyncSandbox, Path | None]:
        first = self._first
        if first is not None and language == DEFAULT_LANGUAGE:
            self._first = None
            sandbox, folder = await first  # no timeout: bounded by start_timeout
            if sandbox.alive:
                return sandbox, folder
            await sandbox.close()
        return await self._start(language)

    async def _start(self, language: str) -> tuple[AsyncSandbox, Path | None]:
        outputs = self.settings.outputs
        folder = None if outputs is None else outputs.name_new()
        try:
            sandbox = await _Sandbox.create(
                language=language, outputs=folder, **self.settings.sandbox
            )
        except BaseException:
            if folder is not None:
                remove_if_empty(folder)
            raise
        return sandbox, folder

    async def give_back(self, session: Session) -> None:
        """End a session that was taken."""
        try:
            await session.close()
        finally:
            self._taken -= 1

    async def close(self) -> None:
        """End the sandbox that nobody has taken. Does not raise."""
        first, self._first = self._first, None
        if first is None:
            return
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError, GvisorKernelError, OSError):
            async with asyncio.timeout(END_SECONDS):
                sandbox, folder = await first
                await sandbox.close()
                if folder is not None:
                    remove_if_empty(folder)


class Sessions:
    """The sessions of one client. ``is_stateless``: its calls cannot be told from other clients'.

    Then there is no default session: a call without a name starts a session whose name nobody can
    guess, and says it.
    """

    def __init__(self, sandboxes: Sandboxes, *, is_stateless: bool = False) -> None:
        self.limits = sandboxes.settings.limits
        self.is_stateless = is_stateless
        self.large = sandboxes.large
        """To be held while a whole output is in memory, never while waiting for a kernel."""
        self._sandboxes = sandboxes
        self._open: dict[str, Session] = {}
        self._starting: dict[str, asyncio.Task[Session]] = {}
        self._ends: dict[str, str] = {}
        self._closed = False

    def list(self) -> list[Session]:
        """Return the sessions that are open, in the order of their starts."""
        return list(self._open.values())

    def get(self, name: str) -> Session:
        """Return the open session of that name.

        :raises SandboxError: there is none
        """
        session = self._open.get(name)
        if session is None:
            raise SandboxError(*self._describe_missing(name))
        session.used = time.monotonic()
        return session

    def _describe_missing(self, name: str) -> tuple[str, str]:
        names = ", ".join(self._open) if not self.is_stateless else ""
        hint = "start it with sandbox_start_session"
        hint += f", or use one of these: {names}." if names else "."
        if name in self._ends:
            return f"The session {name!r} has ended: {self._ends[name]}. Its data is gone.", hint
        return f"There is no session {name!r}.", hint

    async def find(self, name: str | None, language: str | None) -> Session:
        """Return a session for a call: the named one, or that of the language, which may start.

        :raises GvisorKernelError: there is none of that name, it has another language, or it
            cannot be started
        """
        if name is None or (name in LANGUAGES and name not in self._open and not self.is_stateless):
            language = language or (name if name in LANGUAGES else None) or DEFAULT_LANGUAGE
            if self.is_stateless:
                return await self.start(None, language)
            name = name or language
            if name not in self._open:
                return await self.start(name, language)
        session = self.get(name)
        if language is not None and session.language != language:
            raise SandboxError(
                f"The session {name!r} runs {session.language}, not {language}.",
                "leave one of the two arguments out.",
            )
        return session

    async def start(
        self, name: str | None, language: str, source: Session | None = None
    ) -> Session:
        """Return a new session, or the one of that name that is being started. ``source``: as for
        ``Sandboxes.take``.

        :raises GvisorKernelError: there is one of that name, there are too many, or it fails
        """
        if self._closed:
            raise SandboxError("The client has left.")
        if name is None:
            name = f"{language}-{secrets.token_hex(8)}"
        starting = self._starting.get(name)
        if starting is None:
            self._check_new(name)
            starting = asyncio.ensure_future(self._start(name, language, source))
            self._starting[name] = starting
            starting.add_done_callback(lambda task: self._note_started(name, task))
        # Who asked may cancel, while others wait for the same session.
        return await asyncio.shield(starting)  # no timeout: bounded by start_timeout

    def _check_new(self, name: str) -> None:
        if name in self._open:
            raise SandboxError(
                f"There is a session {name!r} already.",
                "use it, or start one with another name, or call sandbox_restart_session.",
            )
        count = len(self._open) + len(self._starting)
        limits = self.limits
        if count >= (limits.all_sessions if self.is_stateless else limits.sessions):
            names = "" if self.is_stateless else f" ({', '.join(self._open)})"
            raise SandboxError(
                f"There are {count} sessions{names}, which is the limit.",
                "stop one with sandbox_stop_session, or use one again.",
            )

    async def _start(self, name: str, language: str, source: Session | None) -> Session:
        session = await self._sandboxes.take(name, language, source)
        if self._closed:
            await self._sandboxes.give_back(session)
            raise SandboxError("The client has left.")
        session.is_named = self.is_stateless
        self._open[name] = session
        self._ends.pop(name, None)
        return session

    def _note_started(self, name: str, task: asyncio.Task[Session]) -> None:
        self._starting.pop(name, None)
        if not task.cancelled():
            task.exception()

    async def stop(self, name: str, reason: str = "it was stopped") -> None:
        """End a session, whatever it does.

        :raises SandboxError: there is none of that name
        """
        session = self.get(name)
        del self._open[name]
        self._ends[name] = reason
        while len(self._ends) > KEPT_ENDS:
            del self._ends[next(iter(self._ends))]
        # no timeout: it is finished or undone, by steps that have timeouts
        await asyncio.shield(asyncio.ensure_future(self._sandboxes.give_back(session)))

    async def stop_idle(self) -> None:
        """End the sessions that nobody has used for ``idle_seconds``."""
        now = time.monotonic()
        for session in self.list():
            if not session.calls and now - session.used > self.limits.idle_seconds:
                with contextlib.suppress(SandboxError):
                    reason = f"nothing used it for {self.limits.idle_seconds:g} s"
                    await self.stop(session.name, reason)

    async def close(self) -> None:
        """End all sessions, also those that are being started. Idempotent; does not raise."""
        self._closed = True
        for task in tuple(self._starting.values()):
            task.cancel()
        sessions, self._open = self.list(), {}
        work = [self._sandboxes.give_back(session) for session in sessions]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await asyncio.gather(*work, *self._starting.values(), return_exceptions=True)
