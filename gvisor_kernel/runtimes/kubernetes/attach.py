"""One connection to a container's stdio: an attach or an exec of a pod, which does not block.

Its WebSocket has the channels of ``v5.channel.k8s.io``: the first byte of a message is its channel.
Bytes are handed on as they come, so that no message is ever held, however long it claims to be.

That the connection was made says nothing: the container may not exist yet, and its node may not
answer. A failure comes later, as text on the channel ERROR; there "Success" says nothing either.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gvisor_kernel.host.descriptors import is_ready

# wsproto comes with the extra ``kubernetes``: nobody who uses another runtime needs it, and
# ``cluster.connect`` tells who does.

PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
MAX_PONGS = 16
"""Answers to pings that wait at once: a server sends one ping in some seconds."""


class ChannelError(Exception):
    """The server has ended the connection with an error, or does not speak the protocol."""


class Channels:
    """Splits what a server sends into pieces of channels, at any size of what comes.

    ``pongs``: frames to be sent in answer. ``closed``: the server has said that it is done.
    """

    def __init__(self) -> None:
        from wsproto.connection import CLIENT, Connection

        self.pongs: list[bytes] = []
        self.closed = False
        self._connection = Connection(CLIENT)
        self._channel: int | None = None
        """Channel of the message that is under way; None before its first byte."""

    def write_stdin(self, data: bytes) -> bytes:
        """Return a frame with bytes for the container's stdin."""
        from wsproto.events import BytesMessage

        return self._connection.send(BytesMessage(bytes((STDIN,)) + data))

    def receive(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Yield pairs of a channel and some bytes of it.

        :raises ChannelError: when the bytes are no frames, or the server tells of an error
        """
        from wsproto.events import BytesMessage, CloseConnection, Message, Ping
        from wsproto.frame_protocol import CloseReason

        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, BytesMessage):
                yield from self._take(memoryview(event.data), event.message_finished)
            elif isinstance(event, Message):
                raise ChannelError("the server sent a text, which this protocol has not")
            elif isinstance(event, Ping) and len(self.pongs) < MAX_PONGS:
                self.pongs.append(self._connection.send(event.response()))
            elif isinstance(event, CloseConnection):
                self.closed = True
                if event.code not in (CloseReason.NORMAL_CLOSURE, CloseReason.NO_STATUS_RCVD):
                    raise ChannelError(f"the connection ended with {event.code}: {event.reason}")

    def _take(self, piece: memoryview, is_last: bool) -> Iterator[tuple[int, memoryview]]:
        if self._channel is None and piece:
            self._channel, piece = piece[0], piece[1:]
        if self._channel is not None and piece:
            yield self._channel, piece
        if is_last:
            self._channel = None


READ_SIZE = 256 * 1024
PIECE = 32 * 1024
"""Bytes of one message to stdin."""
MAX_QUEUED = 256 * 1024
"""Bytes for stdin that wait in this process."""
MAX_STATUS = 16 * 1024
"""Bytes that are kept of the channel ERROR."""


class StreamCut(Exception):
    """The connection has ended; the text says what was said last, if anything was."""


class Stream:
    """A connection whose handshake is done. Not for several threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``."""
        self._socket = sock
        sock.setblocking(False)
        self._channels = Channels()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._blocked_by = 0
        """The poll event that a TLS connection waits for, whatever was asked of it."""
        self.status = b""
        """The server's message on the channel ERROR."""
        self.heard = time.monotonic()
        """The time at which bytes came last."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def queued(self) -> int:
        """Return the number of bytes that wait to be sent."""
        return self._queued

    @property
    def room(self) -> int:
        """Return the number of bytes that ``write`` should be given now."""
        return max(0, MAX_QUEUED - self._queued)

    def events(self, reads: bool) -> int:
        """Return what to poll for. ``reads``: whether the caller wants what comes."""
        events = self._blocked_by
        if reads:
            events |= select.POLLIN
        if self._queue:
            events |= select.POLLOUT
        return events

    @property
    def has_more(self) -> bool:
        """Return whether bytes can be read that a poll does not show."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def write(self, data: bytes) -> None:
        """Queue bytes for stdin, and send what can be sent.

        :raises StreamCut: when the connection has ended
        """
        for at in range(0, len(data), PIECE):
            self._put(self._channels.write_stdin(data[at : at + PIECE]))
        self.flush()

    def _put(self, frame: bytes) -> None:
        self._queue.append(memoryview(frame))
        self._queued += len(frame)

    def flush(self) -> None:
        """Send what can be sent.

        :raises StreamCut: when the connection has ended
        """
        while self._queue:
            try:
                sent = self._socket.send(self._queue[0])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
                self._note_block(error)
                return
            except OSError as error:
                raise StreamCut(self._describe(error)) from error
            self._queued -= sent
            if sent == len(self._queue[0]):
                self._queue.popleft()
            else:
                self._queue[0] = self._queue[0][sent:]

    def read(self) -> Iterator[tuple[int, memoryview]]:
        """Read once, and yield pairs of STDOUT or STDERR and some bytes.

        :raises StreamCut: when the connection has ended
        """
        self._blocked_by = 0
        try:
            data = self._socket.recv(READ_SIZE)  # no timeout: it is ready, or does not block
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
            self._note_block(error)
            return
        except OSError as error:
            raise StreamCut(self._describe(error)) from error
        if not data:
            raise StreamCut(self._describe(None))
        self.heard = time.monotonic()
        try:
            for channel, piece in self._channels.receive(data):
                if channel in (STDOUT, STDERR):
                    yield channel, piece
                elif channel == ERROR:
                    self.status += bytes(piece[: MAX_STATUS - len(self.status)])
                elif channel != CLOSE:
                    raise ChannelError(f"the server sent something on the channel {channel}")
        except ChannelError as error:
            raise StreamCut(self.status.decode(errors="replace") or str(error)) from error
        for pong in self._channels.pongs:
            self._put(pong)
        self._channels.pongs.clear()
        self.flush()
        if self._channels.closed:
            raise StreamCut(self._describe(None))

    def _note_block(self, error: OSError) -> None:
        if isinstance(error, ssl.SSLWantWriteError):
            self._blocked_by = select.POLLOUT
        elif isinstance(error, ssl.SSLWantReadError):
            self._blocked_by = select.POLLIN

    def _describe(self, error: OSError | None) -> str:
        if self.status:
            return self.status.decode(errors="replace")
        return str(error.strerror or error) if error is not None else "the connection was closed"

    def close(self) -> None:
        """Close the connection. Idempotent, never raises."""
        with suppress(OSError):
            self._socket.close()


def connect(url: str, headers: dict[str, str], tls: dict[str, Any], seconds: float) -> Stream:
    """Connect to the address of an attach or exec (``ws://`` or ``wss://``).

    :raises StreamCut: when the server does not let us; then ``__cause__`` may be a
        ``websocket.WebSocketBadStatusException``, which has the status
    """
    import websocket

    from gvisor_kernel.runtimes.kubernetes.attach import PROTOCOL

    try:
        made = websocket.create_connection(
            url,
            timeout=seconds,
            header=headers,
            subprotocols=[PROTOCOL],
            sslopt=tls,
            suppress_origin=True,
            redirect_limit=0,  # the headers have the credentials
            enable_multithread=False,
            sockopt=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        )
    except (OSError, websocket.WebSocketException) as error:
        raise StreamCut(f"no connection: {str(error)[:500]}") from error
    if made.getsubprotocol() != PROTOCOL:
        made.shutdown()  # type: ignore[no-untyped-call]
        raise StreamCut(f"the API server does not speak {PROTOCOL}: it needs Kubernetes 1.30")
    sock = made.sock
    assert sock is not None
    made.sock = None
    return Stream(sock)


def wait_readable(stream: Stream, seconds: float) -> bool:
    """Wait until the stream can be read, or written where that waits; whether it can."""
    return stream.has_more or is_ready(stream.fileno(), max(0.0, seconds), stream.events(True))


def make_nonce() -> bytes:
    return os.urandom(16)
