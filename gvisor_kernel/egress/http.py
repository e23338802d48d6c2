"""HTTP/1.1 on a sandbox's stream: reads requests with h11, and writes what a handler answers.

``heads`` has checked a head before h11 sees it. Each request has an h11 connection of its own, so
that nothing of one request can become part of the next. What a request is allowed to do is decided
in ``gate``; nothing here knows a route.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import h11

from gvisor_kernel.egress.heads import END, MAX_HEAD, Form, Head, check_length, parse_head
from gvisor_kernel.egress.refusals import BadRequest, Refusal
from gvisor_kernel.egress.streams import ByteStream, StreamReset

DRAIN_BYTES = 16 * 1024 * 1024
"""How much of a body is read after an early answer; see ``Times.drain``."""


@dataclass(frozen=True)
class Times:
    """Seconds that a client may take.

    ``head``: from the first byte of a head to its last; one that sends slower only occupies a
    stream. ``idle``: how long a connection without a request is kept, and the first request is
    waited for. ``body``: how long it may send nothing in the middle of a body. ``read``: how long
    it may read nothing of an answer; it may be a program stopped in a debugger. ``drain``: how long
    a body is read after an early answer; without that the client, which is still sending, would
    see a reset instead of the answer.
    """

    head: float = 15.0
    idle: float = 75.0
    body: float = 60.0
    read: float = 120.0
    drain: float = 5.0


TIMES = Times()
EVENTS_IN_A_TURN = 16
"""Parts of a body after which other streams have their turn: a body may come in chunks of one byte,
of which tens of thousands are there at once."""


@dataclass(frozen=True)
class Request:
    """A request of a sandbox. ``body`` can be iterated over once; it may raise BadRequest."""

    head: Head
    body: AsyncIterator[bytes]
    stream: ByteStream
    """For a CONNECT, after ``Reply.switch``."""
    announce: Callable[[], None] = lambda: None
    """Called before anything of the request is sent to a server; may raise a Refusal."""

    @property
    def has_body(self) -> bool:
        """Return whether there is a body, which may be empty."""
        return self.head.chunked or bool(self.head.length)


Handler = Callable[["Request", "Reply"], Awaitable[None]]


class Reply:
    """Writes the answer to one request."""

    def __init__(
        self, stream: ByteStream, connection: h11.Connection, times: Times = TIMES
    ) -> None:
        self._stream = stream
        self.times = times
        self._connection = connection
        self.status = 0
        """0 until ``start``."""
        self.is_tunnel = False
        self.is_whole = False
        """Whether the answer was sent to its end."""
        self.on_body: Callable[[int], Awaitable[None]] | None = None
        """Called with the size of each part of a body before it is sent; it may raise a Refusal."""

    async def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], reason: str = ""
    ) -> None:
        """Send the head. Without Content-Length the body's end is marked by chunks.

        An answer that comes before the end of its request ends the connection, and says so: a
        client would else send its next request into a connection that is being closed.

        :raises h11.LocalProtocolError: this cannot be the head of an answer; nothing was sent
        """
        pairs = list(headers)
        if self._connection.their_state is h11.SEND_BODY:
            pairs = [pair for pair in pairs if pair[0].lower() != b"connection"]
            pairs.append((b"Connection", b"close"))
        response = h11.Response(
            status_code=status, headers=pairs, reason=reason.encode("ascii", "replace")
        )
        self.status = status
        await self._send(response)

    async def body(self, data: bytes) -> None:
        """Send a part of the body; wait until the sandbox has room for it."""
        if not data:
            return
        if self.on_body is not None:
            await self.on_body(len(data))
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """End the answer.

        :raises h11.LocalProtocolError: it is not as long as its Content-Length says
        """
        await self._send(h11.EndOfMessage())
        self.is_whole = True

    async def switch(self) -> None:
        """Answer a CONNECT with 200. From now on the stream carries the tunnel's bytes."""
        self.status = 200
        self.is_tunnel = True
        await self._send(h11.Response(status_code=200, headers=[], reason=b"Connected"))
        self._stream.take_back(self._connection.trailing_data[0])

    async def send_continue(self) -> None:
        """Let a client send its body that waits for 100 Continue."""
        if not self.status:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))

    async def refuse(self, refusal: Refusal, *, is_head: bool = False) -> None:
        """Answer with a status and a text, and end the connection after it."""
        text = refusal.text.encode() + b"\n"
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(text)),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Connection", b"close"),
        ]
        if refusal.retry_after:
            headers.append((b"Retry-After", b"%d" % refusal.retry_after))
        await self.start(refusal.status, headers, refusal.reason)
        if not is_head:
            await self._send(h11.Data(data=text))
        await self.end()

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            try:
                async with asyncio.timeout(self.times.read) as timer:
                    await self._stream.write(data)
            except TimeoutError:
                if timer.expired():
                    self._stream.reset()
                    raise StreamReset from None
                raise


async def serve(stream: ByteStream, handle: Handler, times: Times = TIMES) -> None:
    """Serve the requests on ``stream`` one after another, until it is to be closed.

    ``handle`` answers with a Reply, or raises a Refusal. What else it raises resets the stream.

    :raises StreamReset: the client has gone
    """
    rest = b""
    with suppress(TimeoutError):
        while True:
            raw, rest = await _read_head(stream, rest, times)
            if not raw:
                break
            again, rest = await _serve_one(stream, handle, raw, rest, times)
            if not again:
                break
    stream.finish()
    await _drain(stream, times.drain)


async def _read_head(stream: ByteStream, rest: bytes, times: Times) -> tuple[bytes, bytes]:
    """Return the bytes of a head, and those after it. No head at the end of the stream."""
    received = bytearray(rest)
    searched = 0
    if not received:
        async with asyncio.timeout(times.idle):
            received += await stream.read()
    try:
        async with asyncio.timeout(times.head):
            while (at := received.find(END, searched)) < 0:
                check_length(received)
                searched = max(0, len(received) - len(END) + 1)
                data = await stream.read()
                if not data:
                    if received:
                        raise BadRequest("The connection ended inside the head of a request")
                    return b"", b""
                received += data
    except BadRequest as error:
        await _refuse_unread(stream, error)
        return b"", b""
    except TimeoutError:
        await _refuse_unread(
            stream, BadRequest(f"The head was not complete within {times.head:g} s", 408)
        )
        return b"", b""
    at += len(END)
    return bytes(received[:at]), bytes(received[at:])


async def _refuse_unread(stream: ByteStream, error: BadRequest) -> None:
    """Answer a request whose head cannot be read."""
    connection = h11.Connection(h11.SERVER)
    await Reply(stream, connection).refuse(error)


async def _serve_one(
    stream: ByteStream, handle: Handler, raw: bytes, rest: bytes, times: Times
) -> tuple[bool, bytes]:
    """Serve one request. Return whether another may follow, and the bytes after this one."""
    try:
        head = parse_head(raw)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        connection.receive_data(raw)
        event = connection.next_event()
        if not isinstance(event, h11.Request):
            raise BadRequest("The head of the request is malformed")
    except (BadRequest, h11.RemoteProtocolError) as error:
        if not isinstance(error, BadRequest):
            error = BadRequest("The head of the request is malformed")
        await _refuse_unread(stream, error)
        return False, b""
    if rest:
        connection.receive_data(rest)
    reply = Reply(stream, connection, times)
    request = Request(head, _read_body(stream, connection, reply), stream)
    try:
        if not request.has_body:
            async for _ in request.body:  # until h11 has read the end of the request
                pass
        await handle(request, reply)
    except Refusal as refusal:
        if reply.status or reply.is_tunnel:
            stream.reset()
            return False, b""
        await reply.refuse(refusal, is_head=head.method == "HEAD")
        return False, b""
    if reply.is_tunnel:
        return False, b""
    if connection.their_state is not h11.DONE or connection.our_state is not h11.DONE:
        return False, b""
    return True, connection.trailing_data[0]


async def _read_body(
    stream: ByteStream, connection: h11.Connection, reply: Reply
) -> AsyncIterator[bytes]:
    """Return the body in parts as they came, but those that came together as one."""
    parts: list[bytes] = []
    events = 0
    try:
        while True:  # no timeout: bounded by ``Times.body`` a read
            event = connection.next_event()
            events += 1
            if events % EVENTS_IN_A_TURN == 0:
                await asyncio.sleep(0)
            if isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                continue
            if parts:
                yield b"".join(parts)
                parts.clear()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    await reply.send_continue()
                async with asyncio.timeout(reply.times.body):
                    connection.receive_data(await stream.read())
            else:
                return
    except h11.RemoteProtocolError:
        raise BadRequest("The body of the request is malformed, or ended too early") from None
    except TimeoutError:
        raise BadRequest(f"No byte of the body came for {reply.times.body:g} s", 408) from None


async def _drain(stream: ByteStream, seconds: float) -> None:
    """Read what the client still sends, so that it can read its answer."""
    size = 0
    with suppress(TimeoutError, StreamReset):
        async with asyncio.timeout(seconds):
            while size < DRAIN_BYTES and (data := await stream.read()):
                size += len(data)


__all__ = ["Form", "Handler", "Refusal", "Reply", "Request", "serve"]
