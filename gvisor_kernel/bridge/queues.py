"""Queues of messages: ``Lane`` for each channel and direction, and what waits for a kernel's start.

All kernels share the bridge's loop. Checking and signing a message of 100 MB takes half a second,
during which hashlib releases the GIL. So a lane has that done by a worker thread, and later
messages of the same channel wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from gvisor_kernel.bridge.wire import WireError, WireMessage, new_message, parse_object
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import Part

T = TypeVar("T")

MAX_INLINE = 256 * 1024
"""Bytes of a message that is handled on the loop. That takes less than a millisecond, which is
about the cost of a round trip to a worker."""


class Lane:
    """Queue of work items; each runs ``work()`` and then ``then(result)`` on the loop, in order.

    ``work`` runs in ``executor`` if its size is over MAX_INLINE. It must not raise. ``on_empty``
    is called when the last of the items that had to wait is done.
    """

    def __init__(self, executor: Executor, on_empty: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = executor
        self._on_empty = on_empty
        self._waiting: deque[tuple[int, Callable[[], Any], Callable[[Any], None]]] = deque()
        self._busy = False
        self._closed = False

    @property
    def empty(self) -> bool:
        """Return whether no item waits or runs."""
        return not (self._busy or self._waiting)

    def put(self, size: int, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Add an item. A short one in an empty lane is done before this returns."""
        if self._closed:
            return
        if size <= MAX_INLINE and self.empty:
            then(work())
            return
        self._waiting.append((size, work, then))
        self._run_next()

    def close(self) -> None:
        """Drop waiting items; the result of a running one is ignored."""
        self._closed = True
        self._waiting.clear()

    def _run_next(self) -> None:
        while self._waiting and not self._busy:
            size, work, then = self._waiting.popleft()
            self._busy = True
            if size > MAX_INLINE and self._run_in_worker(work, then):
                return
            self._finish(work(), then)
        if self.empty and self._on_empty is not None and not self._closed:
            self._on_empty()

    def _run_in_worker(self, work: Callable[[], T], then: Callable[[T], None]) -> bool:
        try:
            working = self._loop.run_in_executor(self._executor, work)
        except RuntimeError:  # the process exits, and the executor has shut down
            return False

        def done(future: asyncio.Future[T]) -> None:
            if future.cancelled():  # the process exits
                return
            try:
                self._finish(future.result(), then)  # no timeout: it is done
            finally:
                self._run_next()

        working.add_done_callback(done)
        return True

    def _finish(self, result: T, then: Callable[[T], None]) -> None:
        self._busy = False
        if not self._closed:
            then(result)


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

    @property
    def empty(self) -> bool:
        """Return whether none waits."""
        return not self._messages

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
