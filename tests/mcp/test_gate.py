"""The gate of HTTP, without a socket: who is let through, and when a client has left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from gvisor_kernel.mcp.clients import Clients
from gvisor_kernel.mcp.http import MAX_BODIES, PATH, SMALL, Gate
from gvisor_kernel.mcp.limits import Limits, ServerSettings
from gvisor_kernel.mcp.sessions import Sandboxes

pytestmark = pytest.mark.once

TOKEN = "t" * 43
HOST = "127.0.0.1:8765"
RIGHT = {"host": HOST, "authorization": f"Bearer {TOKEN}"}


def make_clients(**limits: Any) -> Clients:
    return Clients(Sandboxes(ServerSettings(limits=Limits(**limits))))


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask(
    headers: dict[str, str] | list[tuple[str, str]],
    path: str = PATH,
    method: str = "POST",
    clients: Clients | None = None,
    status: int = 200,
) -> int:
    """Return the status with which a request is answered; 299 if it was let through."""
    statuses: list[int] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    pairs = headers.items() if isinstance(headers, dict) else headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
    }
    gate = Gate(application, clients or make_clients(), TOKEN, (HOST, "localhost:8765"))
    await gate(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (RIGHT, 200),
        ({**RIGHT, "authorization": f"bearer  {TOKEN}"}, 200),
        ({**RIGHT, "host": "LOCALHOST:8765"}, 200),
        ({**RIGHT, "origin": f"http://{HOST}"}, 200),
        ({"host": HOST}, 401),
        ({**RIGHT, "authorization": TOKEN}, 401),
        ({**RIGHT, "authorization": f"Basic {TOKEN}"}, 401),
        ({**RIGHT, "authorization": "Bearer "}, 401),
        ({**RIGHT, "authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({**RIGHT, "authorization": f"Bearer {TOKEN}t"}, 401),
        ({**RIGHT, "authorization": "Bearer \xe9"}, 401),
        ([*RIGHT.items(), ("authorization", f"Bearer {TOKEN}")], 401),
        ({**RIGHT, "origin": "http://evil.example"}, 403),
        ({**RIGHT, "origin": f"http://{HOST}.evil.example"}, 403),
        ({**RIGHT, "origin": "null"}, 403),
        ({**RIGHT, "host": "evil.example"}, 421),
        ({"authorization": f"Bearer {TOKEN}"}, 421),
        ([*RIGHT.items(), ("host", "evil.example")], 421),
    ],
)
def test_only_requests_with_the_token_for_this_host_pass(headers: Any, status: int) -> None:
    assert asyncio.run(ask(headers)) == status


@pytest.mark.parametrize("path", ["/", "/mcp/", "/mcp/../mcp", "/MCP", "/../../etc/passwd"])
def test_other_paths_are_not_there(path: str) -> None:
    assert asyncio.run(ask(RIGHT, path)) == 404
    assert asyncio.run(ask({"host": HOST}, path)) == 401


def test_a_client_that_deletes_its_session_has_left() -> None:
    async def scenario() -> None:
        clients = make_clients()
        client = clients.get("id")
        headers = {**RIGHT, "mcp-session-id": "id"}
        await ask(headers, method="DELETE", clients=clients, status=404)
        assert clients.get("id") is client
        await ask(headers, method="DELETE", clients=clients)
        assert clients.get("id") is not client
        await clients.close()

    asyncio.run(scenario())


def test_a_client_that_closes_its_stream_leaves_after_a_while() -> None:
    async def scenario() -> None:
        clients = make_clients(left_seconds=0.1)
        headers = {**RIGHT, "mcp-session-id": "id"}
        await ask(headers, method="GET", clients=clients, status=404)
        assert not clients._clients
        await ask(headers, method="GET", clients=clients)
        client = clients.get("id")
        assert client.left is not None
        clients.start()
        while clients._clients:
            await asyncio.sleep(0.01)
        await clients.close()

    asyncio.run(scenario())


def test_bodies_that_are_too_much_together_are_refused() -> None:
    """Each request of this application waits for its body, and then for ``go``."""

    async def scenario() -> None:
        go = asyncio.Event()

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            message: Message = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        gate = Gate(application, make_clients(), TOKEN, (HOST,))

        async def post(size: int) -> int:
            parts = [bytes(size // 2), bytes(size // 2)]
            statuses: list[int] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            headers = [(name.encode(), value.encode()) for name, value in RIGHT.items()]
            scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers}
            await gate(scope, receive, send)
            return statuses.pop()

        large = [asyncio.ensure_future(post(MAX_BODIES // 4)) for _ in range(4)]
        while gate._held < MAX_BODIES:
            await asyncio.sleep(0)
        small = asyncio.ensure_future(post(SMALL))
        refused = asyncio.ensure_future(post(MAX_BODIES // 4))
        await asyncio.sleep(0)
        go.set()
        assert await refused == 503
        assert await small == 200
        assert await asyncio.gather(*large) == [200] * 4
        assert gate._held == 0
        assert await post(MAX_BODIES // 4) == 200

    asyncio.run(scenario())
