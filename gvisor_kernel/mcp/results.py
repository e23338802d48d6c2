"""What a call returns: text for a model, the same as a structure, and pictures. No I/O.

All of it is what a sandbox gave, cut to the limits. Where something was cut, the text says what,
and how to read on.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent

from gvisor_kernel.api.execution import Execution, ExecutionError, Result, strip_ansi
from gvisor_kernel.api.shell import ShellResult
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.sizes import describe_size
from gvisor_kernel.mcp.limits import Limits
from gvisor_kernel.mcp.sessions import Session

PICTURES = ("image/png", "image/jpeg", "image/gif")
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
    detail = f"\n{error.detail[-MAX_VALUE:]}" if error.detail else ""
    hint = f"\nWhat to do: {error.hint}" if error.hint else ""
    return make_result(f"{error.fact}{hint}{detail}", failed=True)


def make_run_result(
    session: Session, number: int, run: Execution | ShellResult, limits: Limits
) -> CallToolResult:
    """Return the result of code or of a command."""
    cut: list[str] = []
    texts = {}
    for stream in ("stdout", "stderr"):
        # Offsets count colours, too: a long text is cut before it is searched for them.
        text = getattr(run, stream)
        is_cut = len(text) > limits.shown or getattr(run.missing, stream)
        texts[stream] = strip_ansi(text[: limits.shown])
        if is_cut:
            at = min(len(text), limits.shown)
            cut.append(f"{stream} goes on: {read_on(session.name, number, stream, at)}")
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
        pictures = find_pictures(run, limits, cut)
        structure |= {"result": shown, "images": len(pictures)}
    else:
        structure["exit_status"] = run.status
        if run.status not in (0, None):
            structure["status"] = "error"
    failed = structure["status"] != "ok"
    return make_result(write_run(structure), structure, *pictures, failed=failed)


def read_on(session: str, number: int, stream: str, offset: int) -> str:
    """Return the call that returns what was cut."""
    return (
        f'call sandbox_read_output with session="{session}", run={number}, stream="{stream}",'
        f" offset={offset}"
    )


def describe_error(error: ExecutionError | None) -> dict[str, str] | None:
    """Return an error of the code as a structure; of a long traceback, the end."""
    if error is None:
        return None
    return {
        "name": error.name,
        "value": strip_ansi(error.value)[:MAX_VALUE],
        "traceback": error.traceback[-MAX_TRACEBACK:],
    }


def show_results(
    run: Execution, limits: Limits, session: str, number: int, cut: list[str]
) -> str | None:
    """Return the text of what was displayed, and of the last value."""
    text = join_results(run.results)
    if text is None and not run.missing.results:
        return None
    text = text or ""
    if len(text) > limits.shown or run.missing.results:
        at = min(len(text), limits.shown)
        cut.append(f"result goes on: {read_on(session, number, 'result', at)}")
    return strip_ansi(text[: limits.shown])


def join_results(results: tuple[Result, ...]) -> str | None:
    """Return the texts of displayed values, one after the other; None if there are none."""
    found = [result.text or result.markdown or result.html or "" for result in results]
    texts = [text for text in found if text]
    return "\n".join(texts) if texts else None


def find_pictures(run: Execution, limits: Limits, cut: list[str]) -> list[ImageContent]:
    """Return the pictures of a run, as far as the limits allow."""
    pictures: list[ImageContent] = []
    for result in run.results:
        for mime in PICTURES:
            name = mime.removeprefix("image/")
            data = getattr(result, name)
            if data is None:
                continue
            if len(pictures) == limits.images or len(data) > limits.image_bytes:
                cut.append(
                    f"an image ({name}, {describe_size(len(data))}) was left out: save it in"
                    " /mnt/user-data/outputs, or display it smaller or alone"
                )
            else:
                encoded = base64.b64encode(data).decode()
                pictures.append(ImageContent(data=encoded, mime_type=mime))
            break
    return pictures


def write_run(run: Mapping[str, Any]) -> str:
    """Return what a run gave as text. Parts that are empty are left out."""
    parts = []
    if run["new_session"]:
        parts.append(f'[new session "{run["session"]}", run {run["run"]}]')
    if run.get("result") is not None:
        parts.append(run["result"])
    if run["stdout"]:
        parts.append(f"[stdout]\n{run['stdout'].rstrip()}")
    if run["stderr"]:
        parts.append(f"[stderr]\n{run['stderr'].rstrip()}")
    if run["error"] is not None:
        error = run["error"]
        parts.append(f"[error] {error['name']}: {error['value']}\n{error['traceback']}".rstrip())
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
