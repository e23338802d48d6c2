"""The frames of byte streams as bytes: layout, sizes, encoding and decoding.

What a stream is, and when a frame may be sent, is in ``streams``. Each payload begins with the
number of its stream. In a GRANT and a RESET stream 0 stands for all streams together (``backlog``).
"""

from __future__ import annotations

import struct

from gvisor_kernel.link.errors import RemoteProtocolError
from gvisor_kernel.link.frames import HEADER, MAX_PAYLOAD, Frame, FrameType, encode_frame

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
