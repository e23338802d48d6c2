"""A server over HTTP and the SDK's clients: who gets in, whose sessions are whose, and ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from ..patience import scale_seconds
from ..sweeps import needs_all
from .servers import HttpServer, call, fail, http_server, http_session

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with http_server("--sessions", "1", "--all-sessions", "2") as server:
        yield server


def test_clients_do_not_see_each_others_sessions(server: HttpServer) -> None:
    async def scenario() -> None:
        async with http_session(server) as one, http_session(server) as two:
            await call(one, "run_code", code="secret = 1")
            assert not (await call(two, "list_sessions"))["sessions"]
            assert "NameError" in await fail(two, "run_code", code="secret")
            assert "which is the limit" in await fail(two, "start_session", session="b")
            assert (await call(one, "run_code", code="secret"))["result"] == "1"

    asyncio.run(scenario())


def test_the_sandboxes_of_a_client_that_has_left_make_room(server: HttpServer) -> None:
    async def scenario() -> None:
        for _ in range(3):  # one more than the server may have
            async with http_session(server) as session:
                arguments = {"code": "1 + 1"}
                while (await session.call_tool("sandbox_run_code", arguments)).is_error:
                    await asyncio.sleep(0.05)  # an earlier one is about to end

    asyncio.run(scenario())


def test_a_client_without_a_connection_gets_sessions_that_nobody_can_guess(
    server: HttpServer,
) -> None:
    async def scenario() -> None:
        async with (
            httpx2.AsyncClient(headers=server.headers, timeout=scale_seconds(60)) as http,
            Client(streamable_http_client(server.url, http_client=http)) as client,
        ):
            result: Any = await client.call_tool("sandbox_run_code", {"code": "x = 1"})
            name = result.structured_content["session"]
            assert f'pass session="{name}"' in result.content[0].text
            described = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert "WITHOUT session" in str(described["sandbox_run_code"].description)
            result = await client.call_tool("sandbox_write_file", {"path": "x", "content": "x"})
            assert "names no session" in result.content[0].text
            file = {"path": "x", "content": "x", "session": name}
            result = await client.call_tool("sandbox_write_file", file)
            assert f'pass session="{name}"' in result.content[0].text
            result = await client.call_tool(
                "sandbox_move_to_outputs", {"path": "x", "session": name}
            )
            assert "starts this server with --outputs" in result.content[0].text
            assert len(name) == len("python-") + 16
            again = {"code": "x", "session": name}
            result = await client.call_tool("sandbox_run_code", again)
            assert result.structured_content["result"] == "1"
            result = await client.call_tool("sandbox_list_sessions", {})
            assert result.is_error
            listed = await client.list_resources()
            assert not [item for item in listed.resources if item.uri.startswith("sandbox://")]
            await client.call_tool("sandbox_stop_session", {"session": name})

    asyncio.run(scenario())


def test_wrong_tokens_origins_and_sizes_are_refused(server: HttpServer) -> None:
    async def scenario() -> None:
        # The server may close a connection that waits for another request.
        once = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=scale_seconds(60), limits=once) as http:

            async def post(**headers: str) -> int:
                answer = await http.post(server.url, json=PING, headers={**ACCEPT, **headers})
                assert server.token not in answer.text
                return answer.status_code

            right = server.headers
            guesses = [post(Authorization=f"Bearer {number:043}") for number in range(200)]
            assert set(await asyncio.gather(*guesses)) == {401}
            assert await post() == 401
            assert await post(**right, Origin="http://evil.example") == 403
            assert await post(**right, Host="evil.example") == 421
            assert await post(**right, **{"Mcp-Session-Id": "0" * 32}) == 404
            assert await post(**right) == 400  # the first request must be another one

    asyncio.run(scenario())


def test_two_gigabytes_are_refused_before_they_are_read(server: HttpServer) -> None:
    address = urlsplit(server.url)
    head = f"POST /mcp HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {2 << 30}\r\n"
    head += f"Authorization: Bearer {server.token}\r\nContent-Type: application/json\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(100)


@needs_all
def test_twenty_clients_at_once() -> None:
    async def scenario(server: HttpServer) -> None:
        async def one(number: int) -> None:
            async with http_session(server) as session:
                for _ in range(3):
                    run = await call(session, "run_code", code=f"{number} + 1")
                    assert run["result"] == str(number + 1)

        await asyncio.gather(*map(one, range(20)))

    with http_server("--memory", "256M") as server:
        asyncio.run(scenario(server))
