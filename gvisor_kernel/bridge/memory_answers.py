"""Answers what front ends ask of a kernel that hibernates, from what it has said before.

A page that is loaded again asks who the kernel is and which comms it has. Neither is a reason to
wake one. A kernel with comms is woken: only it knows them. No sockets here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message, parse_object

MAX_INFO = 64 * 1024
"""Bytes of a kernel_info_reply that are kept."""
MAX_COMMS = 10_000
"""Comms that are counted; with more of them each question wakes the kernel."""


class MemoryAnswers:
    """Keeps what a kernel has told of itself, and which comms it may have."""

    def __init__(self) -> None:
        self._info: dict[str, Any] | None = None
        self._comms: set[str] = set()

    def note(self, message: WireMessage) -> None:
        """Note a checked message of the kernel or of a client.

        :raises WireError: when it cannot be parsed
        """
        kind = message.kind
        if kind == "kernel_info_reply" and len(message.content) <= MAX_INFO:
            self._info = parse_object(message.content, "content")
        elif kind in ("comm_open", "comm_close"):
            comm = parse_object(message.content, "content").get("comm_id")
            if kind == "comm_close":
                self._comms.discard(str(comm))
            elif len(self._comms) < MAX_COMMS:
                self._comms.add(str(comm)[:100])

    def forget_comms(self) -> None:
        """Forget the comms of a kernel that has ended."""
        self._comms.clear()

    def find(self, request: WireMessage) -> list[WireMessage] | None:
        """Return the answer to ``request``, after it what is published; None: ask the kernel."""
        with suppress(WireError):
            content = self._find_content(request.kind)
            if content is not None:
                kind = request.kind.replace("_request", "_reply")
                reply = new_message(kind, content, request.header, b"")
                states = (
                    new_message("status", {"execution_state": state}, request.header, b"status")
                    for state in ("busy", "idle")
                )
                return [replace(reply, identities=request.identities), *states]
        return None

    def _find_content(self, kind: str) -> dict[str, Any] | None:
        if kind == "kernel_info_request":
            return self._info
        if kind == "comm_info_request" and not self._comms:
            return {"status": "ok", "comms": {}}
        return None
