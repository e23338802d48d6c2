"""The results of calls: text for a model, the same as a structure, and pictures. No I/O.

All of it is what a sandbox gave, cut to the limits. Where something was cut, the text says what,
and how to read on. A picture counts as one only if its first bytes say so.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired

from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent
from pydantic import Field
from typing_extensions import TypedDict

from gvisor_kernel.api.execution import Execution, ExecutionError, Omitted, Result, strip_ansi
from gvisor_kernel.api.files import FileFailed
from gvisor_kernel.api.runner import KernelEnded
from gvisor_kernel.api.shell import ShellResult
from gvisor_kernel.bridge.deaths import Death, describe_death, describe_end
from gvisor_kernel.errors import GvisorKernelError, OutputsError, SandboxError
from gvisor_kernel.mcp.sessions import Session
from gvisor_kernel.mcp.settings import Limits
from gvisor_kernel.shown_text import describe_size, printable, printable_name

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
BEGINS = re.compile(
    rb"(?P<png>\x89PNG\r\n\x1a\n)|(?P<jpeg>\xff\xd8\xff)|(?P<gif>GIF8[79]a)"
    rb"|(?P<webp>RIFF....WEBP)",
    re.DOTALL,
)
PLACEHOLDER = re.compile(
    r"<[\w.]+(?: object)?(?: at 0x[0-9a-fA-F]+)?>|[\w.]+\(\.\.\.\)|<Figure size [^<>]*>"
)
"""What stands for a value in text/plain where another form shows it."""
MAX_HTML = 2000
"""Characters of HTML that are shown as they are."""
MAX_FORMS, MAX_MIME, MAX_PLAIN = 5, 60, 400
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
PLAIN = re.compile("(\r\n|[\u00a0\u202f\u3000])")
"""What ``printable`` escapes and a text may have: line ends, and spaces that everybody sees."""
MARK_BYTES = 4
SAVE = "save it to a file and move that with sandbox_move_to_outputs"


def make_plain(text: str) -> str:
    """Return text of a stranger without sequences for a terminal; what hides is escaped."""
    return show(CONTROLS.sub("", strip_ansi(text)).encode("utf-8", "replace").decode())


def show(text: str) -> str:
    """Return text of a stranger; what could control a terminal or hide is escaped."""
    parts = PLAIN.split(text)
    return "".join(part if at % 2 else printable(part) for at, part in enumerate(parts))


def escape(name: str) -> str:
    """Return a name on one line: what cannot be printed, as an escape."""
    return printable_name(name.replace("\\", "\\\\"))


def mark(kind: str, text: str) -> str:
    """Return a stranger's text between two lines that it cannot contain, nor the code foresee.

    The server's own remarks stay outside. The id is made anew each time, after the text was.
    """
    identity = secrets.token_hex(MARK_BYTES)
    while identity in text:
        identity = secrets.token_hex(MARK_BYTES)
    end = "" if text.endswith("\n") else "\n"
    return f"<{kind} {identity}>\n{text}{end}</{kind} {identity}>"


def join_results(results: Iterable[Result]) -> str | None:
    """Return the texts of displayed values, one after the other; None if there are none."""
    texts = [text for text in map(describe_result, results) if text]
    return "\n".join(texts) if texts else None


def describe_result(result: Result) -> str:
    """Return the text of a value. Where it has none that says much, name its other forms."""
    plain = result.text or ""
    is_empty = not plain or (len(plain) <= MAX_PLAIN and PLACEHOLDER.fullmatch(plain.strip()))
    if not is_empty:
        return plain
    text = result.markdown or result.latex
    if text:
        return text
    if find_picture(result.data) is not None:
        return plain
    html = result.html
    if html and len(html) <= MAX_HTML and "<script" not in html:
        return html
    forms = [item for item in result.data.items() if item[0] != "text/plain"]
    if not forms:
        return plain
    note = (
        f"[displayed: {', '.join(map(describe_form, forms[:MAX_FORMS]))}; not shown here: {SAVE}]"
    )
    return f"{plain}\n{note}" if plain else note


def describe_form(form: tuple[str, Any]) -> str:
    """Return a MIME type and the size of its value."""
    mime, value = form
    name = escape(mime[:MAX_MIME])
    if mime in PICTURES:
        return f"{name}, which is no such picture"
    return f"{name} ({describe_size(measure(value))})"


def measure(value: Any) -> int:
    """Return about how many bytes a form of a value has."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value)
        except (RecursionError, ValueError, TypeError):
            return 0
    return len(value.encode("utf-8", "surrogatepass"))


def find_pictures(
    results: Iterable[Result], limits: Limits, omitted: Iterable[Omitted], cut: list[str]
) -> list[ImageContent]:
    """Return the pictures, as far as the limits allow. ``omitted``: what is not in ``results``."""
    pictures: list[ImageContent] = []
    for result in results:
        found = find_picture(result.data)
        if found is None:
            continue
        kind, data = found
        if len(pictures) == limits.images or len(data) > limits.image_bytes:
            name = kind.removeprefix("image/")
            cut.append(note_left_out(f"an image ({name}, {describe_size(len(data))})"))
        else:
            encoded = base64.b64encode(data).decode()
            pictures.append(ImageContent(data=encoded, mime_type=kind))
    cut += [note_left_out(str(forms)) for forms in omitted]
    return pictures


def find_picture(data: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Return the first picture of a value, with its type."""
    for value in map(data.get, PICTURES):
        if isinstance(value, str):
            with suppress(binascii.Error, ValueError):
                picture = base64.b64decode("".join(value.split()), validate=True)
                begin = BEGINS.match(picture)
                if begin is not None:
                    return f"image/{begin.lastgroup}", picture
    return None


def note_left_out(what: str) -> str:
    """Return what to do about a picture that is not shown."""
    return f"{what} was left out: display it smaller or alone, or {SAVE}"


MAX_NAME = 200
MAX_STATUS = 2**31
MAX_TRACEBACK = 6000
MAX_VALUE = 2000
STATUSES = {None: "ok", "interrupt": "interrupted", "kill": "killed", "death": "died"}
FOR_MODEL = (SandboxError, KernelEnded, FileFailed, OutputsError)
"""Errors of a session that runs, whose hint a model can follow. The hints of others, such as those
of a start, are for whoever has the server's settings."""
ASK = "ask the user, who can change how this server is started:"
LESS_MEMORY = (
    "Use less memory, for example by reading data in parts, or ask the user to start this server"
    " with a larger --memory."
)


class Failure(TypedDict):
    """An error of the code."""

    name: str
    value: str
    traceback: str


class RunOutput(TypedDict):
    """The output of code or of a command."""

    session: str
    run: int
    status: Literal["ok", "error", "interrupted", "killed", "died"]
    result: NotRequired[
        Annotated[str | None, Field(description="the value of the last expression")]
    ]
    exit_status: NotRequired[Annotated[int | None, Field(description="of a command")]]
    stdout: str
    stderr: str
    error: NotRequired[Failure | None]
    seconds: float
    images: NotRequired[int]
    new_session: NotRequired[bool]
    cut: list[str]


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
    hint, words, fact = error.hint, "", error.fact
    if isinstance(error, KernelEnded):
        end = error.end
        if isinstance(end, Death):
            end, words = replace(end, last_line=""), end.last_line
        fact = f"{error.what}: {describe_end(end, LESS_MEMORY)}"
    elif hint and type(error) not in FOR_MODEL:
        hint = f"{ASK} {hint}"
    text = make_plain(f"{fact}\nWhat to do: {hint}" if hint else fact)
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
    value = error.value if error.death is None else describe_death(error.death, LESS_MEMORY)
    return {
        "name": make_plain(error.name)[:MAX_NAME],
        "value": make_plain(value)[:MAX_VALUE],
        "traceback": make_plain(error.traceback)[-MAX_TRACEBACK:],
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
