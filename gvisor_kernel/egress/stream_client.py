"""Asks a route of the worker: one HTTP request on a stream, and its answer as it comes.

What a program in a sandbox does through PID 1, the Jupyter server does here for a page. The worker
has parsed the server's answer and writes it anew, within bounds; it is parsed here once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import h11

from gvisor_kernel.egress.heads import MAX_HEAD
from gvisor_kernel.egress.streams import ByteStream, StreamLink, StreamReset
from gvisor_kernel.link.frames import LocalProtocolError
from gvisor_kernel.link.streams import EGRESS_PORT

SEND_SIZE = 64 * 1024
Pairs = tuple[tuple[str, str], ...]


class AnswerBroken(Exception):
    """There is no answer, or it is not whole. The text says what is known."""


@dataclass(frozen=True)
class Ask:
    """A request. ``target``: of the route's own address, or a whole URL of the server ``host``;
    ``headers`` were checked."""

    method: str
    target: str
    headers: Pairs
    body: memoryview | None = None
    host: str = f"127.0.0.1:{EGRESS_PORT}"


@dataclass(frozen=True)
class Answer:
    """An answer whose head has come. ``body`` can be iterated over once, and may raise
    AnswerBroken."""

    status: int
    headers: Pairs
    body: AsyncIterator[bytes]


@asynccontextmanager
async def asking(link: StreamLink, ask: Ask) -> AsyncIterator[Answer]:
    """Send a request and give its answer. At the end the stream is given up, if it is not over.

    :raises AnswerBroken: there is no answer
    """
    try:
        stream = link.open()  # by path: a stream, not a file
    except (LocalProtocolError, StreamReset) as error:
        raise AnswerBroken("the process for routes has ended, or is busy") from error
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * MAX_HEAD)
    # An answer may come before the end of the request, such as one that says that it is too large.
    sending = asyncio.create_task(_send(stream, connection, ask))
    try:
        response = await _next_event(stream, connection)
        while isinstance(response, h11.InformationalResponse):
            response = await _next_event(stream, connection)
        if not isinstance(response, h11.Response):
            raise AnswerBroken("the answer is not HTTP")
        headers = tuple(_texts(response.headers))
        yield Answer(response.status_code, headers, _read_body(stream, connection))
    finally:
        sending.cancel()
        link.close(stream)


async def _send(stream: ByteStream, connection: h11.Connection, ask: Ask) -> None:
    framing = () if ask.body is None else (("Content-Length", str(len(ask.body))),)
    headers = [("Host", ask.host), *ask.headers, *framing]
    request = h11.Request(
        method=ask.method,
        target=ask.target,
        headers=[*headers, ("Connection", "close")],
    )
    with suppress(StreamReset, h11.LocalProtocolError):  # who reads the answer is told, too
        await stream.write(connection.send(request) or b"")
        view = ask.body or memoryview(b"")
        while view:
            await stream.write(connection.send(h11.Data(data=bytes(view[:SEND_SIZE]))) or b"")
            view = view[SEND_SIZE:]
        await stream.write(connection.send(h11.EndOfMessage()) or b"")
        stream.finish()


async def _next_event(stream: ByteStream, connection: h11.Connection) -> object:
    """Return the next event that is not NEED_DATA."""
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            # no timeout: the route's limit of time ends the stream
            connection.receive_data(await stream.read())
        return event
    except StreamReset as error:
        raise AnswerBroken(
            "the answer broke off: the server has ended it, a limit of the route is reached, or"
            " the process for routes has ended"
        ) from error
    except h11.RemoteProtocolError as error:
        raise AnswerBroken("the answer is not HTTP, or ended too early") from error


async def _read_body(stream: ByteStream, connection: h11.Connection) -> AsyncIterator[bytes]:
    while isinstance(event := await _next_event(stream, connection), h11.Data):
        yield bytes(event.data)


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[str, str]]:
    return ((name.decode("ascii").lower(), value.decode("latin-1")) for name, value in headers)
