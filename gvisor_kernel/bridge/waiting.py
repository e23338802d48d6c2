"""What clients send while no kernel can take it: kept for the one that is starting, bounded."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from gvisor_kernel.bridge.wire import WireMessage
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import Part

WAITING_MESSAGES = 1000
WAITING_BYTES = 16 * 1024 * 1024
"""What clients may send ahead while a sandbox starts; above, their sockets are not read."""

Sent: TypeAlias = WireMessage | list[Part]
"""A message that was checked, or the parts of a heartbeat."""


class WaitingMessages:
    """In the order in which they came."""

    def __init__(self) -> None:
        self._messages: deque[tuple[Channel, Sent]] = deque()
        self._size = 0

    @property
    def full(self) -> bool:
        return len(self._messages) >= WAITING_MESSAGES or self._size >= WAITING_BYTES

    def add(self, channel: Channel, message: Sent) -> None:
        self._messages.append((channel, message))
        self._size += _size(message)

    def take(self) -> list[tuple[Channel, Sent]]:
        """All of them; none waits any more."""
        taken, self._messages, self._size = list(self._messages), deque(), 0
        return taken

    def drop_executions(self) -> None:
        """Cells that were sent to a kernel that has died are not for the next one to run."""
        for channel, message in self.take():
            if isinstance(message, list) or message.kind != "execute_request":
                self.add(channel, message)


def _size(message: Sent) -> int:
    return sum(map(len, message)) if isinstance(message, list) else message.size
