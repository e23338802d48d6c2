"""The clients of a server: whose sessions a request may use, and when a client has left.

Over stdio there is one client. Over HTTP, a client of a protocol with an ``initialize`` handshake
is known by the session id that the server has given it. Requests of the newer protocol have none;
their clients share one collection, in which sessions have names that nobody can guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from gvisor_kernel.mcp.sessions import Sandboxes, Sessions

SWEEP_SECONDS = 15.0
STATELESS = ""
"""The key of the clients that cannot be told apart."""


@dataclass(eq=False)
class Client:
    """One client. ``calls``: those that are answered now.

    ``streams``: open ones of HTTP, on which it listens. ``left``: when the last one was closed.
    """

    sessions: Sessions
    calls: int = 0
    streams: int = 0
    left: float | None = None


class Clients:
    """All clients of one server, by key."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self.settings = sandboxes.settings
        self._sandboxes = sandboxes
        self._clients: dict[str, Client] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, key: str, *, is_stateless: bool = False) -> Client:
        """Return the client of that key; it becomes known with its first call."""
        client = self._clients.get(key)
        if client is None:
            client = Client(Sessions(self._sandboxes, is_stateless=is_stateless))
            self._clients[key] = client
        return client

    def is_busy(self, key: str) -> bool:
        """Whether the client of that key has sandboxes, or a call is answered now."""
        client = self._clients.get(key)
        return client is not None and (client.calls > 0 or bool(client.sessions.list()))

    def is_listening(self, key: str) -> bool:
        """Whether the client of that key has an open stream."""
        client = self._clients.get(key)
        return client is not None and client.streams > 0

    def start(self) -> None:
        """Begin to end idle sessions, and those of clients that have left."""
        self._sweeping = asyncio.ensure_future(self._sweep())

    async def _sweep(self) -> None:
        limits = self.settings.limits
        pause = min(SWEEP_SECONDS, limits.idle_seconds / 4, limits.left_seconds / 2)
        while True:
            await asyncio.sleep(max(pause, 0.05))
            now = time.monotonic()
            for key, client in tuple(self._clients.items()):
                await client.sessions.stop_idle()
                is_gone = client.left is not None and now - client.left > limits.left_seconds
                if is_gone and not client.calls:
                    self.leave(key)

    def leave(self, key: str) -> None:
        """A client has left: begin to end its sessions."""
        client = self._clients.pop(key, None)
        if client is not None:
            closing = asyncio.ensure_future(client.sessions.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all sessions of all clients. Does not raise."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping
        for key in tuple(self._clients):
            self.leave(key)
        await asyncio.gather(*self._closing, self._sandboxes.close(), return_exceptions=True)
