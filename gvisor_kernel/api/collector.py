"""Collects the messages of one run of code within bounds. No I/O but a file for the rest."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any

from gvisor_kernel.api.execution import (
    Execution,
    ExecutionError,
    Logs,
    Missing,
    Omitted,
    Printed,
    Result,
)
from gvisor_kernel.shown_text import printable_name
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_KEPT = 64 * 1024 * 1024
"""Bytes of all output of a run that are kept for ``Sandbox.output``."""
READ_SIZE = 4 * 1024 * 1024
MAX_LINE = 96 * 1024 * 1024
MAX_OUTPUT = 1024 * 1024
"""Bytes of each stream, and of the text of results, in one Execution, unless a program says so."""
MAX_RICH = 8 * 1024 * 1024
"""Bytes of pictures and of other forms of results, unless a program says more."""
TEXT = "text/plain"
BASE64 = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")
"""Types whose values are base64: a form counts as the bytes that it stands for."""
MAX_TYPES, MAX_TYPE = 20, 100
"""Types of what was left out, which a sandbox chooses, and characters of each; others are one."""
MAX_NAME = 1000
MAX_TRACEBACK = 256 * 1024
MAX_RESULTS = 10_000
"""Results in one Execution: one without content takes memory, too."""
MAX_DISPLAY_ID = 256

Event = Printed | Result | ExecutionError


@dataclass(frozen=True)
class Output:
    """All output of a run, as far as MAX_KEPT allows."""

    stdout: str
    stderr: str
    results: tuple[Result, ...]


class LeftOut(dict[str, Any]):
    """Replaces a content that would take too much memory. ``size``: its bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


class Collector:
    """The messages of one request on iopub and shell.

    ``max_output``: bytes of each stream, and of the text of all results, that become part of the
    Execution. ``max_rich``: the same for pictures and other forms of results. What is over them is
    only in the file (``read_output``).
    """

    def __init__(
        self,
        request: str,
        max_output: int = MAX_OUTPUT,
        max_rich: int = MAX_RICH,
        max_kept: int = MAX_KEPT,
    ) -> None:
        self.request = request
        self._max_kept = max_kept
        self.error: ExecutionError | None = None
        self.is_idle = False
        self.has_reply = False
        self.asks_exit = False
        """The code has asked its kernel to exit, as IPython's ``exit`` does."""
        self._began = time.monotonic()
        self._count: int | None = None
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._left = {"stdout": max_output, "stderr": max_output, "results": max_output}
        self._left_rich = max_rich
        self._missing = {"stdout": 0, "stderr": 0, "results": 0}
        self._omitted: dict[str, Omitted] = {}
        self._results: list[Result] = []
        self._displays: dict[str, int] = {}
        self._kept = 0
        """Bytes in the file; ``max_kept`` once something did not fit."""
        self._written = 0
        self._file: IO[bytes] | None = None

    def add(self, message: dict[str, Any]) -> Event | None:
        """Add a message of iopub; return what it shows, if it shows anything.

        A message that is not as the protocol wants it shows nothing: it comes from a sandbox.
        """
        kind, content = message.get("msg_type"), message.get("content")
        if not isinstance(content, dict):
            return None
        if isinstance(content, LeftOut):
            self._missing["results"] += content.size
            return None
        if kind == "stream":
            return self._add_text(content)
        if kind in ("execute_result", "display_data", "update_display_data"):
            return self._add_result(str(kind), content)
        if kind == "error":
            self.error = read_error(content)
            return self.error
        if kind == "status" and content.get("execution_state") == "idle":
            self.is_idle = True
        return None

    def add_reply(self, content: object) -> None:
        """Add the reply on shell. The first one counts; only what an Execution has is kept."""
        if self.has_reply:
            return
        self.has_reply = True
        if not isinstance(content, dict):
            return
        payload = content.get("payload")
        if isinstance(payload, list):
            self.asks_exit = any(
                isinstance(entry, dict) and entry.get("source") == "ask_exit" for entry in payload
            )
        count = content.get("execution_count")
        self._count = count if type(count) is int else None
        if content.get("status") == "error" and self.error is None:
            self.error = read_error(content)

    def _add_text(self, content: dict[str, Any]) -> Printed | None:
        text = content.get("text")
        if not isinstance(text, str) or not text:
            return None
        stream = "stderr" if content.get("name") == "stderr" else "stdout"
        self._keep({"stream": stream, "text": text})
        shown = cut(text, self._left[stream])
        self._left[stream] -= len(shown.encode("utf-8", "surrogatepass"))
        self._missing[stream] += len(text[len(shown) :].encode("utf-8", "surrogatepass"))
        if len(shown) < len(text):
            self._left[stream] = 0  # what comes later must not look as if it followed
        if shown:
            self._texts[stream].append(shown)
        return Printed(stream, text)

    def _add_result(self, kind: str, content: dict[str, Any]) -> Result | None:
        data, metadata = content.get("data"), content.get("metadata")
        if not isinstance(data, dict):
            return None
        is_main = kind == "execute_result"
        result = Result(data, metadata if isinstance(metadata, dict) else {}, is_main)
        self._keep({"result": data, "metadata": result.metadata, "main": is_main})
        transient = content.get("transient")
        display = transient.get("display_id") if isinstance(transient, dict) else None
        if not isinstance(display, str) or len(display) > MAX_DISPLAY_ID:
            display = None
        known = self._displays.get(display) if display is not None else None
        is_update = known is not None and kind == "update_display_data"
        is_full = len(self._results) >= MAX_RESULTS and not is_update
        kept = self._fit(result, is_full)
        if kept is None:
            return result
        if known is not None and is_update:
            self._results[known] = kept
        else:
            if display is not None:
                self._displays[display] = len(self._results)
            self._results.append(kept)
        return result

    def _fit(self, result: Result, is_full: bool) -> Result | None:
        """Return the forms of a result that have room, and the beginning of a main result's text.

        None if nothing of it has, or if there is no room for another result (``is_full``).
        """
        data: dict[str, Any] = {}
        for mime, value in result.data.items():
            size = measure(mime, value)
            if mime == TEXT and isinstance(value, str):
                left = 0 if is_full else self._left["results"]
                text = cut(value, left) if size <= left or result.is_main_result else ""
                kept = len(text.encode("utf-8", "surrogatepass"))
                self._left["results"] -= kept
                self._missing["results"] += size - kept
                if text or not value:
                    data[mime] = text
            elif not is_full and size <= self._left_rich:
                self._left_rich -= size
                data[mime] = value
            else:
                self._omit(mime, size)
        if is_full and not result.data:
            self._omit("empty value", 0)
        if is_full or (result.data and not data):
            return None
        size = measure("", result.metadata) if result.metadata else 0
        if size > self._left_rich:
            self._omit("metadata", size)
            return Result(data, {}, result.is_main_result)
        self._left_rich -= size
        return Result(data, result.metadata, result.is_main_result)

    def _omit(self, mime: str, size: int) -> None:
        name = printable_name(mime[:MAX_TYPE])
        if name not in self._omitted and len(self._omitted) >= MAX_TYPES:
            name = "other types"
        before = self._omitted.get(name, Omitted(name, 0, 0))
        self._omitted[name] = Omitted(name, before.count + 1, before.size + size)

    def _keep(self, entry: dict[str, Any]) -> None:
        """Write an entry to the file, if it has room."""
        try:
            line = json.dumps(entry).encode() + b"\n"
        except (RecursionError, ValueError):  # nested too deep for the parser of a later reader
            line = b"\n"
        if self._kept + len(line) > self._max_kept:
            self._kept = self._max_kept
            return
        with suppress(OSError):  # a full disk: what is missing is counted all the same
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see ``close``
            if os.pwrite(self._file.fileno(), line, self._kept) < len(line):
                self._kept = self._max_kept
                return
            self._kept += len(line)
            self._written = self._kept

    def finish(self, ended_by: str | None, error: ExecutionError | None = None) -> Execution:
        """Return what was collected. ``error``: instead of the code's own."""
        return Execution(
            results=list(self._results),
            logs=Logs(list(self._texts["stdout"]), list(self._texts["stderr"])),
            error=error or self.error,
            execution_count=self._count,
            duration=time.monotonic() - self._began,
            ended_by=ended_by,
            missing=Missing(**self._missing, rich=tuple(self._omitted.values())),
            id=self.request,
        )

    def read_output(self) -> Output:
        """Return all output that was kept. Blocks."""
        texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        results = []
        for entry in self._read_entries():
            if "stream" in entry:
                texts[entry["stream"]].append(entry["text"])
            else:
                results.append(Result(entry["result"], entry["metadata"], entry["main"]))
        return Output("".join(texts["stdout"]), "".join(texts["stderr"]), tuple(results))

    def _read_entries(self) -> Iterator[dict[str, Any]]:
        """Read what is in the file now. Several readers, and a run that goes on, may be at it."""
        if self._file is None:
            return
        end, at = self._written, 0
        parts: list[bytes] = []
        while at < end:
            data = os.pread(self._file.fileno(), min(READ_SIZE, end - at), at)
            if not data:
                return
            at += len(data)
            parts.append(data)
            if b"\n" not in data:
                continue
            *lines, rest = b"".join(parts).split(b"\n")
            parts = [rest]
            for line in lines:
                with suppress(JsonError):
                    yield parse_json(line, MAX_LINE)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def measure(mime: str, value: object) -> int:
    """Return about how many bytes a form of a value takes, its type included."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value)
        except (RecursionError, ValueError):  # nested deeper than it can be read again
            return MAX_LINE
    elif mime == TEXT:
        return len(value.encode("utf-8", "surrogatepass"))
    size = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return len(mime.encode("utf-8", "surrogatepass")) + (size * 3 // 4 if mime in BASE64 else size)


def cut(text: str, limit: int) -> str:
    """Return the beginning of ``text`` that has at most ``limit`` bytes in UTF-8."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= limit:
        return text
    return data[:limit].decode("utf-8", "ignore")


def read_error(content: dict[str, Any]) -> ExecutionError:
    """Return the error of a message or reply. Whatever is not text is left out."""
    lines = content.get("traceback")
    texts = [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else []
    left, traceback = MAX_TRACEBACK, []
    for line in texts:
        traceback.append(line[:left])
        left -= len(line) + 1
        if left <= 0:
            break
    name, value = content.get("ename"), content.get("evalue")
    if name == "" and isinstance(value, str) and value.isdigit():  # bash_kernel's
        name, value = "CommandFailed", f"exit status {value}"
    return ExecutionError(
        clean_name(name[:MAX_NAME]) if isinstance(name, str) else "Error",
        value[:MAX_TRACEBACK] if isinstance(value, str) else "",
        tuple(traceback),
    )


def clean_name(name: str) -> str:
    """Return the name of an exception's class without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in name)


def with_text(error: ExecutionError | None, name: str, value: str) -> ExecutionError:
    """Return an error with another name and text, and the traceback of ``error``."""
    return replace(error or ExecutionError("", ""), name=name, value=value)
