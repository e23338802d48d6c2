"""An archive on a stream that goes on afterwards: pieces with their lengths, the last one empty.

All pieces but the last one with content are full. So a reader that gives each piece a time bounds
the pace of the sender, too.

Pure functions; the host and the helper on a node import this module.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from gvisor_kernel.archive.refusal import Refused

PIECE = 256 * 1024
"""Bytes of a full piece."""
LENGTH = struct.Struct(">I")


def write_pieces(archive: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes to send for ``archive``; each time at most PIECE and a length."""
    held = bytearray()
    for data in archive:
        held += data
        while len(held) >= PIECE:
            yield LENGTH.pack(PIECE) + held[:PIECE]
            del held[:PIECE]
    if held:
        yield LENGTH.pack(len(held)) + held
    yield LENGTH.pack(0)


def read_pieces(read: Callable[[int], bytes], limit: int | None = None) -> Iterator[bytes]:
    """Yield the archive that ``write_pieces`` has sent, and read not one byte more.

    :param read: returns exactly as many bytes as it is asked for, or raises
    :raises Refused: when a piece is too long or too short, or all of them have more than ``limit``
        bytes
    """
    total = 0
    is_last = False
    while size := LENGTH.unpack(read(LENGTH.size))[0]:
        if is_last:
            raise Refused(f"a piece that is not the last has less than {PIECE} bytes")
        is_last = size < PIECE
        total += size
        if size > PIECE:
            raise Refused(f"a piece of the archive has {size} bytes, more than {PIECE}")
        if limit is not None and total > limit:
            raise Refused(f"the archive has more than {limit} bytes")
        yield read(size)
