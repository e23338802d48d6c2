"""Connections of HTTP: how long one may send nothing, and how many there may be.

uvicorn waits for a head or a body without an end. Here, a connection that does not go on is closed;
so is the one that has waited longest for a request when there are too many, so that connections
which send nothing keep nobody out.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_REQUESTS = 512
"""Requests that are answered at once, streams among them."""
MAX_CONNECTIONS = MAX_REQUESTS + 128
"""Open connections: each request has one, and the others wait for a request."""
HEAD_SECONDS = 10.0
"""From the first moment of a connection, or the first byte of a further request, to the end of the
head."""
BODY_SECONDS = 30.0
"""Without a byte of a body that is not complete."""


class Connection(H11Protocol):
    """One connection. uvicorn calls the methods that are not marked as ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for = ""
        self._since = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered. Ours."""
        return self.conn.their_state is h11.IDLE

    @property
    def age(self) -> tuple[bool, float]:
        """What is closed first has the smallest. Ours.

        That is what has never sent a request, before what a client keeps for its next one: a
        request without the token ends its connection.
        """
        return self.cycle is not None, self._since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._since = time.monotonic()
        self._watch()
        others = [other for other in self.connections if isinstance(other, Connection)]
        open_ones = [other for other in others if not other.transport.is_closing()]
        if len(open_ones) > MAX_CONNECTIONS:
            idle = [other for other in open_ones if other.is_idle]
            min(idle, key=lambda other: other.age).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        self._watch(has_come=True)

    def on_response_complete(self) -> None:
        """A request was answered."""
        super().on_response_complete()
        self._since = time.monotonic()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _stop(self) -> None:
        self._waits_for = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, *, has_come: bool = False) -> None:
        """Set the time for what the client has to send next."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._stop()
        elif state is h11.SEND_BODY:
            self._stop()
            self._set("body", BODY_SECONDS)
        elif state is not h11.IDLE:
            self._stop()
        elif self._waits_for != "head":
            self._stop()
            # Between requests, uvicorn's own limit counts until a byte comes.
            if has_come or self.cycle is None:
                self._set("head", HEAD_SECONDS)

    def _set(self, waits_for: str, seconds: float) -> None:
        self._waits_for = waits_for
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # the body waits for us, not for the client
            self._set(self._waits_for, BODY_SECONDS)
            return
        self.transport.abort()
