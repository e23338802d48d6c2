"""WebSocket frames (RFC 6455) with the channels of ``v5.channel.k8s.io`` in them. No I/O.

The first byte of a message is its channel. A payload is handed on as it comes, so that no message
is ever held, however long it claims to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
CONTINUATION, TEXT, BINARY, CLOSING, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_CONTROL = 125
MAX_MESSAGE = 1 << 30
"""Bytes that a frame may announce. A larger number shows that these bytes are no frame's head."""


class FrameError(Exception):
    """The bytes are not frames of a server that speaks the protocol."""


def write_frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8)
    mask = os.urandom(4)
    repeated = (mask * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(size)
    return head + mask + masked


def write_stdin(data: bytes) -> bytes:
    """Return a frame with bytes for the container's stdin."""
    return write_frame(BINARY, bytes((STDIN,)) + data)


class FrameReader:
    """Splits what a server sends into pieces of channels and control frames, at any piece size.

    ``pongs``: frames to be sent in answer. ``closed``: the server has said that it is done.
    """

    def __init__(self) -> None:
        self.pongs: list[bytes] = []
        self.closed = False
        self._head = b""
        self._left = 0
        self._opcode = 0
        self._channel = -1
        """Channel of the message that is under way; -1 before its first byte."""
        self._control = b""
        self._final = True

    def receive(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Yield pairs of a channel and some bytes of it.

        :raises FrameError: when a frame is malformed
        """
        view = memoryview(data)
        while view and not self.closed:
            if not self._left:
                view = self._read_head(view)
                continue
            piece = view[: self._left]
            view = view[len(piece) :]
            self._left -= len(piece)
            if self._opcode >= CLOSING:
                self._control += bytes(piece)
                if not self._left:
                    self._end_control()
                continue
            if self._channel < 0:
                self._channel = piece[0]
                piece = piece[1:]
            if piece:
                yield self._channel, piece
            self._end_frame()

    def _read_head(self, view: memoryview) -> memoryview:
        head = self._head
        wanted = 2 if len(head) < 2 else _head_size(head)
        piece = bytes(view[: wanted - len(head)])
        self._head = head = head + piece
        view = view[len(piece) :]
        if len(head) < 2 or len(head) < _head_size(head):
            return view
        self._head = b""
        self._begin_frame(head)
        return view

    def _begin_frame(self, head: bytes) -> None:
        opcode, size = head[0] & 0x0F, head[1] & 0x7F
        final = bool(head[0] & 0x80)
        if size > 125:
            size = int.from_bytes(head[2:])
        if head[0] & 0x70 or head[1] & 0x80 or size > MAX_MESSAGE:
            raise FrameError(f"the server sent {head.hex(' ')} instead of a frame's head")
        if opcode in (CLOSING, PING, PONG):
            if size > MAX_CONTROL or not final:
                raise FrameError(f"the server sent a control frame of {size} bytes")
            self._control = b""
        elif opcode in (TEXT, BINARY):
            if self._channel >= 0:
                raise FrameError("the server has begun a message within another one")
            self._final = final
        elif opcode == CONTINUATION:
            self._final = final
        else:
            raise FrameError(f"the server sent a frame of the kind {opcode}")
        self._opcode, self._left = opcode, size
        if not size:
            if opcode >= CLOSING:
                self._end_control()
            else:
                self._end_frame()

    def _end_frame(self) -> None:
        if not self._left and self._final:
            self._channel = -1

    def _end_control(self) -> None:
        if self._opcode == PING and len(self.pongs) < 16:
            self.pongs.append(write_frame(PONG, self._control))
        elif self._opcode == CLOSING:
            self.closed = True


def _head_size(head: bytes) -> int:
    return 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
