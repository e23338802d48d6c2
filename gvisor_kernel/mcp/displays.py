"""What code has displayed, as text and pictures that a model can read. No I/O.

All of it is a sandbox's: a picture counts as one only if its first bytes say so.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from mcp_types import ImageContent

from gvisor_kernel.api.execution import Omitted, Result, strip_ansi
from gvisor_kernel.host.sizes import describe_size
from gvisor_kernel.mcp.limits import Limits
from gvisor_kernel.shown_text import printable, printable_name

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
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


def find_type(value: object) -> str | None:
    """Return which picture this is in base64, by its first bytes; None if it is none."""
    if not isinstance(value, str):
        return None
    try:
        head = base64.b64decode("".join(value[:100].split())[:16], validate=True)
    except (binascii.Error, ValueError):
        return None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return None


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
    for mime in PICTURES:
        value = data.get(mime)
        kind = find_type(value)
        if kind is not None and isinstance(value, str):
            try:
                return kind, base64.b64decode("".join(value.split()), validate=True)
            except (binascii.Error, ValueError):
                continue
    return None


def note_left_out(what: str) -> str:
    """Return what to do about a picture that is not shown."""
    return f"{what} was left out: display it smaller or alone, or {SAVE}"
