"""The result of running a piece of code: frozen data, without any I/O.

The names are those of ``e2b_code_interpreter``, so that a program can move over: ``results``,
``logs``, ``error``, ``text``. Pictures are bytes here. All of it comes from a sandbox: treat it as
a stranger's.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gvisor_kernel.bridge.deaths import Death, End, describe_end
from gvisor_kernel.shown_text import describe_size

_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]|[\x1b\x80-\x9f]"
)
"""Each branch begins with a character that its rest excludes, so that a search is linear. The last
one leaves no beginning of a sequence: what is left of two nested ones could be one again."""
MAX_SECONDS = 1e9
_SHOWN = ("text/plain", "text/latex", "image/png", "image/jpeg", "image/gif")


def strip_ansi(text: str) -> str:
    """Return ``text`` without anything that a terminal takes for a sequence, such as a colour."""
    return _ANSI.sub("", text)


class _Form:
    """A form of a value by its MIME type. Code of a sandbox has sent it, and may send anything."""

    def __init__(self, mime: str) -> None:
        self.mime = mime


class _Text(_Form):
    """A form as text; None if there is none."""

    def __get__(self, result: Result | None, _: object = None) -> str | None:
        value = None if result is None else result.data.get(self.mime)
        return value if isinstance(value, str) else None


class _Bytes(_Form):
    """A form as bytes; None if there is none."""

    def __get__(self, result: Result | None, _: object = None) -> bytes | None:
        value = None if result is None else result.data.get(self.mime)
        if not isinstance(value, str):
            return None
        try:
            return base64.b64decode(value)
        except (binascii.Error, ValueError):
            return None


@dataclass(frozen=True)
class Result:
    """One displayed value, in all the forms in which the kernel gave it.

    ``data``: by MIME type, as in a message of Jupyter, with the colours of a terminal if the kernel
    has sent some. ``is_main_result``: the value of the last expression, not something that was
    displayed on the way.
    """

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_main_result: bool = False

    html = _Text("text/html")
    markdown = _Text("text/markdown")
    svg = _Text("image/svg+xml")
    """It may contain scripts."""
    latex = _Text("text/latex")
    javascript = _Text("application/javascript")
    """Do not run it outside a sandbox."""
    png = _Bytes("image/png")
    jpeg = _Bytes("image/jpeg")
    gif = _Bytes("image/gif")
    pdf = _Bytes("application/pdf")

    @property
    def text(self) -> str | None:
        """The form ``text/plain``, without colours."""
        text = self.data.get("text/plain")
        return strip_ansi(text) if isinstance(text, str) else None

    @property
    def json(self) -> Any:
        """The value of ``application/json``; None if there is none."""
        return self.data.get("application/json")

    def formats(self) -> tuple[str, ...]:
        """Return the short names of the forms that there are; others by their MIME type."""
        forms = vars(Result).items()
        short = {form.mime: name for name, form in forms if isinstance(form, _Form)}
        short |= {"text/plain": "text", "application/json": "json"}
        return tuple(short.get(mime, mime) for mime in self.data)

    def __str__(self) -> str:
        return self.text or f"({', '.join(self.formats())})"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Show it in the notebook of the program as it would be shown in the sandbox's.

        Not its scripts: HTML and SVG of a sandbox would run with the program's rights.
        """
        safe = {mime: self.data[mime] for mime in _SHOWN if mime in self.data}
        return safe, {}


@dataclass(frozen=True)
class Logs:
    """The text that was printed: the pieces as they came, in order within each stream."""

    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "".join([*self.stdout, *self.stderr])


@dataclass(frozen=True)
class ExecutionError:
    """An exception of the code, or the reason for which it was ended.

    ``name``: its class, such as ``ZeroDivisionError``; ``Timeout`` or ``KernelDied`` if the code
    was ended. ``value``: its text. ``traceback_raw``: with the colours of a terminal. ``death``: if
    the kernel died, the facts; its ``kind`` is "memory", "sandbox", "signal" or "exit".
    """

    name: str
    value: str
    traceback_raw: tuple[str, ...] = ()
    death: Death | None = None

    @property
    def traceback(self) -> str:
        """The traceback as plain text."""
        return strip_ansi("\n".join(self.traceback_raw))

    def to_json(self) -> str:
        """Return name, value and traceback as JSON."""
        return json.dumps(self._as_dict())

    def _as_dict(self) -> dict[str, str]:
        return {"name": self.name, "value": self.value, "traceback": self.traceback}

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


MORE_MEMORY = 'To allow more, make a Sandbox with a larger memory=, such as memory="{more}".'
"""Advice for a program whose kernel was over its memory limit; see ``describe_death``."""


def describe_kernel_end(name: str, end: End) -> ExecutionError:
    """Return an error of that name which says why the kernel has ended."""
    death = end if isinstance(end, Death) else None
    return ExecutionError(name, describe_end(end, MORE_MEMORY), death=death)


@dataclass(frozen=True)
class Omitted:
    """Forms of values that were left out. ``size``: bytes of all ``count`` of them."""

    type: str
    """The MIME type, as a name for people: a sandbox has chosen it."""
    count: int
    size: int

    def __str__(self) -> str:
        size = describe_size(self.size)
        return (
            f"{self.type} ({size})"
            if self.count == 1
            else f"{self.count} {self.type} ({size} in all)"
        )


@dataclass(frozen=True)
class Missing:
    """Output that an Execution lacks, and why: ``str`` says it in one line, for people and models.

    ``stdout``, ``stderr`` and ``results``: bytes of text over ``max_output``. ``rich``: pictures
    and other forms over ``max_rich``, by type.
    """

    stdout: int = 0
    stderr: int = 0
    results: int = 0
    rich: tuple[Omitted, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stdout or self.stderr or self.results or self.rich)

    def __str__(self) -> str:
        texts = [
            f"{describe_size(getattr(self, name))} of {name}"
            for name in ("stdout", "stderr", "results")
            if getattr(self, name)
        ]
        parts = [f"{', '.join(texts)}: print less"] if texts else []
        if self.rich:
            rich = ", ".join(map(str, self.rich))
            parts.append(f"{rich}: display it smaller, or save it to a file")
        return f"Left out: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class Execution:
    """The result of one run. ``duration``: seconds from the request to the end.

    ``ended_by``: None if the code ended by itself; else "interrupt" (after a timeout, the kernel
    lives), "kill" (after a timeout that an interrupt did not end) or "death" (of the kernel, with
    the reason in ``error``). After the last two, ``Sandbox.restart`` starts another kernel.
    ``missing``: what was over the limits of output; ``Sandbox.output`` returns all of it. The text
    of the main result is cut; what else is over a limit is left out.
    """

    results: list[Result] = field(default_factory=list)
    logs: Logs = field(default_factory=Logs)
    error: ExecutionError | None = None
    execution_count: int | None = None
    duration: float = 0.0
    ended_by: str | None = None
    missing: Missing = field(default_factory=Missing)
    id: str = ""

    @property
    def text(self) -> str | None:
        """The main result as text: the value of the last expression."""
        return next((result.text for result in self.results if result.is_main_result), None)

    @property
    def stdout(self) -> str:
        """All that was printed."""
        return "".join(self.logs.stdout)

    @property
    def stderr(self) -> str:
        """All that was printed to stderr."""
        return "".join(self.logs.stderr)

    @property
    def ok(self) -> bool:
        """Return whether the code ended by itself, without an exception."""
        return self.error is None

    def to_json(self) -> str:
        """Return results (as text or base64), logs and error as JSON."""
        return json.dumps(
            {
                "results": [dict(result.data) for result in self.results],
                "logs": {"stdout": self.logs.stdout, "stderr": self.logs.stderr},
                "error": None if self.error is None else self.error._as_dict(),
            }
        )

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def raise_for_error(self) -> Execution:
        """Return this if the code ended by itself without an exception.

        :raises CodeFailed: otherwise
        """
        if self.error is not None:
            raise CodeFailed(self)
        return self


class CodeFailed(Exception):
    """The code in a sandbox raised an exception, or was ended. ``execution`` has all of it."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        super().__init__(str(execution.error))


@dataclass(frozen=True)
class Printed:
    """Text of a run that has just come. ``stream``: "stdout" or "stderr"."""

    stream: str
    text: str


def choose_seconds(timeout: float | None, default: float | None) -> float | None:
    """Return the seconds of a run: ``timeout``, or ``default``; None for no limit.

    :raises ValueError: they are not more than 0
    """
    seconds = default if timeout is None else timeout
    if seconds is None or seconds == math.inf:
        return None
    if not isinstance(seconds, (int, float)) or not 0 < seconds < MAX_SECONDS:
        raise ValueError(
            f"A timeout is a number of seconds, more than 0 seconds, or None for no limit;"
            f" not {seconds!r}."
        )
    return float(seconds)
