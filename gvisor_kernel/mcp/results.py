"""What a call returns: text for a model, the same as a structure, and pictures. No I/O.

All of it is what a sandbox gave, cut to the limits. Where something was cut, the text says what,
and how to read on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent

from gvisor_kernel.api.execution import Execution, ExecutionError
from gvisor_kernel.api.shell import ShellResult
from gvisor_kernel.bridge.deaths import LAST_OUTPUT
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.sizes import describe_size
from gvisor_kernel.mcp.displays import find_pictures, join_results, make_plain, mark
from gvisor_kernel.mcp.limits import Limits
from gvisor_kernel.mcp.sessions import Session
from gvisor_kernel.mcp.situation import explain, explain_hint

MAX_NAME = 200
MAX_STATUS = 2**31
MAX_TRACEBACK = 6000
MAX_VALUE = 2000


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that also accepts null. Some clients read no list of types."""
    return {"anyOf": [schema, {"type": "null"}]}


STATUSES = {None: "ok", "interrupt": "interrupted", "kill": "killed", "death": "died"}
RUN_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "session": {"type": "string"},
        "run": {"type": "integer"},
        "status": {"enum": ["ok", "error", *list(STATUSES.values())[1:]]},
        "result": {
            **or_null({"type": "string"}),
            "description": "the value of the last expression",
        },
        "exit_status": {**or_null({"type": "integer"}), "description": "of a command"},
        "stdout": {"type": "string"},
        "stderr": {"type": "string"},
        "error": or_null(
            {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("name", "value", "traceback")},
            }
        ),
        "seconds": {"type": "number"},
        "images": {"type": "integer"},
        "new_session": {"type": "boolean"},
        "cut": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["session", "run", "status", "stdout", "stderr", "seconds", "cut"],
}


def clean(value: Any) -> Any:
    """Return a value without lone surrogates, which are no text: the protocol is UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def make_result(
    text: str, structure: Mapping[str, Any] | None = None, *more: ContentBlock, failed: bool = False
) -> CallToolResult:
    """Return a result with a text, a structure and further content."""
    return CallToolResult(
        content=[TextContent(text=clean(text)), *more],
        structured_content=None if structure is None else clean(structure),
        is_error=failed,
    )


def make_failure(error: GvisorKernelError) -> CallToolResult:
    """Return the result of a call that failed: the fact, and what to do."""
    hint = f"\nWhat to do: {explain_hint(error)}" if error.hint else ""
    fact, _, words = error.fact.partition(LAST_OUTPUT)
    text = make_plain(f"{explain(fact)}{hint}")
    for quoted in (words, error.detail):
        if quoted:
            text += "\n" + mark("detail", make_plain(quoted[-MAX_VALUE:]))
    return make_result(text, failed=True)


def make_session_result(
    session: Session, text: str, structure: Mapping[str, Any], *more: ContentBlock
) -> CallToolResult:
    """Return a result about a session. Where a client has no default one, it is named."""
    text = f"{text}\n{name_session(session)}" if session.is_named else text
    return make_result(text, {**structure, "session": session.name}, *more)


def name_session(session: Session) -> str:
    """Return how a client without a default session goes on in this one."""
    return f'[to go on here, pass session="{session.name}"]'


def make_run_result(
    session: Session, number: int, run: Execution | ShellResult, limits: Limits
) -> CallToolResult:
    """Return the result of code or of a command."""
    cut: list[str] = []
    texts = {}
    for stream in ("stdout", "stderr"):
        # Offsets count colours, too: a long text is cut before it is searched for them.
        text = getattr(run, stream)
        texts[stream] = make_plain(text[: limits.shown])
        missing = count_bytes(text[limits.shown :]) + getattr(run.missing, stream)
        if missing:
            at = min(len(text), limits.shown)
            cut.append(read_on(session.name, number, stream, at, missing))
    structure: dict[str, Any] = {
        "session": session.name,
        "run": number,
        "status": "error" if run.error and not run.ended_by else STATUSES[run.ended_by],
        **texts,
        "error": describe_error(run.error),
        "seconds": round(run.duration, 3),
        "images": 0,
        "new_session": session.is_new,
        "cut": cut,
    }
    pictures: list[ImageContent] = []
    if isinstance(run, Execution):
        shown = show_results(run, limits, session.name, number, cut)
        pictures = find_pictures(run.results, limits, run.missing.rich, cut)
        structure |= {"result": shown, "images": len(pictures)}
    else:
        is_status = run.status is not None and abs(run.status) < MAX_STATUS
        structure["exit_status"] = run.status if is_status else None
        if run.status not in (0, None):
            structure["status"] = "error"
    failed = structure["status"] != "ok"
    text = write_run(structure)
    if session.is_named:
        text += f"\n{name_session(session)}"
    return make_result(text, structure, *pictures, failed=failed)


def count_bytes(text: str) -> int:
    """Return how many bytes a text has in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def read_on(session: str, number: int, stream: str, offset: int, missing: int) -> str:
    """Return how much was cut, in bytes, and the call that returns it."""
    return (
        f"{stream} goes on, with {describe_size(missing)} more:"
        f' call sandbox_read_output with session="{session}", run={number}, stream="{stream}",'
        f" offset={offset}"
    )


def describe_error(error: ExecutionError | None) -> dict[str, str] | None:
    """Return an error of the code as a structure; of a long traceback, the end."""
    if error is None:
        return None
    return {
        "name": make_plain(error.name)[:MAX_NAME],
        "value": make_plain(explain(error.value))[:MAX_VALUE],
        "traceback": make_plain(explain(error.traceback))[-MAX_TRACEBACK:],
    }


def show_results(
    run: Execution, limits: Limits, session: str, number: int, cut: list[str]
) -> str | None:
    """Return the text of what was displayed, and of the last value."""
    text = join_results(run.results)
    missing = run.missing.results
    if text is None and not missing:
        return None
    text = text or ""
    missing += count_bytes(text[limits.shown :])
    if missing:
        at = min(len(text), limits.shown)
        cut.append(read_on(session, number, "result", at, missing))
    return make_plain(text[: limits.shown])


def write_run(run: Mapping[str, Any]) -> str:
    """Return what a run gave as text. Parts that are empty are left out."""
    parts = []
    if run["new_session"]:
        parts.append(f'[new session "{run["session"]}", run {run["run"]}]')
    for name in ("result", "stdout", "stderr"):
        if run.get(name):
            parts.append(mark(name, run[name]))
    if run["error"] is not None:
        error = run["error"]
        text = f"{error['name']}: {error['value']}\n{error['traceback']}"
        parts.append(mark("error", text))
    if run.get("exit_status"):
        parts.append(f"[exit status {run['exit_status']}]")
    advice = ADVICE.get(run["status"])
    if advice:
        parts.append(advice.format(session=run["session"]))
    parts += [f"[cut] {line}" for line in run["cut"]]
    if not parts:
        parts.append("[no output]")
    return "\n".join(parts)


ADVICE = {
    "interrupted": "[the session goes on, with its variables: run less at a time, or name a longer"
    " timeout]",
    "killed": '[variables are gone: call sandbox_restart_session with session="{session}"]',
    "died": '[variables are gone: call sandbox_restart_session with session="{session}"]',
}
