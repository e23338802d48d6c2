"""Frames, messages and errors of the link: layout, limits, encoding and decoding.

What a frame means, and when it may be sent, is not decided here. A frame is a header of 8 bytes
and a payload::

    type u8 | channel u8 | flags u8 | zero u8 | payload length u32, big endian

A frame is at most 32 KiB with its header: small enough that a heartbeat overtakes a 500 MB output
after a few microseconds, large enough that the header costs nothing.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Container, Sequence
from typing import NamedTuple, Union


class LinkError(Exception):
    """The protocol was violated: one class for each side's fault."""


class LocalProtocolError(LinkError):
    """This side asked its own connection for something that the protocol forbids: a bug here."""


class RemoteProtocolError(LinkError):
    """The other side sent bytes that the protocol forbids. The connection cannot be used again."""


HEADER = struct.Struct(">BBBBI")
MAX_FRAME = 32 * 1024
MAX_PAYLOAD = MAX_FRAME - HEADER.size

FLAG_LAST = 0x01
"""Flag of a DATA frame: this fragment is the last of its message."""


class FrameType(enum.IntEnum):
    """The byte on the wire of each frame; docs/protocol.md says what each one means."""

    HELLO = 1
    START = 2
    STARTED = 3
    DATA = 4
    CREDIT = 5
    SIGNAL = 6
    EXIT = 7
    STATS = 8
    LOG = 9
    PING = 10
    PONG = 11
    RESUME = 13
    RESUMED = 14
    IDLE_QUERY = 15
    IDLE_REPLY = 16
    OPEN = 17
    STREAM = 18
    GRANT = 19
    FINISH = 20
    RESET = 21
    TRIM = 22


class Channel(enum.IntEnum):
    """A channel of the kernel, or SERVICE: questions to the sandbox itself (``service_messages``).
    The value is the byte on the wire. NONE: a frame without channel."""

    NONE = 0
    SHELL = 1
    IOPUB = 2
    STDIN = 3
    CONTROL = 4
    HB = 5
    SERVICE = 6


class LogSource(enum.IntEnum):
    """The writer of a log line: the channel byte of a LOG frame."""

    GUEST = 0
    STDOUT = 1
    STDERR = 2
    REFUSED = 3
    """A connection that the guest refused, for whoever waits for it."""


KERNEL_CHANNELS = (Channel.HB, Channel.CONTROL, Channel.STDIN, Channel.SHELL, Channel.IOPUB)
"""The channels of a kernel, for each of which it has a socket."""

DATA_CHANNELS = (*KERNEL_CHANNELS, Channel.SERVICE)
"""All channels, in the order in which waiting frames are sent: the most urgent first."""

DIRECT_CHANNELS = KERNEL_CHANNELS[1:]
"""The channels of a kernel that speaks frames itself. PID 1 answers its heartbeats: they say that
the kernel's process exists, whatever holds its interpreter, as ipykernel's own thread does."""


class Frame(NamedTuple):
    """A decoded frame. ``channel`` is a Channel or, for LOG, a LogSource."""

    type: FrameType
    channel: int
    flags: int
    payload: bytes

    def __str__(self) -> str:
        where = ""
        if self.type is FrameType.LOG:
            where = f" {LogSource(self.channel).name.lower()}"
        elif self.channel:
            where = f" {Channel(self.channel).name.lower()}"
        last = " last" if self.flags & FLAG_LAST else ""
        return f"<{self.type.name}{where}{last} {len(self.payload)} bytes>"

    def __repr__(self) -> str:
        return str(self)  # a payload may contain a key


def encode_frame(kind: FrameType, payload: bytes = b"", channel: int = 0, flags: int = 0) -> bytes:
    """Return the bytes of one frame.

    :raises LocalProtocolError: when the payload is too long
    """
    if len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(
            f"A {kind.name} payload of {len(payload)} bytes is over the {MAX_PAYLOAD} of a frame."
        )
    return HEADER.pack(kind, channel, flags, 0, len(payload)) + payload


_TYPES = {int(kind): kind for kind in FrameType}
_LAST_CHANNEL = max(Channel)
_CHANNELLED = frozenset((FrameType.DATA, FrameType.CREDIT))


def find_whole_frames_size(
    data: bytes | bytearray | memoryview, allowed: Container[tuple[int, int]]
) -> int:
    """Return how many bytes of ``data`` are whole frames, each of an ``allowed`` (type, channel).

    Nothing else is checked.

    :raises RemoteProtocolError: for a frame that is not allowed, or is too long
    """
    offset, end = 0, len(data)
    while end - offset >= HEADER.size:
        kind, channel, _, _, length = HEADER.unpack_from(data, offset)
        if (kind, channel) not in allowed or length > MAX_PAYLOAD:
            raise RemoteProtocolError(
                f"A frame of type {kind} with {length} bytes on channel {channel} is not allowed."
            )
        if end - offset < HEADER.size + length:
            break
        offset += HEADER.size + length
    return offset


class FrameReader:
    """Splits a byte stream into frames. Reads may be cut anywhere."""

    def __init__(self) -> None:
        self._buffer = b""
        self._start = 0

    def receive_data(self, data: bytes) -> None:
        """Add received bytes. If ``next_frame`` is called until it returns None after each call,
        the reader holds the data of one call and one frame at most."""
        rest = self._buffer[self._start :]
        self._buffer = rest + data if rest else bytes(data)
        self._start = 0

    @property
    def pending(self) -> int:
        """Bytes received that are not a whole frame yet."""
        return len(self._buffer) - self._start

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None.

        :raises RemoteProtocolError: when the header is malformed; its payload need not be there
        """
        available = len(self._buffer) - self._start
        if available < HEADER.size:
            if not available:
                self._buffer, self._start = b"", 0
            return None
        number, channel, flags, zero, length = HEADER.unpack_from(self._buffer, self._start)
        kind = _TYPES.get(number)
        if kind is None:
            raise RemoteProtocolError(f"Unknown frame type {number}.")
        if length > MAX_PAYLOAD:
            raise RemoteProtocolError(
                f"A {kind.name} frame announces {length} bytes; the limit is {MAX_PAYLOAD}."
            )
        if zero or flags & ~FLAG_LAST or (flags and kind is not FrameType.DATA):
            raise RemoteProtocolError(f"A {kind.name} frame has unknown flags.")
        if kind in _CHANNELLED:
            if not 0 < channel <= _LAST_CHANNEL:
                raise RemoteProtocolError(f"A {kind.name} frame has the invalid channel {channel}.")
        elif channel and (kind is not FrameType.LOG or channel > LogSource.REFUSED):
            raise RemoteProtocolError(f"A {kind.name} frame has the invalid channel {channel}.")
        if available < HEADER.size + length:
            return None
        begin = self._start + HEADER.size
        self._start = begin + length
        return Frame(kind, channel, flags, self._buffer[begin : self._start])


# -- messages of several parts -------------------------------------------------------------------

MAX_MESSAGE = 256 * 1024 * 1024
"""Bytes of a packed message. The largest honest output of a kernel (a picture, a table of buffers)
fits, and what a receiver holds of a partial message is bounded."""
MAX_SMALL_MESSAGE = 16 * 1024 * 1024
"""Bytes of a packed message on SMALL_CHANNELS, where no honest message is large. A receiver may
hold a partial message of each channel."""
SMALL_CHANNELS = frozenset((Channel.HB, Channel.CONTROL, Channel.STDIN, Channel.SERVICE))
MAX_PARTS = 4096
"""Parts of a message: identities, the delimiter, the signature, four dicts, the buffers."""

VIEW_ABOVE = 64 * 1024
"""Bytes of a part above which a receiver that asks for views gets a view of the message's buffer.
To copy 100 MB takes a tenth of a second, in which no other thread runs."""

Part = Union[bytes, memoryview]
"""A part of a message. A view only above VIEW_ABOVE, and only at an end that asks for views."""

_COUNT = struct.Struct(">H")
_LENGTH = struct.Struct(">I")


def largest_message(channel: Channel) -> int:
    """Return the most bytes of a packed message on ``channel``."""
    return min(MAX_MESSAGE, MAX_SMALL_MESSAGE) if channel in SMALL_CHANNELS else MAX_MESSAGE


def pack_message(parts: Sequence[Part], channel: Channel = Channel.NONE) -> list[Part]:
    """Return the pieces that DATA frames carry for a message. The parts are not copied.

    :raises LocalProtocolError: when it has more than MAX_PARTS or none, or is too large
    """
    if not 0 < len(parts) <= MAX_PARTS:
        raise LocalProtocolError(f"A message has {len(parts)} parts; 1 to {MAX_PARTS} are allowed.")
    head = _COUNT.pack(len(parts)) + b"".join([_LENGTH.pack(len(part)) for part in parts])
    size = len(head) + sum(map(len, parts))
    limit = largest_message(channel)
    if size > limit:
        raise LocalProtocolError(f"A message of {size} bytes is over the limit of {limit}.")
    return [head, *parts]


def unpack_message(data: bytes | bytearray, *, views: bool = False) -> list[Part]:
    """Return the parts of a whole message.

    :param views: return large parts as views of ``data``, which must not change any more
    :raises RemoteProtocolError: when the lengths do not match the data exactly
    """
    if len(data) < _COUNT.size:
        raise RemoteProtocolError("A message is too short for the count of its parts.")
    (count,) = _COUNT.unpack_from(data)
    if not 0 < count <= MAX_PARTS:
        raise RemoteProtocolError(
            f"A message announces {count} parts; 1 to {MAX_PARTS} are allowed."
        )
    offset = _COUNT.size + count * _LENGTH.size
    if len(data) < offset:
        raise RemoteProtocolError("A message is too short for the lengths of its parts.")
    lengths = struct.unpack_from(f">{count}I", data, _COUNT.size)
    if offset + sum(lengths) != len(data):
        raise RemoteProtocolError("The lengths of a message's parts do not add up to its size.")
    # A slice of bytes is already a copy. A slice of a bytearray would be copied twice.
    source = data if isinstance(data, bytes) else memoryview(data)
    parts: list[Part] = []
    for length in lengths:
        part = source[offset : offset + length]
        parts.append(part if views and length > VIEW_ABOVE else bytes(part))
        offset += length
    return parts


# -- frames of byte streams ------------------------------------------------------------------------
# What a stream is, and when a frame may be sent, is in ``streams``. Each payload begins with the
# number of its stream. In a GRANT and a RESET stream 0 stands for all streams together
# (``backlog``).

_STREAM = struct.Struct(">I")
_GRANT = struct.Struct(">II")

ALL_STREAMS = 0
"""The number that stands for all streams of a run together."""
LAST_STREAM = 2**32 - 1
"""The highest number of a stream."""
MAX_STREAM_DATA = MAX_PAYLOAD - _STREAM.size
"""Bytes of a stream in one frame."""
HEAD_SIZE = HEADER.size + _STREAM.size
"""Bytes of a STREAM frame before those of the stream; the whole of an OPEN, a FINISH, a RESET."""
GRANT_SIZE = HEADER.size + _GRANT.size
"""Bytes of a GRANT frame."""

STREAM_SIZES = {
    FrameType.OPEN: (_STREAM.size, _STREAM.size),
    FrameType.STREAM: (_STREAM.size + 1, MAX_PAYLOAD),
    FrameType.GRANT: (_GRANT.size, _GRANT.size),
    FrameType.FINISH: (_STREAM.size, _STREAM.size),
    FrameType.RESET: (_STREAM.size, _STREAM.size),
}
"""The frames of streams, and the least and the most bytes of their payloads."""


def check_size(frame: Frame) -> None:
    """Check the length of the payload of a stream's frame.

    :raises RemoteProtocolError: when it is not allowed
    """
    least, most = STREAM_SIZES[frame.type]
    size = len(frame.payload)
    if not least <= size <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise RemoteProtocolError(
            f"A {frame.type.name} payload has {size} bytes; {expected} are expected."
        )


def decode_stream(payload: bytes) -> int:
    """Return the number of the stream. The size must have been checked, here and below."""
    (number,) = _STREAM.unpack_from(payload)
    return int(number)


def decode_grant(payload: bytes) -> tuple[int, int]:
    """Return the stream and the amount of a GRANT."""
    number, amount = _GRANT.unpack(payload)
    return number, amount


def decode_data(payload: bytes) -> bytes:
    """Return the bytes of the stream in a STREAM."""
    return payload[_STREAM.size :]


def encode_short(kind: FrameType, number: int) -> bytes:
    """Return an OPEN, a FINISH or a RESET."""
    return encode_frame(kind, _STREAM.pack(number))


def encode_grant(number: int, amount: int) -> bytes:
    """Return a GRANT."""
    return encode_frame(FrameType.GRANT, _GRANT.pack(number, amount))


def encode_bytes(number: int, data: bytes) -> bytes:
    """Return a STREAM with 1 to MAX_STREAM_DATA bytes."""
    return (
        HEADER.pack(FrameType.STREAM, 0, 0, 0, _STREAM.size + len(data))
        + _STREAM.pack(number)
        + data
    )
