"""Bounded queue of messages that clients send before the starting kernel can take them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import TypeAlias

from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message, parse_object
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import Part

MAX_MESSAGES = 1000
MAX_BYTES = 16 * 1024 * 1024
"""Messages and bytes that clients may send while a sandbox starts. Above this their sockets are
not read."""

ClientMessage: TypeAlias = WireMessage | list[Part]
"""A checked message, or the parts of a heartbeat."""


class WaitingMessages:
    """Messages in the order in which they came."""

    def __init__(self) -> None:
        self._messages: deque[tuple[Channel, ClientMessage]] = deque()
        self._size = 0

    @property
    def full(self) -> bool:
        """Return whether a limit is reached. The owner then adds no more."""
        return len(self._messages) >= MAX_MESSAGES or self._size >= MAX_BYTES

    def add(self, channel: Channel, message: ClientMessage) -> None:
        """Add a message for ``channel``, also beyond the limits: see ``full``."""
        self._messages.append((channel, message))
        self._size += _size(message)

    def take(self) -> list[tuple[Channel, ClientMessage]]:
        """Remove all messages and return them."""
        taken, self._messages, self._size = list(self._messages), deque(), 0
        return taken

    def drop_executions(self) -> None:
        """Drop the cells that were sent to a dead kernel: the next one must not run them."""
        for channel, message in self.take():
            if isinstance(message, list) or message.kind != "execute_request":
                self.add(channel, message)


def _size(message: ClientMessage) -> int:
    return sum(map(len, message)) if isinstance(message, list) else message.size


class RenewalRequest:
    """One request to run ``code``. The future ``done`` gets WireError if the code fails."""

    def __init__(self, code: str, done: asyncio.Future[None]) -> None:
        content = {
            "code": code,
            "silent": True,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        request = new_message("execute_request", content, b"{}", b"")
        self.request = replace(request, identities=[])
        self.done = done
        self._status = ""
        self._idle = False

    def consumes(self, channel: Channel, message: WireMessage) -> bool:
        """Return whether ``message`` belongs to this request, so that no client gets it.

        :raises WireError: when the message cannot be parsed
        """
        if message.parent_id != self.request.id:
            return False
        if channel is Channel.SHELL:
            status = parse_object(message.content, "content").get("status")
            self._status = status if isinstance(status, str) else "none"
        elif channel is Channel.IOPUB and message.kind == "status":
            content = parse_object(message.content, "content")
            self._idle |= content.get("execution_state") == "idle"
        if self._status and self._idle and not self.done.done():
            if self._status == "ok":
                self.done.set_result(None)
            else:
                self.done.set_exception(WireError("its code for new random numbers failed"))
        return True
