"""Streamable HTTP: the gate before the SDK's application, and the server that runs it.

The gate lets through nothing without the token, from another Origin, or for another Host; the SDK
never sees such a request. It also notices when a client has left, and ends the protocol's sessions
that are too many. How long a connection may send nothing is decided in ``connections``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gvisor_kernel.mcp.clients import Client, Clients
from gvisor_kernel.mcp.server import SESSION_HEADER, McpServer

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


PATH = "/mcp"
MAX_BODY = 32 * 1024 * 1024
MAX_BODIES = 256 * 1024 * 1024
"""Bytes of bodies that are read and not answered yet, of all clients."""
SMALL = MAX_BODIES // MAX_REQUESTS
"""Bytes of a body that is never too much beside others."""
MAX_CLIENTS = 256
"""Sessions of the protocol. When there are more, one that has no sandbox gives way."""
KEEP_SECONDS = 5
"""How long a connection waits for a further request."""
END_SECONDS = 3


class _Left(Exception):
    """A client has left before the end of its body; the SDK would log that as a failure."""


class Gate:
    """Checks each request before the application gets it."""

    def __init__(self, app: ASGIApp, clients: Clients, token: str, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._clients = clients
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._origins = {
            f"{scheme}://{host}" for host in self._hosts for scheme in ("http", "https")
        }
        self._held = 0
        """Bytes of the bodies of requests that are answered now."""
        self._count = 0
        """Requests that are answered now."""
        self._opened: dict[str, None] = {}
        """Keys of the protocol's sessions, the one that was used last at the end."""
        self._ending: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        refused = self._find_refusal(scope["path"], headers)
        if refused is not None:
            await refuse(send, *refused)
            return
        if self._count >= MAX_REQUESTS:
            await refuse(send, 503, "Too many other requests are not answered yet.")
            return
        key = (headers.get(SESSION_HEADER) or [""])[0]
        self._count += 1
        try:
            await self._pass_on(key, scope, receive, send)
        except _Left:
            pass
        finally:
            self._count -= 1

    def _find_refusal(self, path: str, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        """Return the status and the reason, if the request is refused."""
        if [host.lower() for host in headers.get("host", [])] not in [[h] for h in self._hosts]:
            return 421, "This server is not known by that name."
        for origin in headers.get("origin", []):
            if origin.lower() not in self._origins:
                return 403, "Requests from that origin are refused."
        given = headers.get("authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        is_right = hmac.compare_digest(token.strip().encode(), self._token)
        if scheme.lower() != "bearer" or not is_right:
            return 401, "The token that was shown when the server started is missing or wrong."
        if path != PATH:
            return 404, f"There is nothing at this path; the server is at {PATH}."
        return None

    async def _pass_on(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, if there is room for the body.

        Note the streams of a client, and its end.
        """
        stream: Client | None = None
        is_done = is_refused = is_read = False
        size = 0

        async def count() -> Message:
            nonlocal size, is_refused, is_read
            message = await receive()
            if message["type"] == "http.disconnect" and not is_read:
                raise _Left
            is_read = not message.get("more_body", False)
            length = len(message.get("body", b""))
            size += length
            self._held += length
            if size > SMALL and self._held > MAX_BODIES and not is_refused:
                is_refused = True
                await refuse(send, 503, "Too much of other requests is not answered yet.")
                raise _Left
            return message

        async def watch(message: Message) -> None:
            nonlocal stream, is_done
            if is_refused:
                return
            if message["type"] == "http.response.start":
                self._note_answer(key, message)
            if message["type"] == "http.response.start" and message["status"] < 300 and key:
                is_done = True
                if scope["method"] == "GET":  # the application knows this key, so it is a client's
                    stream = self._clients.get(key)
                    stream.streams += 1
                    stream.left = None
            await send(message)

        try:
            await self._app(scope, count, watch)
        finally:
            self._held -= size
            if stream is not None:
                stream.streams -= 1
                if not stream.streams:
                    stream.left = time.monotonic()
            if scope["method"] == "DELETE" and is_done:
                self._opened.pop(key, None)
                self._clients.leave(key)

    def _note_answer(self, key: str, message: Message) -> None:
        """Note which session of the protocol was opened, used, or has ended.

        ``key``: of the request, "" if it has none. ``message``: the start of the answer.
        """
        if message["status"] < 300:
            headers = dict(message.get("headers", ()))
            opened = headers.get(SESSION_HEADER.encode(), b"").decode("latin-1")
            if not key and opened:
                self._opened[opened] = None
                if len(self._opened) > MAX_CLIENTS:
                    self._make_room()
            elif key in self._opened:
                del self._opened[key]
                self._opened[key] = None
        elif message["status"] == 404 and key in self._opened:  # the SDK has ended it
            del self._opened[key]
            self._clients.leave(key)

    def _make_room(self) -> None:
        """End one session of the protocol: of those without a sandbox, one that nobody listens to,
        and that was not used for the longest time. At most ``all_sessions`` have a sandbox."""
        *others, _ = self._opened
        unused = [key for key in others if not self._clients.is_busy(key)]
        if unused:
            key = min(unused, key=self._clients.is_listening)
            del self._opened[key]
            ending = asyncio.ensure_future(self._end(key))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, key: str) -> None:
        """End a session of the protocol, as if its client had said so."""

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            pass

        names = {"host": "", SESSION_HEADER: key}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "DELETE",
            "path": PATH,
            "raw_path": PATH.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in names.items()],
        }
        await self._app(scope, receive, send)
        self._clients.leave(key)


class _Server(uvicorn.Server):
    """Leaves signals alone: who runs it ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer a request with an error, without reading its body."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="gvisor-kernel"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_gate(server: McpServer, clients: Clients, token: str, hosts: tuple[str, ...]) -> Gate:
    """Return the application that answers the requests of HTTP."""
    app = server.server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MAX_BODY,
        max_sessions=MAX_CLIENTS + MAX_REQUESTS,  # the gate ends those beyond MAX_CLIENTS
        session_idle_timeout=clients.settings.limits.idle_seconds,
        host="",  # the gate checks Host and Origin
    )
    return Gate(app, clients, token, hosts)


async def serve(gate: Gate, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set."""
    config = uvicorn.Config(
        gate,
        log_config=None,
        access_log=False,
        server_header=False,
        http=Connection,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
        lifespan="on",
        ws="none",
        proxy_headers=False,
    )
    http = _Server(config)

    async def end() -> None:
        await stop.wait()
        http.should_exit = True

    ending = asyncio.ensure_future(end())
    try:
        await http.serve(sockets=[listener])
    finally:
        ending.cancel()
