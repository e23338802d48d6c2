"""HTTP: who is let in, and connections, bodies and sessions of the protocol without an end.

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

from gvisor_kernel.mcp.http import PATH, SMALL, Watch, guard, make_app, serve
from gvisor_kernel.mcp.server import make_server
from gvisor_kernel.mcp.service import Clients
from gvisor_kernel.mcp.sessions import Sandboxes
from gvisor_kernel.mcp.settings import Limits, ServerSettings

from ..patience import scale_seconds
from .test_hostile import INITIALIZE

pytestmark = pytest.mark.once

TOKEN = "t" * 43
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Server:
    port: int
    clients: Clients

    @property
    def headers(self) -> dict[str, str]:
        return {**ACCEPT, "Authorization": f"Bearer {TOKEN}"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

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
async def running(app: ASGIApp | None = answer, **limits: Any) -> AsyncIterator[Server]:
    """A server of an application, or of the protocol if it is None."""
    limited = Limits(**{"late_seconds": 0.01, **limits})  # looks for slow ones all the time
    clients = Clients(Sandboxes(ServerSettings(limits=limited)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hosts = (f"127.0.0.1:{port}",)
        if app is None:
            guarded = make_app(make_server(clients), clients, TOKEN, hosts)
        else:
            guarded = guard(app, clients, TOKEN)
        stop = asyncio.Event()
        serving = asyncio.ensure_future(serve(guarded, listener, stop, limited))
        try:
            async with asyncio.timeout(scale_seconds(60)):
                yield Server(port, clients)
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


def test_only_requests_with_the_token_for_this_host_pass() -> None:
    """What is let through is answered by 406: it does not say what it accepts."""

    async def ask(server: Server, *lines: str, path: str = PATH) -> int:
        head = "\r\n".join([f"POST {path} HTTP/1.1", *lines, "Content-Length: 0", "\r\n"])
        async with server.connect(head.encode("latin-1")) as (reader, _):
            return int((await reader.readline()).split()[1])

    async def scenario() -> None:
        async with running(None) as server:
            host, right = f"127.0.0.1:{server.port}", f"Authorization: Bearer {TOKEN}"
            named, kind = f"Host: {host}", "Content-Type: application/json"
            passed = await ask(server, named, right, kind)
            assert passed not in (200, 401, 403, 421)
            for lines, status in (
                ((named, f"authorization: bearer  {TOKEN}"), passed),
                ((named, right, f"Origin: http://{host}"), passed),
                ((named,), 401),
                ((named, f"Authorization: {TOKEN}"), 401),
                ((named, f"Authorization: Basic {TOKEN}"), 401),
                ((named, "Authorization: Bearer "), 401),
                ((named, f"Authorization: Bearer {TOKEN[:-1]}"), 401),
                ((named, f"Authorization: Bearer {TOKEN}t"), 401),
                ((named, "Authorization: Bearer \xe9"), 401),
                ((named, "Authorization: Bearer x", right), 401),
                ((named, right, "Origin: http://evil.example"), 403),
                ((named, right, f"Origin: http://{host}.evil.example"), 403),
                ((named, right, "Origin: null"), 403),
                (("Host: evil.example", right), 421),
                (("Host: evil.example",), 401),
                ((right,), 400),
                ((named, right, "Host: evil.example"), 400),
            ):
                assert await ask(server, *lines, kind) == status, lines
            for path in ("/", "/mcp/../mcp", "/MCP", "/../../etc/passwd"):
                assert await ask(server, named, right, kind, path=path) == 404

    asyncio.run(scenario())


def test_a_client_that_deletes_its_session_has_left() -> None:
    async def scenario() -> None:
        async with running(None) as server, httpx2.AsyncClient(headers=server.headers) as http:
            key, url = await begin(http, server), server.url
            client = server.clients.get(key)
            other = {"Mcp-Session-Id": "0" * 32}
            assert (await http.delete(url, headers=other)).status_code == 404
            assert server.clients.get(key) is client
            assert (await http.delete(url, headers={"Mcp-Session-Id": key})).status_code == 200
            assert server.clients.get(key) is not client

    asyncio.run(scenario())


def test_a_client_that_closes_its_stream_leaves_after_a_while() -> None:
    async def scenario() -> None:
        async with (
            running(None, left_seconds=0.1) as server,
            httpx2.AsyncClient(headers=server.headers) as http,
        ):
            key = await begin(http, server)
            client = server.clients.get(key)
            async with http.stream("GET", server.url, headers={"Mcp-Session-Id": key}) as stream:
                assert stream.status_code == 200
                assert client.left is None
            sweeping = asyncio.ensure_future(server.clients.sweep())
            while server.clients.get(key) is client:
                await asyncio.sleep(0.01)
            sweeping.cancel()

    asyncio.run(scenario())


async def begin(client: httpx2.AsyncClient, server: Server) -> str:
    """Begin a session of the protocol, and return its id."""
    done = await client.post(server.url, json=INITIALIZE)
    assert done.status_code == 200
    return str(done.headers["mcp-session-id"])


def test_a_connection_that_sends_nothing_is_closed() -> None:
    async def scenario() -> None:
        async with running(head_seconds=0.05) as server, server.connect() as stream:
            assert await is_closed(stream)

    asyncio.run(scenario())


def test_a_head_that_comes_byte_by_byte_is_not_waited_for() -> None:
    """Neither as the first one of a connection, nor as a later one."""

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
        async with running(head_seconds=0.2) as server:
            await scenario(server, is_first=True)
            await scenario(server, is_first=False)

    asyncio.run(both())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_body_that_does_not_go_on_is_given_up_quietly(
    leaves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with the application of the SDK, which would log a failure."""

    async def scenario() -> None:
        async with (
            running(None, body_seconds=1000 if leaves else 0.05) as server,
            server.connect(server.make_head(1000) + b"{") as stream,
        ):
            if leaves:
                stream[1].write_eof()
            assert await is_closed(stream)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert not caplog.records


def test_an_answer_may_take_longer_than_a_head() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            begun.set()
            await go.wait()
        await answer(scope, receive, send)

    async def scenario() -> None:
        async with (
            running(late, head_seconds=0.1, body_seconds=0.1) as server,
            server.connect() as stream,
        ):
            asked = asyncio.ensure_future(server.ask(stream))
            await begun.wait()
            async with server.connect() as silent:
                assert await is_closed(silent)  # so the time is over
            go.set()
            assert await asked == b"HTTP/1.1 200 OK"

    asyncio.run(scenario())


def test_connections_that_send_nothing_keep_nobody_out() -> None:
    """The oldest of them make room; a connection that was used stays."""

    async def scenario() -> None:
        limits = {"connections": 10, "head_seconds": 1000, "keep_seconds": 1000}
        async with running(**limits) as server, AsyncExitStack() as stack:
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


def test_a_stranger_does_not_keep_a_connection() -> None:
    """Neither after an answer, nor by the body of a request that was refused."""

    async def scenario() -> None:
        async with running(keep_seconds=1000) as server:
            head = server.make_head(1000).replace(TOKEN.encode(), b"x")
            async with server.connect(head) as (reader, _):
                assert b" 401 " in await reader.readuntil(b"\r\n")
                await reader.read()

    asyncio.run(scenario())


def test_bodies_that_are_too_much_together_are_refused() -> None:
    """Each request of this application waits for its body, and then for ``go``."""
    large = 2 * SMALL

    async def scenario() -> None:
        go = asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            message: Message = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        watch = Watch(late, Clients(Sandboxes(ServerSettings(limits=Limits(body_bytes=4 * large)))))

        async def post(size: int) -> int:
            parts = [bytes(size // 2), bytes(size // 2)]
            statuses: list[int] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
            await watch(scope, receive, send)
            return statuses.pop()

        held = [asyncio.ensure_future(post(large)) for _ in range(4)]
        while watch.held < 4 * large:
            await asyncio.sleep(0)
        small = asyncio.ensure_future(post(SMALL))
        assert await post(large) == 503
        go.set()
        assert await small == 200
        assert await asyncio.gather(*held) == [200] * 4
        assert watch.held == 0
        assert await post(large) == 200

    asyncio.run(scenario())


def test_sessions_of_the_protocol_are_bounded() -> None:
    """Those that are open go on; when one ends, there is room."""

    async def scenario() -> None:
        async with (
            running(None, protocol_sessions=3) as server,
            httpx2.AsyncClient(headers=server.headers) as client,
        ):
            keys = [await begin(client, server) for _ in range(3)]
            assert (await client.post(server.url, json=INITIALIZE)).status_code == 503
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            named = {"Mcp-Session-Id": keys[0]}
            assert (await client.post(server.url, json=ping, headers=named)).status_code == 200
            assert (await client.delete(server.url, headers=named)).status_code == 200
            await begin(client, server)

    asyncio.run(scenario())
