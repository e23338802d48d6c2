"""The tools for code and sessions, and the table of all tools.

A tool gets a ``Call`` and validated arguments. It returns a result, or raises a GvisorKernelError
whose hint says what a model can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from mcp_types import CallToolResult, ToolAnnotations
from mcp_types import Tool as ToolDescription
from pydantic import ValidationError

from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.mcp import arguments as forms
from gvisor_kernel.mcp.displays import join_results, make_plain, mark
from gvisor_kernel.mcp.limits import ServerSettings
from gvisor_kernel.mcp.results import (
    RUN_SCHEMA,
    clean,
    make_result,
    make_run_result,
    make_session_result,
    or_null,
)
from gvisor_kernel.mcp.sessions import Session, Sessions
from gvisor_kernel.mcp.situation import Situation

PAUSE_SECONDS = 0.25
MAX_LINE = 200
"""Characters of the last line, in one notification."""

Report = Callable[[float, float | None, str | None], Awaitable[None]]


class Progress:
    """Reports the number of characters that were printed, and the last line.

    ``async with`` it around the run, whose listeners ``note`` is.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0
        self._line = ""
        self._changed = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def note(self, text: str) -> None:
        """Note text that was printed."""
        self._count += len(text)
        lines = text[-4 * MAX_LINE :].rstrip("\n").rsplit("\n", 1)
        self._line = lines[-1]
        self._changed.set()

    async def _send(self) -> None:
        last = 0.0
        while True:
            await self._changed.wait()
            await asyncio.sleep(max(0.0, last + PAUSE_SECONDS - time.monotonic()))
            last = time.monotonic()
            self._changed.clear()
            line = clean(make_plain(self._line)[:MAX_LINE])
            await self._report(float(self._count), None, line)

    async def __aenter__(self) -> Self:
        self._sender = asyncio.ensure_future(self._send())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sender is not None
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._sender


MAX_FIELD = 80
"""Characters of a wrong argument's name that an error repeats."""
BYTES_PER_CHARACTER = 4


@dataclass(frozen=True)
class Call:
    """One call: the sessions of its client, and where its progress goes."""

    sessions: Sessions
    settings: ServerSettings
    report: Report


@dataclass(frozen=True)
class Tool:
    """A tool. ``reads``: it changes nothing. ``destroys``: what it changes may be lost.

    ``description`` may have the words of a Situation in braces.
    """

    name: str
    title: str
    description: str
    arguments: type[forms.Arguments]
    run: Callable[[Call, Any], Awaitable[CallToolResult]]
    output: dict[str, Any] | None = None
    reads: bool = False
    destroys: bool = False
    repeats: bool = False
    """Whether a second call with the same arguments changes nothing more."""

    def describe(self, situation: Situation) -> ToolDescription:
        """Return what a client in this situation is told."""
        return ToolDescription(
            name=self.name,
            title=self.title,
            description=situation.fill(self.description),
            input_schema=forms.describe_schema(self.arguments, situation),
            output_schema=self.output,
            annotations=ToolAnnotations(
                read_only_hint=self.reads,
                destructive_hint=self.destroys,
                idempotent_hint=self.repeats or self.reads,
                open_world_hint=self.output is RUN_SCHEMA and bool(situation.settings.routes),
            ),
        )

    def read_arguments(self, given: dict[str, Any] | None) -> forms.Arguments:
        """Return the arguments of a call.

        :raises SandboxError: they are wrong
        """
        try:
            return self.arguments.model_validate(given or {})
        except ValidationError as error:
            wrong = [
                f"{'.'.join(map(str, item['loc']))[:MAX_FIELD] or 'all'}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)[:5]
            ]
        names = ", ".join(self.arguments.model_fields) or "none"
        raise SandboxError(
            f"The arguments of {self.name} are wrong. {'; '.join(wrong)}.",
            f"call it again; its arguments are: {names}.",
        )


def choose_timeout(call: Call, timeout: float | None) -> float:
    """Return how long a run may take, in seconds.

    :raises SandboxError: when the client wants more than it may have
    """
    limits = call.sessions.limits
    if timeout is None:
        return min(limits.run_seconds, limits.max_run_seconds)
    if timeout > limits.max_run_seconds:
        raise SandboxError(
            f"The timeout is {timeout:g} s, and the limit {limits.max_run_seconds:g} s.",
            "run it in parts, or in the background of the session.",
        )
    return timeout


async def run_code(call: Call, given: forms.RunCode) -> CallToolResult:
    """Run code in a session."""
    timeout = choose_timeout(call, given.timeout)
    session = await call.sessions.find(given.session, given.language)
    session.check_alive()
    limits = call.sessions.limits
    async with Progress(call.report) as progress:
        execution = await session.do(
            session.sandbox.run(
                given.code,
                timeout=timeout,
                on_stdout=progress.note,
                on_stderr=progress.note,
                max_output=limits.shown * BYTES_PER_CHARACTER,
                max_rich=limits.images * limits.image_bytes * 2,
            )
        )
    result = make_run_result(session, session.keep(execution), execution, limits)
    session.is_new = False
    return result


async def run_shell(call: Call, given: forms.Shell) -> CallToolResult:
    """Run a command in a session."""
    timeout = choose_timeout(call, given.timeout)
    session = await call.sessions.find(given.session, None)
    session.check_alive()
    limits = call.sessions.limits
    shown = limits.shown * BYTES_PER_CHARACTER
    async with Progress(call.report) as progress:
        answer = await session.do(
            session.sandbox.shell(
                given.command, timeout=timeout, max_output=shown, on_output=progress.note
            )
        )
    result = make_run_result(session, session.keep(answer), answer, limits)
    session.is_new = False
    return result


async def read_output(call: Call, given: forms.ReadOutput) -> CallToolResult:
    """Read on in what a run gave."""
    session = call.sessions.get(given.session)
    run = session.runs.get(given.run)
    if run is None:
        kept = ", ".join(map(str, session.runs)) or "none"
        raise SandboxError(
            f"The output of run {given.run} of the session {given.session!r} is not kept.",
            f"runs whose output is kept: {kept}. Run the code again, and print less or to a file.",
        )
    async with call.sessions.large:
        output = await session.do(session.sandbox.output(run))
        if given.stream == "result":
            text = join_results(output.results) or ""
        else:
            text = getattr(output, given.stream)
        part, total = text[given.offset : given.offset + given.limit], len(text)
        del output, text
    end = given.offset + len(part)
    note = f"\n[{total - end} more characters: offset={end}]" if end < total else ""
    part = make_plain(part)
    nothing = f"[nothing from {given.offset} on; it has {total}]"
    return make_session_result(
        session,
        f"{mark(given.stream, part)}{note}" if part else nothing,
        {"text": part, "total": total, "next": end if end < total else None},
    )


async def start_session(call: Call, given: forms.StartSession) -> CallToolResult:
    """Start a session."""
    session = await call.sessions.start(given.session, given.language)
    session.is_new = False
    text = f'The session "{session.name}" ({session.language}) has started.'
    return make_session_result(session, text, describe(session))


async def list_sessions(call: Call, given: forms.Nothing) -> CallToolResult:
    """List the sessions of the client."""
    if call.sessions.is_stateless:
        raise SandboxError(
            "This client's sessions cannot be listed: over HTTP, requests of this version of the"
            " protocol do not say which client sends them.",
            "use the names that earlier calls have returned, or start a session.",
        )
    found = [describe(session) for session in call.sessions.list()]
    lines = [
        f"{item['session']}: {item['language']}, {item['state']}, {item['runs']} runs"
        for item in found
    ]
    text = "\n".join(lines) or "No sessions. sandbox_run_code starts one."
    return make_result(text, {"sessions": found})


def describe(session: Session) -> dict[str, Any]:
    """Return a session as a structure."""
    return {
        "session": session.name,
        "language": session.language,
        "state": session.state,
        "runs": session.run_count,
        "sandbox": session.sandbox.id,
    }


async def restart_session(call: Call, given: forms.OneSession) -> CallToolResult:
    """Start a new kernel in a session."""
    session = call.sessions.get(given.session)
    try:
        await session.do(session.sandbox.restart())
    except GvisorKernelError as error:
        error.hint = error.hint or (
            "its files may keep a kernel from starting: end it with sandbox_stop_session, and start"
            " another one."
        )
        raise
    return make_result(
        f'The session "{session.name}" has a new kernel, without variables. Its files are there.',
        describe(session),
    )


async def interrupt_session(call: Call, given: forms.OneSession) -> CallToolResult:
    """Interrupt what a session runs."""
    session = call.sessions.get(given.session)
    session.check_alive()
    if not session.calls:
        return make_result(f'The session "{session.name}" runs nothing.', describe(session))
    await session.sandbox.interrupt()
    return make_result(f'The session "{session.name}" was interrupted.', describe(session))


async def stop_session(call: Call, given: forms.OneSession) -> CallToolResult:
    """End a session."""
    await call.sessions.stop(given.session)
    return make_result(
        f'The session "{given.session}" has ended.', {"session": given.session, "state": "ended"}
    )


SESSION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "session": {"type": "string"},
        "language": {"type": "string"},
        "state": {"enum": ["idle", "busy", "dead", "ended"]},
        "runs": {"type": "integer"},
        "sandbox": {"type": "string"},
    },
    "required": ["session", "state"],
}
TEXT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "total": {"type": "integer"},
        "next": {**or_null({"type": "integer"}), "description": "the offset to read on from"},
    },
    "required": ["text", "total"],
}

CODE_TOOLS = (
    Tool(
        "sandbox_run_code",
        "Run code",
        "Run code in a sandbox with a Jupyter kernel. {state} Returns the value of the last"
        " expression, what was printed, pictures and errors. {world} Working folder: /workspace."
        " {outputs} {untrusted}",
        forms.RunCode,
        run_code,
        RUN_SCHEMA,
        destroys=True,
    ),
    Tool(
        "sandbox_shell",
        "Run a shell command",
        "Run a bash command in the sandbox of a session of any language, beside its kernel. It has"
        " no input and no terminal. A process in the background (server &) lives on until the"
        " kernel ends; send its output to a file. {state} {untrusted}",
        forms.Shell,
        run_shell,
        RUN_SCHEMA,
        destroys=True,
    ),
    Tool(
        "sandbox_read_output",
        "Read more output",
        "Read on where the result of a run was cut. The output of the last 8 runs of a session is"
        " kept. {untrusted}",
        forms.ReadOutput,
        read_output,
        TEXT_SCHEMA,
        reads=True,
    ),
    Tool(
        "sandbox_start_session",
        "Start a session",
        "Start another session: a sandbox of its own, with its own variables and files. {first}",
        forms.StartSession,
        start_session,
        SESSION_SCHEMA,
    ),
    Tool(
        "sandbox_list_sessions",
        "List sessions",
        "List the sessions, their languages and states.",
        forms.Nothing,
        list_sessions,
        {
            "type": "object",
            "properties": {"sessions": {"type": "array", "items": SESSION_SCHEMA}},
            "required": ["sessions"],
        },
        reads=True,
    ),
    Tool(
        "sandbox_restart_session",
        "Restart a session",
        "Start a new kernel in a session: variables are lost, files stay. Needed after the kernel"
        " has died.",
        forms.OneSession,
        restart_session,
        SESSION_SCHEMA,
        destroys=True,
    ),
    Tool(
        "sandbox_interrupt_session",
        "Interrupt a session",
        "Interrupt the code that a session runs now. Its variables stay.",
        forms.OneSession,
        interrupt_session,
        SESSION_SCHEMA,
        repeats=True,
    ),
    Tool(
        "sandbox_stop_session",
        "Stop a session",
        "End a session and its sandbox. Variables and files {lost}",
        forms.OneSession,
        stop_session,
        SESSION_SCHEMA,
        destroys=True,
        repeats=True,
    ),
)
