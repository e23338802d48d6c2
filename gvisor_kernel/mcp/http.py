"""Streamable HTTP: the SDK's application behind the check of the token, and further bounds.

The SDK bounds the size of one body and the number of the protocol's sessions, and checks Host and
Origin. It and uvicorn wait without an end for a client that sends nothing, accept any number of
connections, and keep any number of bodies at once: ``Connection`` and ``Watch`` bound these.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import h11
import uvicorn
from mcp.server.auth.middleware.bearer_auth import (
    AuthenticatedUser,
    BearerAuthBackend,
    RequireAuthMiddleware,
)
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import (
    StreamableHTTPASGIApp,
    StreamableHTTPSessionManager,
)
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gvisor_kernel.mcp.server import SESSION_HEADER
from gvisor_kernel.mcp.service import Clients
from gvisor_kernel.mcp.settings import Limits

PATH = "/mcp"
MAX_BODY = 32 * 1024 * 1024
"""Bytes of one body. The largest content of a file, 16 Mi characters, fits."""
SMALL = 512 * 1024
"""Bytes of a body that is never too much beside others, so that a flood of large ones does not stop
the calls of others. All connections together have at most 320 MiB of them."""
END_SECONDS = 3
"""How long requests may take to end when the server ends; clients wait no longer for its end."""


class OneToken:
    """Accepts the token of this server, as the SDK asks for it."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what the token allows; None if it is another one."""
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return None
        return AccessToken(token=token, client_id="", scopes=[])


class _Unread(Exception):
    """A body is not read to its end: the client has left, or the bodies are too much."""


class Watch:
    """Notes which clients listen or leave, and bounds the bodies of all requests together."""

    def __init__(self, app: ASGIApp, clients: Clients) -> None:
        self._app = app
        self._clients = clients
        self.held = 0
        """Bytes of the bodies of requests that are answered now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        key = Headers(scope=scope).get(SESSION_HEADER, "")
        size, is_read, is_too_much = 0, False, False

        async def take() -> Message:
            nonlocal size, is_read, is_too_much
            message = await receive()
            if message["type"] == "http.disconnect" and not is_read:
                raise _Unread  # the SDK would log that as a failure
            is_read = not message.get("more_body", False)
            length = len(message.get("body", b""))
            size += length
            self.held += length
            is_too_much = size > SMALL and self.held > self._clients.settings.limits.body_bytes
            if is_too_much:
                raise _Unread
            return message

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300 and key:
                # The SDK knows this key, so it is a client's.
                if scope["method"] == "GET":
                    stack.enter_context(self._clients.get(key).listening())
                elif scope["method"] == "DELETE":
                    self._clients.leave(key)
            await send(message)

        with ExitStack() as stack:
            try:
                await self._app(scope, take, watch)
            except _Unread:
                if is_too_much:
                    answer = PlainTextResponse("Too much of other requests is not answered.", 503)
                    await answer(scope, receive, send)
            finally:
                self.held -= size


class Connection(H11Protocol):
    """One connection, which gives way if it only waits. uvicorn calls its methods."""

    since = 0.0
    """When it began, had its last answer, or brought a part of a body."""

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the connection that has waited longest for a request, if there are too many.

        uvicorn's own bound would refuse the new one: connections that send nothing would close the
        server to all. The first that go have never sent a request with the token.
        """
        super().connection_made(transport)
        self.since = time.monotonic()
        others = [other for other in self.connections if isinstance(other, Connection)]
        open_ones = [other for other in others if not other.transport.is_closing()]
        if len(open_ones) > self._limits.connections:
            idle = [other for other in open_ones if other.conn.their_state is h11.IDLE]
            min(idle, key=lambda other: (other.is_known, other.since)).transport.abort()

    @property
    def is_known(self) -> bool:
        """Return whether its last request had the token."""
        return self.cycle is not None and isinstance(self.scope.get("user"), AuthenticatedUser)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY:
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        """End the connection of a stranger, or in the middle of a body that nobody wants."""
        self.since = time.monotonic()
        if not self.is_known or self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        super().on_response_complete()

    def is_late(self) -> bool:
        """Return whether the client takes too long for a head, or the next part of a body."""
        waited = time.monotonic() - self.since
        if self.conn.their_state is h11.SEND_BODY:
            return (
                waited > self._limits.body_seconds and not self.flow.read_paused
            )  # then it waits for us
        return self.conn.their_state is h11.IDLE and waited > self._limits.head_seconds


class _Server(uvicorn.Server):
    """Leaves signals alone: who runs it ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_app(
    server: Server[Any], clients: Clients, token: str, hosts: tuple[str, ...]
) -> Starlette:
    """Return the application that answers the requests of HTTP."""
    limits = clients.settings.limits
    names = list({*hosts, *map(str.lower, hosts)})  # clients write them in lower case
    manager = StreamableHTTPSessionManager(
        server,
        security_settings=TransportSecuritySettings(
            allowed_hosts=names,
            allowed_origins=[f"http://{name}" for name in names]
            + [f"https://{name}" for name in names],
        ),
        session_idle_timeout=limits.idle_seconds,
        max_request_body_size=MAX_BODY,
        max_sessions=limits.protocol_sessions,
    )
    return guard(StreamableHTTPASGIApp(manager), clients, token, lambda _: manager.run())


def guard(app: ASGIApp, clients: Clients, token: str, lifespan: Any = None) -> Starlette:
    """Return an application that passes on what has the token."""
    checked = RequireAuthMiddleware(Watch(app, clients), [])
    backend = BearerAuthBackend(OneToken(token))
    return Starlette(
        routes=[Route(PATH, checked)],
        middleware=[Middleware(AuthenticationMiddleware, backend=backend)],
        lifespan=lifespan,
    )


async def serve(app: ASGIApp, listener: socket.socket, stop: asyncio.Event, limits: Limits) -> None:
    """Serve until ``stop`` is set."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=cast(Any, partial(Connection, limits)),
        timeout_keep_alive=limits.keep_seconds,
        timeout_graceful_shutdown=END_SECONDS,
        lifespan="on",
        ws="none",
        proxy_headers=False,
    )
    http = _Server(config)

    async def watch() -> None:
        while not stop.is_set():
            for connection in tuple(http.server_state.connections):
                if isinstance(connection, Connection) and connection.is_late():
                    connection.transport.abort()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), limits.late_seconds)  # no timeout: late_seconds
        http.should_exit = True

    watching = asyncio.ensure_future(watch())
    try:
        await http.serve(sockets=[listener])
    finally:
        watching.cancel()
