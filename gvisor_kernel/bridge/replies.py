"""Holds a cell's reply until the client that waits for it cannot miss it. Knows no sockets.

In asyncio, jupyter_client waits for a ZMQ socket and sends on it behind the back of what waits. Its
descriptor is edge-triggered: a send just after a reply has come consumes the event, and the client
waits for ever. nbclient (nbconvert, papermill, Voila) sends so, a comm message for each output that
an Output widget captures. Nothing that comes later would wake it, as libzmq signals no second
message before the first one was read.

So the reply to a client that takes no input waits until the cell is idle, which is published after
its outputs, and until the client has answered the captured ones. Each message is sent once, and
those to one client in the order in which they came.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gvisor_kernel.bridge.clients import OnSent
from gvisor_kernel.bridge.doors import MAX_CELL
from gvisor_kernel.bridge.wire import MAX_HEADER, WireError, WireMessage, parse_object
from gvisor_kernel.link.frames import Part

ANSWER_SECONDS = 2.0
"""Seconds without a message of the cell after which its reply is sent anyway. Most clients answer
no outputs, and some read none, so that no idle comes: such a one is not waited for again until it
sends an answer."""
MAX_CELLS = 1000
"""Cells whose replies may wait, and clients that did not answer."""
OUTPUTS = ("stream", "display_data", "execute_result", "error", "clear_output")
_NO_INPUT = re.compile(rb'"allow_stdin": ?false')
_WAIT = re.compile(rb'"wait": ?true')


@dataclass(eq=False)
class _Cell:
    """A request without a reply, and its outputs that widgets captured."""

    client: bytes
    widgets: int = 0
    """Output widgets that capture now."""
    captured: int = 0
    answers: int = 0
    messages: int = 0
    """Answers, and what was published."""
    idle: bool = False
    is_timed: bool = False


class Replies:
    """A kernel's messages on shell, on their way to ``send``. Use on the bridge's loop."""

    def __init__(self, send: Callable[[list[Part], OnSent], None]) -> None:
        self._send = send
        self._cells: dict[str, _Cell] = {}
        self._held: dict[bytes, deque[tuple[str, list[Part], OnSent]]] = {}
        """Messages by client. The first waits for its cell, and the others for the first."""
        self._silent: set[bytes] = set()

    def note_request(self, message: WireMessage) -> None:
        """Note a client's message on shell: a cell, or an answer to a captured output."""
        client = bytes(message.identities[0]) if message.identities else b""
        if message.kind == "comm_msg":
            with suppress(WireError):
                if message.parent_id:
                    self._silent.discard(client)
                if (cell := self._cells.get(message.parent_id)) is not None:
                    cell.answers, cell.messages = cell.answers + 1, cell.messages + 1
                    self._send_ready(cell.client)
        elif message.kind == "execute_request" and client not in self._silent:
            is_short = len(message.content) <= MAX_CELL and len(self._cells) < MAX_CELLS
            if is_short and _NO_INPUT.search(message.content):
                self._cells[message.id] = _Cell(client)

    def note_output(self, message: WireMessage) -> None:
        """Note a message that was published on iopub."""
        kind = message.kind
        if not self._cells or kind not in ("status", "comm_msg", *OUTPUTS):
            return
        cell = self._cells.get(message.parent_id)
        if cell is None or cell.idle:
            return
        cell.messages += 1
        if kind == "status":
            cell.idle = b'"idle"' in bytes(message.content)
            self._send_ready(cell.client)
        elif kind == "comm_msg":
            cell.widgets = max(0, cell.widgets + _count_widgets(message))
        elif cell.widgets and not (kind == "clear_output" and _WAIT.search(message.content)):
            cell.captured += 1

    def send(self, message: WireMessage, parts: list[Part], on_sent: OnSent) -> None:
        """Send a kernel's ``message``, which has these ``parts``, now or when it may be sent."""
        client = bytes(parts[0])
        self._held.setdefault(client, deque()).append((message.parent_id, parts, on_sent))
        self._send_ready(client)

    def release(self) -> None:
        """Send all that is held, as the kernel has ended; forget the cells that have no reply."""
        self._cells.clear()
        for client in list(self._held):
            self._send_ready(client)

    def _send_ready(self, client: bytes) -> None:
        held = self._held.get(client)
        while held:
            request, parts, on_sent = held[0]
            cell = self._cells.get(request)
            is_ready = cell is None or (cell.idle and cell.answers >= cell.captured)
            if cell is not None and cell.client == client and not is_ready:
                if not cell.is_timed:
                    cell.is_timed = True
                    self._give_up_later(request, cell)
                return
            self._cells.pop(request, None)
            held.popleft()
            self._send(parts, on_sent)
        self._held.pop(client, None)

    def _give_up_later(self, request: str, cell: _Cell, messages: int = -1) -> None:
        """Give up on the client if there are no more than ``messages``; else look again later."""
        if self._cells.get(request) is not cell:
            return
        if cell.messages != messages:
            call_later = asyncio.get_running_loop().call_later
            call_later(ANSWER_SECONDS, self._give_up_later, request, cell, cell.messages)
            return
        if len(self._silent) < MAX_CELLS:
            self._silent.add(cell.client)
        cell.idle, cell.captured = True, 0
        self._send_ready(cell.client)


def _count_widgets(message: WireMessage) -> int:
    """Return 1 if an Output widget begins to capture the cell's outputs, -1 if one ends that."""
    if b'"msg_id"' in bytes(message.content[:MAX_HEADER]):
        with suppress(WireError, KeyError, TypeError):
            captured = parse_object(message.content, "content")["data"]["state"]["msg_id"]
            if captured in ("", message.parent_id):
                return 1 if captured else -1
    return 0
