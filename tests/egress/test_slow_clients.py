"""Clients that send or read slowly, and names that change: with time limits of a fraction of a
second, in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpcore
import pytest

from gvisor_kernel.egress import http, upstream
from gvisor_kernel.egress.http import TIMES, Reply, Request, Times
from gvisor_kernel.egress.refusals import UpstreamFailed
from gvisor_kernel.egress.streams import ByteStream, StreamLink
from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import Finished, Received, Reset, Streams

from ..patience import scale_seconds
from .upstream import Fake

HEAD = b"POST /x/y HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n"


class Inside:
    """The sandbox's end, in the same loop as the link that serves it."""

    def __init__(
        self, handle: Callable[[Request, Reply], Awaitable[None]], times: Times = TIMES
    ) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sock, self.streams = ours, Streams(Role.GUEST)
        self.received, self.end = b"", ""
        self.reads = True

        async def serve(stream: ByteStream) -> None:
            await http.serve(stream, handle, times)

        self.link = StreamLink(theirs, serve, lambda reason: None)

    async def flush(self) -> None:
        loop = asyncio.get_running_loop()
        while data := self.streams.data_to_send():
            await loop.sock_sendall(self.sock, data)

    async def wait(self) -> bytes:
        """Read until the stream's end."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(scale_seconds(10)):
            while not self.end:
                data = await loop.sock_recv(self.sock, 65536)
                assert data
                for event in self.streams.receive_data(data):
                    if isinstance(event, Received):
                        self.received += event.data
                        if self.reads:
                            self.streams.consumed(event.stream, len(event.data))
                    elif isinstance(event, Finished | Reset):
                        self.end = type(event).__name__
                await self.flush()
        return self.received

    def close(self) -> None:
        self.link.end("")
        self.sock.close()


async def drain(request: Request, reply: Reply) -> None:
    async for _ in request.body:
        pass
    await reply.start(200, [(b"Content-Length", b"0")])
    await reply.end()


async def endless(request: Request, reply: Reply) -> None:
    await reply.start(200, [])
    while True:
        await reply.body(bytes(65536))


def run(
    handle: Any,
    *pieces: bytes,
    pause: float = 0.05,
    reads: bool = True,
    times: Times = TIMES,
) -> Inside:
    """Send pieces on one stream, with pauses, and wait for its end."""

    async def work() -> Inside:
        inside = Inside(handle, times)
        inside.reads = reads
        number = inside.streams.open()
        await inside.flush()
        waiting = asyncio.ensure_future(inside.wait())
        for piece in pieces:
            inside.streams.send(number, piece)
            await inside.flush()
            await asyncio.sleep(pause)
            if waiting.done():
                break
        await waiting
        inside.close()
        return inside

    return asyncio.run(work())


def test_a_head_that_comes_a_byte_at_a_time_is_given_up() -> None:
    inside = run(drain, *(bytes([byte]) for byte in HEAD), times=Times(head=0.3))
    assert inside.received.startswith(b"HTTP/1.1 408 ")


def test_a_connection_without_a_request_is_closed() -> None:
    inside = run(drain, times=Times(idle=0.2, drain=0.2))
    assert (inside.received, inside.end) == (b"", "Finished")


def test_a_body_of_which_nothing_comes_is_given_up() -> None:
    inside = run(drain, HEAD + b"Content-Length: 5\r\n\r\nab", times=Times(body=0.2))
    assert inside.received.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_reads_nothing_is_given_up() -> None:
    ask = HEAD + b"Content-Length: 0\r\n\r\n"
    inside = run(endless, ask, reads=False, times=Times(read=0.2))
    assert inside.end == "Reset"
    assert len(inside.received) <= 128 * 1024


def test_a_body_that_ends_too_early_is_refused() -> None:
    async def work() -> bytes:
        inside = Inside(drain)
        number = inside.streams.open()
        inside.streams.send(number, HEAD + b"Content-Length: 5\r\n\r\nab")
        inside.streams.finish(number)
        await inside.flush()
        received = await inside.wait()
        inside.close()
        return received

    assert asyncio.run(work()).startswith(b"HTTP/1.1 400 ")


def test_a_body_in_chunks_of_one_byte_lets_others_run() -> None:
    """However many of its chunks are there at once."""
    chunks, turns = 5000, 0

    async def read(request: Request, reply: Reply) -> None:
        reading = asyncio.ensure_future(drain(request, reply))
        nonlocal turns
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1

    body = b"1\r\na\r\n" * chunks + b"0\r\n\r\n"
    end = b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert run(read, HEAD + end + body, pause=0).received.startswith(b"HTTP/1.1 200 ")
    assert turns > chunks / http.EVENTS_IN_A_TURN


def test_a_head_that_never_ends_is_refused() -> None:
    inside = run(drain, HEAD + b"X: " + b"x" * 66_000, pause=0)
    assert inside.received.startswith(b"HTTP/1.1 431 ")


# -- names -----------------------------------------------------------------------------------------


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_judged(
    tls: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer, which would lead elsewhere, is never asked for."""
    asked: list[str] = []

    async def once(host: str, port: int) -> list[str]:
        asked.append(host)
        assert len(asked) == 1
        return ["127.0.0.1"]

    async def work() -> bytes:
        def forbid(*_: object, **__: object) -> None:
            raise AssertionError("a second resolution")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", forbid)
        client = upstream.Upstream(once)
        url = httpcore.URL(scheme="https", host="localhost", port=tls.port, target=b"/x")
        async with client.send("GET", url, [(b"Host", b"localhost")], None) as response:
            body = await response.aread()
        await client.close()
        return body

    upstream.tls_context.cache_clear()
    assert b'"path": "/x"' in asyncio.run(work())
    assert asked == ["localhost"]


def test_a_certificate_for_another_name_is_refused(tls: Fake) -> None:
    async def there(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def work() -> None:
        client = upstream.Upstream(there)
        url = httpcore.URL(scheme="https", host="api.example", port=tls.port, target=b"/x")
        async with client.send("GET", url, [(b"Host", b"api.example")], None):
            pass

    upstream.tls_context.cache_clear()
    with pytest.raises(UpstreamFailed, match="no valid certificate"):
        asyncio.run(work())
