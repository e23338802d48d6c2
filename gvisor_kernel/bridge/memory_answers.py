"""Answers what front ends ask of a kernel that hibernates, from what it has said before.

A page that is loaded again asks who the kernel is, which comms it has, which cells were run last,
and whether it is being debugged. None is a reason to wake one. A kernel with comms is woken: only
it knows them. No sockets here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gvisor_kernel.bridge.wire import (
    WireError,
    WireMessage,
    new_message,
    parse_object,
)
from gvisor_kernel.strict_json import MAX_DEPTH

MAX_KEPT_DEPTH = MAX_DEPTH // 2
"""Levels of a reply that is kept: it is written, and read again, inside other objects."""
MAX_COMMS = 10_000
"""Comms that are counted; with more of them each question wakes the kernel."""
MAX_CELLS, MAX_CELL = 100, 4096
"""Cells that are kept for the history that front ends show, and bytes of a request for one."""
MAX_CELL_NUMBER = 2**53
KEPT = ("kernel_info_reply", "debug_reply")
CHANGING = {*KEPT, "debug_request", "execute_request", "execute_reply", "comm_open", "comm_close"}
"""Messages after which the answers may be others."""


class MemoryAnswers:
    """Remembers what a kernel has told of itself, and what clients have asked of it."""

    def __init__(self) -> None:
        self._replies: dict[str, dict[str, Any]] = {}
        """The last replies of the kinds KEPT; of the debugger's only ``debugInfo``, until it is
        used."""
        self._comms: set[str] = set()
        self._cells: deque[str] = deque(maxlen=MAX_CELLS)
        """Code of the last cells that clients have run, but for long ones."""
        self.worked = 0.0
        """Seconds for which cells of clients have run."""
        self._open, self._since = 0, 0.0
        """Cells that have no reply yet, and since when the first of them has run."""
        self.cell = 0
        """The number of the last cell that has run, as the kernel says it."""
        self.debugs = False
        """The debugger is attached."""
        self.slept_debugged = False
        """It was attached while the kernel was asleep."""
        self.asks = False
        """A cell waits for input."""
        self.on_change: Callable[[], None] = lambda: None
        """Called for each message of the kinds CHANGING."""

    def note(self, message: WireMessage) -> None:
        """Note a checked message of the kernel or of a client. It is passed on whatever it is.

        :raises WireError: when its header cannot be parsed
        """
        kind = message.kind
        if kind in ("input_request", "input_reply", "execute_reply"):
            self.asks = kind == "input_request"
        if kind in CHANGING:
            self.on_change()
        if kind == "debug_request" and (command := _try_read(message).get("command")):
            self.debugs = command == "attach" or (self.debugs and command != "disconnect")
        if kind in KEPT:
            content = _try_read(message, MAX_KEPT_DEPTH)
            if content and (kind == "kernel_info_reply" or content.get("command") == "debugInfo"):
                self._replies[kind] = content
        elif kind == "execute_reply":
            self._note_reply(message)
        if kind == "execute_request":
            self._since = self._since if self._open else time.monotonic()
            self._open += 1
        if kind == "execute_request" and len(message.content) <= MAX_CELL:
            asked = _try_read(message)
            if asked and asked.get("store_history", True) and not asked.get("silent"):
                self._cells.append(str(asked.get("code", "")))
        elif kind == "debug_event" or (
            kind == "debug_request" and _try_read(message).get("command") != "debugInfo"
        ):
            self._replies.pop("debug_reply", None)
        elif kind in ("comm_open", "comm_close"):
            # One that is not parsed has no name here, and counts as a comm that is never closed.
            comm = str(_try_read(message).get("comm_id", ""))[:100]
            if kind == "comm_close":
                if comm:
                    self._comms.discard(comm)
            elif len(self._comms) < MAX_COMMS:
                self._comms.add(comm)

    def _note_reply(self, message: WireMessage) -> None:
        if self._open:
            now = time.monotonic()
            self._open, self.worked = self._open - 1, self.worked + now - self._since
            self._since = now
        self.cell = find_cell(_try_read(message).get("execution_count")) or self.cell

    def dump(self) -> dict[str, Any]:
        """Return all of it, for ``load`` in another process."""
        return {
            "replies": dict(self._replies),
            "comms": sorted(self._comms),
            "cells": list(self._cells),
            "cell": self.cell,
            "debugs": self.debugs,
        }

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Know what ``dump`` gave, and nothing else."""
        self._replies = dict(dumped.get("replies", {}))
        self._comms = set(dumped.get("comms", ()))
        self._cells = deque(dumped.get("cells", ()), maxlen=MAX_CELLS)
        self.cell = find_cell(dumped.get("cell"))
        self.debugs = self.slept_debugged = bool(dumped.get("debugs", False))

    def forget(self) -> None:
        """Forget a kernel that has ended."""
        self.load({})
        self._open, self.asks = 0, False

    def find(self, request: WireMessage) -> list[WireMessage] | None:
        """Return the answer to ``request``, after it what is published; None: ask the kernel."""
        with suppress(WireError):
            content = self._find_content(request)
            if content is not None:
                kind = request.kind.replace("_request", "_reply")
                reply = new_message(kind, content, request.header, b"")
                states = (
                    new_message("status", {"execution_state": state}, request.header, b"status")
                    for state in ("busy", "idle")
                )
                return [replace(reply, identities=request.identities), *states]
        return None

    def _find_content(self, request: WireMessage) -> dict[str, Any] | None:
        kind = request.kind
        if kind == "kernel_info_request":
            return self._replies.get("kernel_info_reply")
        if kind == "comm_info_request" and not self._comms:
            return {"status": "ok", "comms": {}}
        if kind == "is_complete_request" and not _read(request).get("code", ""):
            return {"status": "unknown"}  # nobody has typed anything
        if kind == "history_request":
            asked = _read(request)
            if asked.get("hist_access_type") != "tail" or asked.get("output"):
                return None
            cells = [[0, number, code] for number, code in enumerate(self._cells, 1)]
            return {"status": "ok", "history": cells}  # session 0: the present one
        if kind == "debug_request" and (asked := _read(request)).get("command") == "debugInfo":
            known = self._replies.get("debug_reply")
            return None if known is None else {**known, "request_seq": asked.get("seq", 0)}
        return None


def find_cell(count: object) -> int:
    """Return a number of a cell that a kernel has told; 0 if it is none."""
    return count if type(count) is int and 0 < count < MAX_CELL_NUMBER else 0


def _read(message: WireMessage) -> dict[str, Any]:
    return parse_object(message.content, "content")


def _try_read(message: WireMessage, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Return the content, empty if it is none or too large."""
    try:
        return parse_object(message.content, "content", max_depth)
    except WireError:
        return {}
