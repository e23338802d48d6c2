"""Answers what front ends ask of a kernel that hibernates, from what it has said before.

A page that is loaded again asks who the kernel is, which comms it has, which cells were run last,
and whether it is being debugged. None is a reason to wake one. A kernel with comms is woken: only
it knows them. No sockets here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message, parse_object

MAX_INFO = 64 * 1024
"""Bytes of a reply that is kept."""
MAX_COMMS = 10_000
"""Comms that are counted; with more of them each question wakes the kernel."""
MAX_CELLS, MAX_CELL = 100, 4096
"""Cells that are kept for the history that front ends show, and bytes of a request for one."""
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
        self.debugs = False
        """The debugger is attached."""
        self.slept_debugged = False
        """It was attached while the kernel was asleep."""
        self.asks = False
        """A cell waits for input."""
        self.on_change: Callable[[], None] = lambda: None
        """Called for each message of the kinds CHANGING."""

    def note(self, message: WireMessage) -> None:
        """Note a checked message of the kernel or of a client.

        :raises WireError: when it cannot be parsed
        """
        kind = message.kind
        if kind in ("input_request", "input_reply", "execute_reply"):
            self.asks = kind == "input_request"
        if kind in CHANGING:
            self.on_change()
        if kind == "debug_request" and len(message.content) <= MAX_INFO:
            command = _find_command(_read(message))
            self.debugs = command == "attach" or (self.debugs and command != "disconnect")
        if kind in KEPT and len(message.content) <= MAX_INFO:
            content = parse_object(message.content, "content")
            if kind == "kernel_info_reply" or _find_command(content) == "debugInfo":
                self._replies[kind] = content
        elif kind == "execute_request" and len(message.content) <= MAX_CELL:
            asked = _read(message)
            if asked.get("store_history", True) and not asked.get("silent"):
                self._cells.append(str(asked.get("code", "")))
        elif kind == "debug_event" or (
            kind == "debug_request" and _find_command(_read(message)) != "debugInfo"
        ):
            self._replies.pop("debug_reply", None)
        elif kind in ("comm_open", "comm_close"):
            # A kernel decides how large it is, and all kernels share the loop: a large one has no
            # name here, and counts as a comm that is never closed.
            is_short = len(message.content) <= MAX_INFO
            comm = str(_read(message).get("comm_id"))[:100] if is_short else ""
            if kind == "comm_close":
                self._comms.discard(comm)
            elif len(self._comms) < MAX_COMMS:
                self._comms.add(comm)

    def dump(self) -> dict[str, Any]:
        """Return all of it, for ``load`` in another process."""
        comms, cells = sorted(self._comms), list(self._cells)
        replies = dict(self._replies)
        return {"replies": replies, "comms": comms, "cells": cells, "debugs": self.debugs}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Begin with what ``dump`` gave."""
        self._replies = dict(dumped.get("replies", {}))
        self._comms = set(dumped.get("comms", ()))
        self._cells.extend(dumped.get("cells", ()))
        self.debugs = self.slept_debugged = bool(dumped.get("debugs", False))

    def forget(self) -> None:
        """Forget a kernel that has ended."""
        self._replies.clear()
        self._comms.clear()
        self._cells.clear()
        self.debugs = self.slept_debugged = self.asks = False

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
        if kind == "history_request" and _is_tail(_read(request)):
            cells = [[0, number, code] for number, code in enumerate(self._cells, 1)]
            return {"status": "ok", "history": cells}  # session 0: the present one
        if kind == "debug_request" and (asked := _read(request)).get("command") == "debugInfo":
            known = self._replies.get("debug_reply")
            return None if known is None else {**known, "request_seq": asked.get("seq", 0)}
        return None


def _read(message: WireMessage) -> dict[str, Any]:
    return parse_object(message.content, "content")


def _is_tail(asked: Mapping[str, Any]) -> bool:
    return asked.get("hist_access_type") == "tail" and not asked.get("output")


def _find_command(content: Mapping[str, Any]) -> object:
    return content.get("command")
