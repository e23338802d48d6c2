"""Connections of HTTP that send nothing, or not all, and the protocol's sessions that do nothing.

The server runs in the test's own event loop, without a sandbox.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gvisor_kernel.mcp import http
from gvisor_kernel.mcp.clients import Clients
from gvisor_kernel.mcp.http import PATH, Gate, make_gate, serve
from gvisor_kernel.mcp.limits import ServerSettings
from gvisor_kernel.mcp.server import McpServer
from gvisor_kernel.mcp.sessions import Sandboxes

from ..patience import scale_seconds
from .test_hostile import INITIALIZE

pytestmark = pytest.mark.once

TOKEN = "t" * 43
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Server:
    port: int
    gate: Gate
    clients: Clients

    @property
    def headers(self) -> dict[str, str]:
        return {**ACCEPT, "Authorization": f"Bearer {TOKEN}"}

    @asynccontextmanager
    async def connect(self, data: bytes = b"") -> AsyncIterator[Stream]:
        """A connection that has sent ``data``."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            yield reader, writer
        finally:
            writer.close()

    def make_head(self, size: int = 0) -> bytes:
        """The head of a request that is let through, for a body of ``size``."""
        lines = [f"POST {PATH} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, f"Content-Length: {size}", "\r\n"]).encode()

    async def ask(self, stream: Stream) -> bytes:
        """Send a request by a connection, and return the first line of the answer."""
        reader, writer = stream
        writer.write(self.make_head())
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        return head.split(b"\r\n")[0]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of most tests: it reads a body, and answers without one."""
    if scope["type"] == "lifespan":
        for name in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{name}.complete"})
        return
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def running(app: ASGIApp | None = answer) -> AsyncIterator[Server]:
    """A server of an application, or of the protocol if it is None."""
    clients = Clients(Sandboxes(ServerSettings()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hosts = (f"127.0.0.1:{port}",)
        if app is None:
            gate = make_gate(McpServer(clients), clients, TOKEN, hosts)
        else:
            gate = Gate(app, clients, TOKEN, hosts)
        stop = asyncio.Event()
        serving = asyncio.ensure_future(serve(gate, listener, stop))
        try:
            async with asyncio.timeout(scale_seconds(60)):
                yield Server(port, gate, clients)
        finally:
            stop.set()
            await serving
            await clients.close()


async def is_closed(stream: Stream) -> bool:
    """Wait until the server has closed a connection, without a word."""
    try:
        return await stream[0].read() == b""
    except ConnectionError:
        return True


def test_a_connection_that_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)

    async def scenario() -> None:
        async with running() as server, server.connect() as stream:
            assert await is_closed(stream)

    asyncio.run(scenario())


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither as the first one of a connection, nor as a later one."""
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.2)

    async def scenario(server: Server, is_first: bool) -> None:
        async with server.connect() as stream:
            if not is_first:
                assert await server.ask(stream) == b"HTTP/1.1 200 OK"
            closed = asyncio.ensure_future(is_closed(stream))
            stream[1].write(b"POST /mcp HTTP/1.1\r\nX: ")
            while not closed.done():
                stream[1].write(b"x")
                await asyncio.wait({closed}, timeout=0.01)
            assert closed.result()

    async def both() -> None:
        async with running() as server:
            await scenario(server, is_first=True)
            await scenario(server, is_first=False)

    asyncio.run(both())


def test_a_body_that_does_not_go_on_is_given_up_quietly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with the application of the SDK, which would log a failure."""
    monkeypatch.setattr(http, "BODY_SECONDS", 0.05)

    async def scenario() -> None:
        async with running(None) as server:
            async with server.connect(server.make_head(1000) + b"{") as stream:
                assert await is_closed(stream)
            while server.gate._count:
                await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert not caplog.records


def test_a_client_that_leaves_in_a_body_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(None) as server:
            async with server.connect(server.make_head(1000) + b"{"):
                while not server.gate._held:
                    await asyncio.sleep(0)
            while server.gate._count:
                await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert not caplog.records


def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(http, "BODY_SECONDS", 0.1)
    go = asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await go.wait()
        await answer(scope, receive, send)

    async def scenario() -> None:
        async with running(late) as server, server.connect() as stream:
            asked = asyncio.ensure_future(server.ask(stream))
            while not server.gate._count:
                await asyncio.sleep(0)
            async with server.connect() as silent:
                assert await is_closed(silent)  # so the time is over
            go.set()
            assert await asked == b"HTTP/1.1 200 OK"

    asyncio.run(scenario())


def test_connections_that_send_nothing_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of them make room; a connection that was used stays."""
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(http, "HEAD_SECONDS", 1000)
    monkeypatch.setattr(http, "KEEP_SECONDS", 1000)

    async def scenario() -> None:
        async with running() as server, AsyncExitStack() as stack:
            used = await stack.enter_async_context(server.connect())
            assert await server.ask(used) == b"HTTP/1.1 200 OK"
            silent = [await stack.enter_async_context(server.connect()) for _ in range(30)]
            for stream in silent[:20]:
                assert await is_closed(stream)
            for _ in range(3):
                async with server.connect() as stream:
                    assert await server.ask(stream) == b"HTTP/1.1 200 OK"
            assert await server.ask(used) == b"HTTP/1.1 200 OK"
            assert await server.ask(silent[-1]) == b"HTTP/1.1 200 OK"

    asyncio.run(scenario())


def test_requests_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REQUESTS", 2)

    async def scenario() -> None:
        async with running() as server, AsyncExitStack() as stack:
            half = server.make_head(1000)
            open_ones = [await stack.enter_async_context(server.connect(half)) for _ in range(2)]
            while server.gate._count < 2:
                await asyncio.sleep(0)
            async with server.connect() as stream:
                assert b" 503 " in await server.ask(stream)
            open_ones[0][1].write(b"x" * 1000)
            assert b" 200 " in await open_ones[0][0].readuntil(b"\r\n")
            while server.gate._count == 2:
                await asyncio.sleep(0)
            async with server.connect() as stream:
                assert await server.ask(stream) == b"HTTP/1.1 200 OK"

    asyncio.run(scenario())


def test_sessions_of_the_protocol_that_do_nothing_give_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one that works, and one that somebody listens to only after others."""
    monkeypatch.setattr(http, "MAX_CLIENTS", 4)

    async def scenario() -> None:
        async with running(None) as server, httpx2.AsyncClient(headers=server.headers) as client:
            url = f"http://127.0.0.1:{server.port}{PATH}"

            async def begin() -> str:
                done = await client.post(url, json=INITIALIZE)
                assert done.status_code == 200
                return str(done.headers["mcp-session-id"])

            async def ping(key: str) -> int:
                request: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
                done = await client.post(url, json=request, headers={"Mcp-Session-Id": key})
                return done.status_code

            working, listening = await begin(), await begin()
            server.clients.get(working).calls = 1
            server.clients.get(listening).streams = 1
            used, unused = await begin(), await begin()
            assert await ping(used) == 200
            new = await begin()
            while server.gate._ending:
                await asyncio.sleep(0)
            assert await ping(unused) == 404
            assert [await ping(key) for key in (working, listening, used, new)] == [200] * 4
            flood = [await begin() for _ in range(30)]
            while server.gate._ending:
                await asyncio.sleep(0)
            assert [await ping(key) for key in (working, listening, used)] == [200, 200, 404]
            assert await ping(flood[-1]) == 200
            assert len(server.gate._opened) == 4
            server.clients.get(working).calls = 0

    asyncio.run(scenario())
