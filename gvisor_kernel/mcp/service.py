"""A running server: its clients and their sandboxes, while one of the transports brings requests.

Over stdio there is one client. Over HTTP, a client of a protocol with an ``initialize`` handshake
is known by the session id that the server has given it. Requests of the newer protocol have none;
their clients share one collection, in which sessions have names that nobody can guess.

The SDK is imported from here, in a thread, while the first sandbox starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import ModuleType

from gvisor_kernel.errors import GvisorKernelError, SandboxError
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.mcp.sessions import Sandboxes, Sessions
from gvisor_kernel.mcp.settings import ServerSettings
from gvisor_kernel.mcp.stdio import Wire

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SWEEP_SECONDS = 15.0
STDIO = "stdio"
"""The key of the one client over stdio."""
STATELESS = ""
"""The key of the clients that cannot be told apart."""
MANY_CLIENTS = 4
"""As how many clients those count that cannot be told apart, for the limit of calls at once."""


@dataclass(eq=False)
class Client:
    """One client. ``calls``: those that are answered now.

    ``streams``: open ones of HTTP, on which it listens. ``left``: when the last one was closed.
    """

    sessions: Sessions
    calls: int = 0
    streams: int = 0
    left: float | None = None
    used: float = field(default_factory=time.monotonic)

    @contextmanager
    def calling(self) -> Iterator[Sessions]:
        """Count a call.

        :raises SandboxError: there are too many at once
        """
        limit = self.sessions.limits.calls * (MANY_CLIENTS if self.sessions.is_stateless else 1)
        if self.calls >= limit:
            raise SandboxError(
                f"There are {self.calls} calls at once, which is the limit.",
                "wait for the answers to earlier calls.",
            )
        self.calls += 1
        try:
            yield self.sessions
        finally:
            self.calls -= 1
            self.used = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count an open stream."""
        self.streams += 1
        self.left = None
        try:
            yield
        finally:
            self.streams -= 1
            if not self.streams:
                self.left = time.monotonic()

    def has_left(self) -> bool:
        """Return whether it listens no more, or was not seen for long and has no sandbox."""
        limits, now = self.sessions.limits, time.monotonic()
        if self.calls or self.streams:
            return False
        if self.left is not None and now - self.left > limits.left_seconds:
            return True
        return not self.sessions.list() and now - self.used > limits.idle_seconds


class Clients:
    """All clients of one server, by key."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self.settings = sandboxes.settings
        self._sandboxes = sandboxes
        self._clients: dict[str, Client] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, key: str) -> Client:
        """Return the client of that key; it becomes known with its first call."""
        client = self._clients.get(key)
        if client is None:
            client = Client(Sessions(self._sandboxes, is_stateless=key == STATELESS))
            self._clients[key] = client
        return client

    async def sweep(self) -> None:
        """End idle sessions, and those of clients that have left, again and again."""
        limits = self.settings.limits
        pause = min(SWEEP_SECONDS, limits.idle_seconds / 4, limits.left_seconds / 2)
        while True:  # no timeout: until it is cancelled
            await asyncio.sleep(max(pause, 0.05))
            for key, client in tuple(self._clients.items()):
                await client.sessions.stop_idle()
                if client.has_left():
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
        for key in tuple(self._clients):
            self.leave(key)
        # no timeout: bounded by END_SECONDS in sessions
        await asyncio.gather(*self._closing, self._sandboxes.close(), return_exceptions=True)


@asynccontextmanager
async def open_clients(settings: ServerSettings) -> AsyncIterator[Clients]:
    """Start the first sandbox, and serve clients; at the end, end all sandboxes."""
    sandboxes = Sandboxes(settings)
    clients = Clients(sandboxes)
    sandboxes.start_first()
    sweeping = asyncio.ensure_future(clients.sweep())
    try:
        yield clients
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping  # no timeout: it was cancelled, and its steps end at once
        await clients.close()


async def load(name: str) -> ModuleType:
    """Import a module of this package that needs the SDK.

    :raises GvisorKernelError: the SDK is not installed
    """
    # The SDK builds thousands of schemas; the collector would look at all of them, again and again.
    gc.disable()
    try:
        return await in_thread(importlib.import_module, f"gvisor_kernel.mcp.{name}")
    except ImportError as error:
        raise GvisorKernelError(
            f"The MCP server needs a package that is not installed: {error.name}.",
            "run: pip install 'gvisor-kernel[mcp]'",
        ) from error
    finally:
        gc.enable()


@contextmanager
def caught_signals(end: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM call ``end``, instead of ending this process."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def serve_stdio(settings: ServerSettings, wire: Wire) -> None:
    """Serve the client at the other end of ``wire`` until it leaves, or a signal comes.

    :raises GvisorKernelError: the SDK is not installed
    """
    with caught_signals(wire.stop):
        async with open_clients(settings) as clients:
            server = await load("server")
            await server.serve_stdio(clients, wire)


async def serve_http(
    settings: ServerSettings,
    listener: socket.socket,
    token: str,
    hosts: tuple[str, ...],
    announce: Callable[[], None],
) -> None:
    """Serve clients over Streamable HTTP until a signal comes.

    ``listener`` is bound. ``hosts``: the names and ports by which clients may call this server.
    ``announce`` is called when requests are answered.

    :raises GvisorKernelError: the SDK is not installed
    """
    stop = asyncio.Event()
    with caught_signals(stop.set):
        async with open_clients(settings) as clients:
            server, http = await load("server"), await load("http")
            app = http.make_app(server.make_server(clients), clients, token, hosts)
            announce()
            await http.serve(app, listener, stop, settings.limits)
