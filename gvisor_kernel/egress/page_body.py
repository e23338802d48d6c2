"""Writes the body of an answer to a file as it comes, decompressed. Nobody holds it as a whole."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import aclosing
from urllib.parse import urlsplit

from gvisor_kernel.egress.package_connections import Unreachable
from gvisor_kernel.egress.package_downloads import CHUNK, gather, in_thread
from gvisor_kernel.egress.package_upstream import Answer

Write = Callable[[bytes], None]
"""Appends to the file; called in a thread. It may raise OSError."""


async def save_body(answer: Answer, write: Write, most: int) -> None:
    """Write the whole body.

    :raises Unreachable: when it is larger than ``most`` bytes, or not what its header says
    :raises OSError: when it cannot be written
    """
    host = urlsplit(answer.url).hostname
    body = _Body(write, most, answer.headers.get("content-encoding", "").lower() == "gzip")
    try:
        async with aclosing(gather(answer.body)) as parts:
            async for data in parts:
                await in_thread(body.add, data)
        await in_thread(body.end)
    except _TooLarge as error:
        raise Unreachable(f"{host} sends more than {most} bytes") from error
    except zlib.error as error:
        raise Unreachable(f"{host} sends damaged data") from error
    except EOFError as error:
        raise Unreachable(f"{host} broke off") from error


class _TooLarge(Exception):
    """A body is larger than it may be."""


class _Body:
    """``add`` and ``end`` block: a small part may decompress to all that is allowed."""

    def __init__(self, write: Write, most: int, gzip: bool) -> None:
        self._write = write
        self._most = most
        self._unpack = zlib.decompressobj(31) if gzip else None
        self._received = self._written = 0

    def add(self, data: bytes) -> None:
        """Write a part of the body."""
        self._received += len(data)
        if self._received > self._most:
            raise _TooLarge
        if self._unpack is None:
            self._put(data)
            return
        while data and not self._unpack.eof:
            self._put(self._unpack.decompress(data, CHUNK))
            data = self._unpack.unconsumed_tail

    def end(self) -> None:
        """Write what is left.

        :raises EOFError: when it is not complete
        """
        if self._unpack is None:
            return
        while part := self._unpack.decompress(b"", CHUNK):
            self._put(part)
        if not self._unpack.eof:
            raise EOFError

    def _put(self, data: bytes) -> None:
        self._written += len(data)
        if self._written > self._most:
            raise _TooLarge
        self._write(data)
