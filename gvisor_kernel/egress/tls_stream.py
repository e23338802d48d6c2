"""TLS on a connected socket, that reads from it only when somebody wants bytes.

asyncio's own TLS reads ahead and keeps a buffer of 256 KiB for each connection: 250 answers that a
kernel does not read would take 370 MiB.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

READ_SIZE = 64 * 1024
"""Bytes to read of the socket at once."""
WRITE_SIZE = 64 * 1024


class TlsStream:
    """A client's side. Use it in one task at a time, or in one for each direction."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """``sock`` is connected and not blocking; whoever made it closes it."""
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._sending = asyncio.Lock()

    async def shake_hands(self) -> None:
        """Begin TLS, and verify the server.

        :raises ssl.SSLError: it is not the one, or does no TLS
        :raises OSError: the connection broke
        """
        while True:
            try:
                self._tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive(READ_SIZE)
            except ssl.SSLError:
                await self._flush()  # the alert says why
                raise

    async def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; b"" at the end.

        A server may end the connection without TLS's own end, as many do.

        :raises OSError: the connection broke
        """
        parts: list[bytes] = []
        total = 0
        while total < size:
            try:
                part = self._tls.read(size - total)
            except ssl.SSLWantReadError:
                if parts:
                    break
                await self._flush()
                await self._receive(min(size, READ_SIZE))
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            if not part:
                break
            parts.append(part)
            total += len(part)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises OSError: the connection broke
        """
        view = memoryview(data)
        while view:
            try:
                written = self._tls.write(view[:WRITE_SIZE])
            except ssl.SSLWantReadError:  # a renegotiation, which TLS 1.2 may want
                await self._flush()
                await self._receive(READ_SIZE)
                continue
            view = view[written:]
            await self._flush()

    @property
    def is_readable(self) -> bool:
        """Whether bytes, or the end, have come. Of an idle connection: that it has ended."""
        if self._tls.pending() or self._incoming.pending:
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def _flush(self) -> None:
        async with self._sending:
            while self._outgoing.pending:
                await self._loop.sock_sendall(self._sock, self._outgoing.read(WRITE_SIZE))

    async def _receive(self, size: int) -> None:
        data = await self._loop.sock_recv(self._sock, size)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
