"""Channels of ``v5.channel.k8s.io`` in the messages of a WebSocket whose handshake is done. No I/O.

The first byte of a message is its channel. Its bytes are handed on as they come, so that no message
is ever held, however long it claims to be.
"""

from __future__ import annotations

from collections.abc import Iterator

from wsproto.connection import CLIENT, Connection
from wsproto.events import BytesMessage, CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

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
        self.pongs: list[bytes] = []
        self.closed = False
        self._connection = Connection(CLIENT)
        self._channel: int | None = None
        """Channel of the message that is under way; None before its first byte."""

    def write_stdin(self, data: bytes) -> bytes:
        """Return a frame with bytes for the container's stdin."""
        return self._connection.send(BytesMessage(bytes((STDIN,)) + data))

    def receive(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Yield pairs of a channel and some bytes of it.

        :raises ChannelError: when the bytes are no frames, or the server tells of an error
        """
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
