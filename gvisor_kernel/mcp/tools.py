"""The tools for code and sessions.

A tool's name, arguments and description are those of its function. It gets a ``Call`` and validated
arguments. It returns a result, or raises a GvisorKernelError whose hint says what a model can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, ToolAnnotations
from mcp_types import Tool as ToolDescription
from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from gvisor_kernel.api.execution import Execution
from gvisor_kernel.api.shell import ShellResult
from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.mcp.results import (
    RunOutput,
    clean,
    join_results,
    make_plain,
    make_result,
    make_run_result,
    make_session_result,
    mark,
)
from gvisor_kernel.mcp.sessions import NAME, Session, Sessions
from gvisor_kernel.mcp.settings import Limits, ServerSettings, Wording

PAUSE_SECONDS = 0.25
"""Between two notifications: a client shows each."""
MAX_LINE = 200
"""Characters of the last line, in one notification."""

Report = Callable[[float, float | None, str | None], Awaitable[None]]


@asynccontextmanager
async def reporting(report: Report) -> AsyncIterator[Callable[[str], None]]:
    """Give a listener for what is printed; report how many characters came, and the last line."""
    count, line, changed = 0, "", asyncio.Event()

    def note(text: str) -> None:
        nonlocal count, line
        count += len(text)
        line = text[-4 * MAX_LINE :].rstrip("\n").rsplit("\n", 1)[-1]
        changed.set()

    async def send() -> None:
        while True:  # no timeout: until the run has ended
            await changed.wait()  # no timeout: until the run has ended
            changed.clear()
            await report(float(count), None, clean(make_plain(line)[:MAX_LINE]))
            await asyncio.sleep(PAUSE_SECONDS)

    sender = asyncio.ensure_future(send())
    try:
        yield note
    finally:
        sender.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await sender  # no timeout: it was cancelled, and its steps end at once


@dataclass(frozen=True)
class Call:
    """One call: the sessions of its client, and where its progress goes."""

    sessions: Sessions
    settings: ServerSettings
    report: Report


def tool(
    title: str, *, reads: bool = False, destroys: bool = False, repeats: bool = False
) -> Callable[[Callable[..., Awaitable[CallToolResult]]], Tool]:
    """Make a tool of a function, whose docstring is the description that a model reads.

    ``reads``: it changes nothing. ``destroys``: what it changes may be lost. ``repeats``: a second
    call with the same arguments changes nothing more.
    """
    annotations = ToolAnnotations(
        read_only_hint=reads, destructive_hint=destroys, idempotent_hint=repeats or reads
    )

    def make(function: Callable[..., Awaitable[CallToolResult]]) -> Tool:
        description = " ".join((function.__doc__ or "").split())
        return Tool.from_function(
            function, None, title, description, context_kwarg="call", annotations=annotations
        )

    return make


def describe_tool(tool: Tool, wording: Wording) -> ToolDescription:
    """Return what a client is told about a tool.

    An argument that may be left out has the type of its value alone: a choice of a type and null
    makes some clients send text. Titles, which only repeat names, are left out.
    """
    fields: dict[str, Any] = {}
    for name, field in tool.parameters["properties"].items():
        field = {key: value for key, value in field.items() if key != "title"}
        choice = field.pop("anyOf", None)
        if choice is not None:
            field.pop("default", None)
            field |= next(item for item in choice if item != {"type": "null"})
        if "description" in field:
            field["description"] = wording.fill(field["description"])
        if name == "timeout":
            field["maximum"] = wording.settings.limits.max_run_seconds
            field["default"] = wording.settings.limits.usual_seconds
        fields[name] = field
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    schema |= {key: tool.parameters[key] for key in ("required",) if key in tool.parameters}
    assert tool.annotations is not None
    reaches_out = tool.fn_metadata.output_model is RunOutput and bool(wording.settings.routes)
    return ToolDescription(
        name=tool.name,
        title=tool.title,
        description=wording.fill(tool.description),
        input_schema=schema,
        output_schema=tool.output_schema,
        annotations=tool.annotations.model_copy(update={"open_world_hint": reaches_out}),
    )


MAX_CODE = 1_000_000
"""Characters of a program: a larger one is a file."""
MAX_READ = 100_000
"""Characters of one answer: more than most models read at once."""
BYTES_PER_CHARACTER = 4

Language = Literal["python", "bash", "typescript", "java"]
Code = StringConstraints(max_length=MAX_CODE)
Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
Timeout = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    Field(description="seconds after which it is interrupted"),
]
OneSession = Annotated[Name, Field(description="the name of the session")]
Offset = Annotated[int, Field(ge=0)]
Limit = Annotated[int, Field(ge=1, le=MAX_READ)]


class SessionState(TypedDict):
    """A session."""

    session: str
    language: NotRequired[str]
    state: Literal["idle", "busy", "dead", "ended"]
    runs: NotRequired[int]
    sandbox: NotRequired[str]


class SessionList(TypedDict):
    """The sessions of a client."""

    sessions: list[SessionState]


class Text(TypedDict):
    """A part of a text."""

    text: str
    total: int
    next: NotRequired[Annotated[int | None, Field(description="the offset to read on from")]]


RunResult = Annotated[CallToolResult, RunOutput]
StateResult = Annotated[CallToolResult, SessionState]
ListResult = Annotated[CallToolResult, SessionList]
TextResult = Annotated[CallToolResult, Text]


@tool("Run code", destroys=True)
async def sandbox_run_code(
    call: Call,
    code: Annotated[str, Code, Field(description="the code; variables stay for later calls")],
    language: Annotated[Language | None, Field(description="{language}")] = None,
    session: Annotated[Name | None, Field(description="{session}")] = None,
    timeout: Timeout = None,
) -> RunResult:
    """Run code in a sandbox with a Jupyter kernel. {state} Returns the value of the last
    expression, what was printed, pictures and errors. {sight} Working folder: /workspace.
    {outputs} {untrusted}"""
    seconds = choose_timeout(call, timeout)
    found = await find_session(call, session, language)
    limits = call.sessions.limits
    async with reporting(call.report) as note:
        execution = await found.use(
            found.sandbox.run(
                code,
                timeout=seconds,
                on_stdout=note,
                on_stderr=note,
                max_output=limits.shown * BYTES_PER_CHARACTER,
                max_rich=limits.images * limits.image_bytes * 2,
            )
        )
    return finish(found, execution, limits)


@tool("Run a shell command", destroys=True)
async def sandbox_shell(
    call: Call,
    command: Annotated[str, Code, Field(description="for bash, without input")],
    session: Annotated[Name | None, Field(description="{shell_session}")] = None,
    timeout: Timeout = None,
) -> RunResult:
    """Run a bash command in the sandbox of a session of any language, beside its kernel. It has
    no input and no terminal. A process in the background (server &) lives on until the kernel
    ends; send its output to a file. {state} {untrusted}"""
    seconds = choose_timeout(call, timeout)
    found = await find_session(call, session, None)
    limits = call.sessions.limits
    shown = limits.shown * BYTES_PER_CHARACTER
    async with reporting(call.report) as note:
        answer = await found.use(
            found.sandbox.shell(command, timeout=seconds, max_output=shown, on_output=note)
        )
    return finish(found, answer, limits)


def finish(session: Session, run: Execution | ShellResult, limits: Limits) -> CallToolResult:
    """Return the result of a run, whose output is kept."""
    result = make_run_result(session, session.keep(run), run, limits)
    session.is_new = False
    return result


def choose_timeout(call: Call, timeout: float | None) -> float:
    """Return how long a run may take, in seconds.

    :raises SandboxError: when the client wants more than it may have
    """
    limits = call.sessions.limits
    if timeout is not None and timeout > limits.max_run_seconds:
        raise SandboxError(
            f"The timeout is {timeout:g} s, and the limit {limits.max_run_seconds:g} s.",
            "run it in parts, or in the background of the session.",
        )
    return limits.usual_seconds if timeout is None else timeout


async def find_session(call: Call, name: str | None, language: str | None) -> Session:
    """Return the session of a call, whose kernel runs; it may start.

    :raises GvisorKernelError: there is none
    """
    session = await call.sessions.find(name, language)
    session.check_alive()
    return session


@tool("Read more output", reads=True)
async def sandbox_read_output(
    call: Call,
    session: Annotated[Name, Field(description="the session of the run")],
    run: Annotated[int, Field(ge=1, description="the number that its result has")],
    stream: Annotated[
        Literal["stdout", "stderr", "result"], Field(description="result: the values displayed")
    ] = "stdout",
    offset: Annotated[Offset, Field(description="characters to leave out")] = 0,
    limit: Annotated[Limit, Field(description="characters to return")] = 20_000,
) -> TextResult:
    """Read on where the result of a run was cut. The output of the last 8 runs of a session is
    kept. {untrusted}"""
    found = call.sessions.get(session)
    kept = found.runs.get(run)
    if kept is None:
        numbers = ", ".join(map(str, found.runs)) or "none"
        raise SandboxError(
            f"The output of run {run} of the session {session!r} is not kept.",
            f"runs whose output is kept: {numbers}. Run the code again, and print less or to a"
            " file.",
        )
    async with call.sessions.large:
        output = await found.do(found.sandbox.output(kept))
        results = join_results(output.results) or ""
        text = {"stdout": output.stdout, "stderr": output.stderr, "result": results}[stream]
        part, total = text[offset : offset + limit], len(text)
        del output, text, results
    end = offset + len(part)
    note = f"\n[{total - end} more characters: offset={end}]" if end < total else ""
    part = make_plain(part)
    nothing = f"[nothing from {offset} on; it has {total}]"
    return make_session_result(
        found,
        f"{mark(stream, part)}{note}" if part else nothing,
        {"text": part, "total": total, "next": end if end < total else None},
    )


@tool("Start a session")
async def sandbox_start_session(
    call: Call,
    session: Annotated[
        Name | None, Field(description="a name for it: lower-case letters, digits and -")
    ] = None,
    language: Annotated[Language, Field(description="of its kernel")] = "python",
) -> StateResult:
    """Start another session: a sandbox of its own, with its own variables and files. {first}"""
    started = await call.sessions.start(session, language)
    started.is_new = False
    text = f'The session "{started.name}" ({started.language}) has started.'
    return make_session_result(started, text, describe(started))


@tool("Branch a session")
async def sandbox_branch_session(
    call: Call,
    session: OneSession,
    name: Annotated[
        Name | None, Field(description="a name for the new one: lower-case letters, digits and -")
    ] = None,
) -> StateResult:
    """Start another session that goes on from the present state of one: variables, processes and
    files. Both then go on apart. Try something there, and stop the one that you do not want.
    Outputs of the new one are in a folder of its own."""
    found = call.sessions.get(session)
    found.check_alive()
    started = await call.sessions.start(name, found.language, found)
    started.is_new = False
    text = f'The session "{started.name}" goes on from the state of "{found.name}".'
    return make_session_result(started, text, describe(started))


@tool("List sessions", reads=True)
async def sandbox_list_sessions(call: Call) -> ListResult:
    """List the sessions, their languages and states."""
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


@tool("Restart a session", destroys=True)
async def sandbox_restart_session(call: Call, session: OneSession) -> StateResult:
    """Start a new kernel in a session: variables are lost, files stay. Needed after the kernel
    has died."""
    found = call.sessions.get(session)
    try:
        await found.do(found.sandbox.restart())
    except GvisorKernelError as error:
        error.hint = error.hint or (
            "its files may keep a kernel from starting: end it with sandbox_stop_session, and start"
            " another one."
        )
        raise
    return make_result(
        f'The session "{found.name}" has a new kernel, without variables. Its files are there.',
        describe(found),
    )


@tool("Interrupt a session", repeats=True)
async def sandbox_interrupt_session(call: Call, session: OneSession) -> StateResult:
    """Interrupt the code that a session runs now. Its variables stay."""
    found = call.sessions.get(session)
    found.check_alive()
    if not found.calls:
        return make_result(f'The session "{found.name}" runs nothing.', describe(found))
    await found.sandbox.interrupt()
    return make_result(f'The session "{found.name}" was interrupted.', describe(found))


@tool("Stop a session", destroys=True, repeats=True)
async def sandbox_stop_session(call: Call, session: OneSession) -> StateResult:
    """End a session and its sandbox. Variables and files {lost}"""
    await call.sessions.stop(session)
    return make_result(
        f'The session "{session}" has ended.', {"session": session, "state": "ended"}
    )


CODE_TOOLS = (
    sandbox_run_code,
    sandbox_shell,
    sandbox_read_output,
    sandbox_start_session,
    sandbox_branch_session,
    sandbox_list_sessions,
    sandbox_restart_session,
    sandbox_interrupt_session,
    sandbox_stop_session,
)
