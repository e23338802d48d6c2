"""An archive on a stream that goes on afterwards: chunks with their lengths, the last one empty.

All chunks but the last one with content are full. So a reader that gives each chunk a time bounds
the pace of the sender, too.

Pure functions; the host and the helper on a node import this module.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from gvisor_kernel.archive.archive_error import ArchiveError

CHUNK = 256 * 1024
"""Bytes of a full chunk."""
LENGTH = struct.Struct(">I")


def write_chunks(archive: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes to send for ``archive``; each time at most CHUNK and a length."""
    held = bytearray()
    for data in archive:
        held += data
        while len(held) >= CHUNK:
            yield LENGTH.pack(CHUNK) + held[:CHUNK]
            del held[:CHUNK]
    if held:
        yield LENGTH.pack(len(held)) + held
    yield LENGTH.pack(0)


def read_chunks(read: Callable[[int], bytes], limit: int | None = None) -> Iterator[bytes]:
    """Yield the archive that ``write_chunks`` has sent, and read not one byte more.

    :param read: returns exactly as many bytes as it is asked for, or raises
    :raises ArchiveError: when a chunk is too long or too short, or all of them have more than
        ``limit`` bytes
    """
    total = 0
    is_last = False
    while size := LENGTH.unpack(read(LENGTH.size))[0]:
        if is_last:
            raise ArchiveError(f"a piece that is not the last has less than {CHUNK} bytes")
        is_last = size < CHUNK
        total += size
        if size > CHUNK:
            raise ArchiveError(f"a piece of the archive has {size} bytes, more than {CHUNK}")
        if limit is not None and total > limit:
            raise ArchiveError(f"the archive has more than {limit} bytes")
        yield read(size)
