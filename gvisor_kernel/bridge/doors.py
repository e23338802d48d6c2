"""Rebuilds the messages by which a kernel could make a front end do more than it may.

Front ends trust a kernel: they write its payloads into cells, show its help as HTML, open whatever
comm it opens, and write its language into the notebook, from which nbconvert imports a class. Here
each such message is made anew, field by field, from what was checked; so this holds for all front
ends, also those without our extension. Outputs are not looked at: front ends draw them, and
``labextension/src`` says how. Pure functions of one message and of the request that it answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gvisor_kernel.bridge.wire import VERSION, WireMessage
from gvisor_kernel.link.frames import Part
from gvisor_kernel.shown_text import printable, printable_name
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_SIZE = 2 * 1024 * 1024
"""Bytes of a reply that is parsed: a source that ``??`` shows may have a megabyte."""
MAX_VALUES = 50_000
"""Values in it, which bound the time to parse it: 10 ms."""
MAX_CELL = 256 * 1024
"""Characters of a text for a cell, as of ``%load``, and bytes of a cell that may ask for it."""
MAX_BANNER, MAX_PROMPT, MAX_NAME = 16_000, 2000, 1000
MAX_EVALUE = 10_000
"""Characters of an error's text where it is shown in one line; a traceback has the rest."""
MAX_ERROR = 16 * 1024 * 1024
"""Bytes of an error that is parsed, while other threads wait: its text is in its traceback, too."""
MAX_MATCHES = 5000
MAX_LINKS = 20
WIDGETS = "jupyter.widget"
STATES = ("busy", "idle", "starting")
"""States that a kernel may report; that it is dead or restarts is for its server to say."""
EXPORTERS = ("python", "script")
"""Exporters of nbconvert. Any other name would be imported on the host, or run a browser or TeX."""
_ASKS_TEXT = re.compile(rb'(?:%|"|\\n)(?:loadpy|load|recall|rep)\b|set_next_input')
_ASKS_END = re.compile(rb"\b(?:exit|quit)\b")
_SILENT = re.compile(rb'"silent": ?true')
_NAME = re.compile(r"[\w.+#/ -]{1,100}", re.ASCII)
_LEXER = re.compile(r"[\w.+#-]{1,100}", re.ASCII)
_MIME = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,10}")
_DOCUMENTATION = re.compile(
    r"https://(?:docs\.(?:python|scipy|sympy)\.org|(?:ipython|numpy|matplotlib)\.org|docs\.deno\.com"
    r"|ipython\.readthedocs\.io|pandas\.pydata\.org|docs\.oracle\.com|www\.gnu\.org)(?:/[\w./#-]{0,200})?",
    re.ASCII,
)
"""Addresses to which a kernel's entries of the menu Help may lead: it makes them up."""
_ESCAPED = re.compile(rb"\\u00[2-7]")


@dataclass(frozen=True)
class AllowedEffects:
    """The effects that a client's request allows its reply. ``cursor`` and the ends of its line are
    positions in the code, in characters. ``silent``: it is a front end's, and no cell."""

    text: bool = False
    end: bool = False
    silent: bool = False
    cursor: int = 0
    line_begin: int = 0
    line_end: int = 0


NOTHING = AllowedEffects()
Fields = dict[str, Any]


def read_request(message: WireMessage) -> AllowedEffects:
    """Return what ``message``, a client's request, asks for beside its usual reply.

    :raises WireError: when its header cannot be parsed
    """
    if message.kind == "execute_request" and len(message.content) <= MAX_CELL:
        data = bytes(message.content)
        return AllowedEffects(
            text=bool(_ASKS_TEXT.search(data)),
            end=bool(_ASKS_END.search(data)),
            silent=bool(_SILENT.search(data)),
        )
    if message.kind == "complete_request":
        asked = _parse(message.content)
        code, cursor = _text(asked, "code", MAX_SIZE), _number(asked, "cursor_pos")
        cursor = min(max(cursor, 0), len(code))
        end = code.find("\n", cursor)
        return AllowedEffects(
            cursor=cursor,
            line_begin=code.rfind("\n", 0, cursor) + 1,
            line_end=len(code) if end < 0 else end,
        )
    return NOTHING


def guard(message: WireMessage, asked: AllowedEffects) -> WireMessage | None:
    """Return ``message``, a kernel's, as front ends may have it; None if they must not.

    :raises WireError: when its header cannot be parsed
    """
    if message.kind == "comm_open":
        return message if opens_widget(message.content) else None
    rebuild = _REBUILD.get(message.kind)
    if rebuild is None:
        return message
    most = MAX_ERROR if message.kind == "error" else MAX_SIZE
    rebuilt = rebuild(_parse(message.content, most), asked)
    return None if rebuilt is None else replace(message, content=json.dumps(rebuilt).encode())


def opens_widget(content: Part) -> bool:
    """Return whether a ``comm_open`` can have no other target than widgets have, and no module.

    A widget's state may have megabytes of numbers, which are not parsed: each key may stand there
    once, as every encoder writes it. Nested, it would be no target at all.
    """
    data = bytes(content)
    modules = data.count(b'"target_module"')
    return (
        data.count(b'"target_name"') == 1
        and any(f'"target_name":{space}"{WIDGETS}"'.encode() in data for space in ("", " "))
        and modules == data.count(b'"target_module": null') + data.count(b'"target_module":null')
        and not _ESCAPED.search(data)
    )


# -- one function for each kind: from the fields of a content to those that front ends get ---------


def _status(fields: Fields, _: AllowedEffects) -> Fields | None:
    state = fields.get("execution_state")
    return {"execution_state": state} if state in STATES else None


def _input_of_cell(fields: Fields, _: AllowedEffects) -> Fields | None:
    code = fields.get("code")
    if not isinstance(code, str):
        return None
    return {"code": code, "execution_count": _number(fields, "execution_count")}


def _execute(fields: Fields, asked: AllowedEffects) -> Fields:
    if not fields:
        text = "The reply was left out: it is no JSON, or too large."
        return {"status": "error", "ename": "KernelReply", "evalue": text, "traceback": []}
    rebuilt = _result(fields)
    if "execution_count" in fields:
        count = fields["execution_count"]
        rebuilt["execution_count"] = None if count is None else _number(fields, "execution_count")
    if "payload" in fields:
        checked = (_payload(it, asked) for it in _dicts(fields["payload"])[:MAX_LINKS])
        rebuilt["payload"] = [it for it in checked if it is not None]
    if "user_expressions" in fields:
        rebuilt["user_expressions"] = {
            name: _result(it) | {"data": _help(it), "metadata": {}}
            for name, it in _dict(fields, "user_expressions").items()
            if isinstance(it, dict)
        }
    return rebuilt


def _result(fields: Fields) -> Fields:
    """Return the status of a reply or an expression, and its error if it has one."""
    status = fields.get("status")
    known = status if status in ("ok", "abort", "aborted") else "error"
    return {"status": known, **(_error(fields, NOTHING) if known == "error" else {})}


def _error(fields: Fields, _: AllowedEffects) -> Fields:
    if not fields:
        fields = {"ename": "KernelError", "evalue": "The error is no JSON, or too large."}
    return {
        "ename": printable_name(_text(fields, "ename", MAX_NAME)),
        "evalue": _text(fields, "evalue", MAX_EVALUE),
        "traceback": [it for it in _list(fields, "traceback") if isinstance(it, str)],
    }


def _payload(fields: Fields, asked: AllowedEffects) -> Fields | None:
    """Return a payload that may pass; ``edit`` would open a file of the host."""
    source = fields.get("source")
    if source == "page":
        data, start = _help(fields), max(0, _number(fields, "start"))
        return {"source": "page", "start": start, "data": data} if data else None
    if source == "set_next_input" and asked.text:
        text = fields.get("text")
        if isinstance(text, str) and len(text) <= MAX_CELL:
            text = _clean(text)
            return {"source": source, "text": text, "replace": fields.get("replace") is True}
    if source == "ask_exit" and asked.end:
        return {"source": source, "keepkernel": fields.get("keepkernel") is True}
    return None


def _complete(fields: Fields, asked: AllowedEffects) -> Fields:
    begin = min(max(_number(fields, "cursor_start"), asked.line_begin), asked.cursor)
    end = min(max(_number(fields, "cursor_end"), asked.cursor), asked.line_end)
    matches = _list(fields, "matches")
    types = _list(_dict(fields, "metadata"), "_jupyter_types_experimental")
    if len(types) != len(matches):
        types = [None] * len(matches)
    kept = [
        (match, kind)
        for match, kind in zip(matches[:MAX_MATCHES], types, strict=False)
        if isinstance(match, str) and len(match) <= MAX_NAME and printable_name(match) == match
    ]
    described = [_completion(match, kind, begin, end) for match, kind in kept]
    has_types = any(isinstance(kind, dict) for _, kind in kept)
    return {
        "status": "ok",
        "matches": [match for match, _ in kept],
        "cursor_start": begin,
        "cursor_end": end,
        "metadata": {"_jupyter_types_experimental": described} if has_types else {},
    }


def _completion(match: str, kind: object, begin: int, end: int) -> Fields:
    found = kind if isinstance(kind, dict) else {}
    shown = {
        name: printable_name(_text(found, name, limit))
        for name, limit in (("type", 50), ("signature", MAX_NAME))
    }
    return {"start": begin, "end": end, "text": match, **shown}


def _inspect(fields: Fields, _: AllowedEffects) -> Fields:
    data = _help(fields)
    found = fields.get("found") is True and bool(data)
    return {"status": "ok", "found": found, "data": data, "metadata": {}}


def _help(fields: Fields) -> Fields:
    """Return the text alone of a bundle: it is drawn where nobody expects a page."""
    data = _dict(fields, "data")
    texts = (data.get(kind) for kind in ("text/plain", "text/markdown"))
    found = next((it for it in texts if isinstance(it, str)), None)
    return {} if found is None else {"text/plain": found}


def _input(fields: Fields, _: AllowedEffects) -> Fields:
    prompt = _clean(_text(fields, "prompt", MAX_PROMPT))
    return {"prompt": prompt[:MAX_PROMPT], "password": fields.get("password") is True}


def _info(fields: Fields, _: AllowedEffects) -> Fields:
    version = _text(fields, "protocol_version", 20)
    info = {
        "status": "ok",
        "protocol_version": version if VERSION.fullmatch(version) else "5.4",
        "implementation": printable_name(_text(fields, "implementation", 100)),
        "implementation_version": printable_name(_text(fields, "implementation_version", 100)),
        "banner": _clean(_text(fields, "banner", MAX_BANNER))[:MAX_BANNER],
        "debugger": fields.get("debugger") is True,
        "help_links": [
            {"text": printable_name(_text(it, "text", 100)), "url": it["url"]}
            for it in _dicts(fields.get("help_links"))
            if _text(it, "text", 100) and _matches(_DOCUMENTATION, it.get("url"))
        ][:MAX_LINKS],
        "language_info": clean_language(fields.get("language_info")),
    }
    if "supported_features" in fields:
        found = _list(fields, "supported_features")[:MAX_LINKS]
        info["supported_features"] = [it for it in found if _matches(_NAME, it)]
    return info


def clean_language(info: object) -> Fields:
    """Return a kernel's ``language_info``, or a notebook's, without what is no name.

    Front ends write it into notebooks, and nbconvert names files by it and imports a class.
    """
    fields = info if isinstance(info, dict) else {}
    forms = {
        **{"name": _NAME, "version": _NAME, "pygments_lexer": _LEXER},
        **{"mimetype": _MIME, "file_extension": _EXTENSION},
    }
    cleaned = {name: fields[name] for name in forms if _matches(forms[name], fields.get(name))}
    if fields.get("nbconvert_exporter") in EXPORTERS:
        cleaned["nbconvert_exporter"] = fields["nbconvert_exporter"]
    mode = fields.get("codemirror_mode")
    if isinstance(mode, dict):
        mode = {
            key: it
            for key, it in mode.items()
            if key in ("name", "version", "typescript")
            and (isinstance(it, int) or _matches(_NAME, it))
        }
    if mode and (isinstance(mode, dict) or _matches(_NAME, mode)):
        cleaned["codemirror_mode"] = mode
    return {"name": "", **cleaned}


def _debug(fields: Fields, _: AllowedEffects) -> Fields:
    if not fields:
        text = "The debugger's answer was left out: it is no JSON, or too large."
        return {"type": "response", "success": False, "message": text, "body": {}}
    return _debugged(fields) | {"type": "response", "success": fields.get("success") is True}


def _debug_event(fields: Fields, _: AllowedEffects) -> Fields | None:
    return _debugged(fields) | {"type": "event"} if fields else None


def _debugged(fields: Fields) -> Fields:
    """Return what the debugger's protocol has in each message; a body's texts are drawn as text."""
    numbers = ("seq", "request_seq")
    kept: Fields = {name: _number(fields, name) for name in numbers if name in fields}
    for name in ("command", "event", "message"):
        if name in fields:
            kept[name] = _clean(_text(fields, name, MAX_PROMPT))
    if isinstance(body := fields.get("body"), dict):
        # A variable's data would be drawn as if trusted.
        drawn = {"data": _help(body), "metadata": {}} if "data" in body else {}
        kept["body"] = body | drawn
    return kept


def _is_complete(fields: Fields, _: AllowedEffects) -> Fields:
    status, indent = fields.get("status"), _text(fields, "indent", 200)
    known = status if status in ("complete", "incomplete", "invalid") else "unknown"
    return {"status": known, "indent": indent if not indent.strip(" \t") else ""}


def _history(fields: Fields, _: AllowedEffects) -> Fields:
    return {"status": "ok", "history": _list(fields, "history")}


def _comm_info(fields: Fields, _: AllowedEffects) -> Fields:
    known = _dict(fields, "comms").items()
    found = [
        name for name, it in known if isinstance(it, dict) and it.get("target_name") == WIDGETS
    ]
    return {"status": "ok", "comms": {name: {"target_name": WIDGETS} for name in found}}


_REBUILD: dict[str, Callable[[Fields, AllowedEffects], Fields | None]] = {
    "status": _status,
    "execute_input": _input_of_cell,
    "execute_reply": _execute,
    "error": _error,
    "complete_reply": _complete,
    "inspect_reply": _inspect,
    "input_request": _input,
    "kernel_info_reply": _info,
    "debug_reply": _debug,
    "debug_event": _debug_event,
    "is_complete_reply": _is_complete,
    "history_reply": _history,
    "comm_info_reply": _comm_info,
}


def _parse(data: Part, most: int = MAX_SIZE) -> Fields:
    """Parse an object; one that is none, or over the limits, is empty."""
    try:
        value = parse_json(data, most, MAX_VALUES)
    except JsonError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(fields: Fields, name: str, limit: int) -> str:
    value = fields.get(name)
    return value[:limit] if isinstance(value, str) else ""


def _matches(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _dict(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _list(fields: Fields, name: str) -> list[Any]:
    value = fields.get(name)
    return value if isinstance(value, list) else []


def _dicts(value: object) -> list[Fields]:
    return [it for it in value if isinstance(it, dict)] if isinstance(value, list) else []


def _number(fields: Fields, name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _clean(text: str) -> str:
    """Escape what hides from a reader. Escape sequences stay: consoles have always had them."""
    return "\x1b".join(map(printable, text.split("\x1b")))
