"""Connections to servers on behalf of a sandbox: always to an address that was judged.

A name is resolved once, each of its addresses is judged (``addresses``), and the connection goes to
one of those. No library below resolves the name again, so a resolver that gives another answer the
second time (rebinding) gains nothing. TLS still names and verifies the name, with the system's
certificates.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from weakref import WeakSet

import httpcore

from gvisor_kernel.egress.answer_heads import HEAD_READ, find_watch, watched_heads
from gvisor_kernel.egress.refusals import UpstreamFailed

RECORD = 64 * 1024
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
                await self._receive(RECORD)
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
                await self._receive(min(size, RECORD))
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
                await self._receive(RECORD)
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


CONNECT_SECONDS = 15.0
"""For one address, and for TLS on it."""
MAX_IDLE = 8
IDLE_SECONDS = 30.0
"""Connections of a route that wait for its next request, and for how long."""
READ_SIZE = 256 * 1024
READ_BYTES = 4 * 1024 * 1024
MIN_READ = 16 * 1024
"""One connection is read in pieces of READ_SIZE, many in smaller ones: of READ_BYTES together."""

_open: WeakSet[_Stream | socket.socket] = WeakSet()


def find_read_size() -> int:
    """Return how many bytes to read at once of a connection."""
    return min(READ_SIZE, max(MIN_READ, READ_BYTES // max(1, len(_open))))


@contextmanager
def counted(sock: socket.socket) -> Iterator[None]:
    """Count a tunnel's connection as one of those that are read."""
    _open.add(sock)
    try:
        yield
    finally:
        _open.discard(sock)


Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns judged addresses of a host and port, or raises a Refusal."""


@cache
def tls_context() -> ssl.SSLContext:
    """Return the settings of TLS: the system's certificates, names verified."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def connect(host: str, port: int, resolve: Resolve) -> socket.socket:
    """Return a connected socket, not blocking, to ``host``.

    :raises Refusal: it may not be reached, or cannot be
    """
    loop = asyncio.get_running_loop()
    for address in await resolve(host, port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(sock, (address, port))
            return sock
        except (OSError, TimeoutError):
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise UpstreamFailed(f"no connection to {host}:{port} can be made")


class _Stream(httpcore.AsyncNetworkStream):
    """A connection as httpcore uses it; with TLS after ``start_tls``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._tls: TlsStream | None = None
        _open.add(self)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        watch = find_watch()
        size = find_read_size() if watch is None else HEAD_READ
        try:
            async with asyncio.timeout(timeout):
                if self._tls is not None:
                    data = await self._tls.read(size)
                else:
                    data = await self._loop.sock_recv(self._sock, size)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        except OSError as error:
            raise httpcore.ReadError from error
        if watch is not None:
            try:
                watch.feed(data)
            except ValueError as error:
                raise httpcore.RemoteProtocolError(str(error)) from error
            await asyncio.sleep(0)  # a read of what is there already does not let others run
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                if self._tls is not None:
                    await self._tls.write(buffer)
                else:
                    await self._loop.sock_sendall(self._sock, buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except OSError as error:
            raise httpcore.WriteError from error

    async def aclose(self) -> None:
        _open.discard(self)
        self._sock.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            tls = TlsStream(self._sock, ssl_context, server_hostname or "")
            async with asyncio.timeout(CONNECT_SECONDS):
                await tls.shake_hands()
        except (OSError, TimeoutError) as error:
            self._sock.close()
            fact = "has no valid certificate" if isinstance(error, ssl.SSLError) else "does no TLS"
            raise UpstreamFailed(f"{server_hostname} {fact}") from error
        self._tls = tls
        return self

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":  # asked of an idle connection: readable means that it has ended
            if self._tls is not None:
                return self._tls.is_readable
            try:
                self._sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True
            return True
        return None


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await connect(host, port, self._resolve))


class Upstream:
    """Requests to servers. Each kernel's route has one, so that no two share a connection."""

    def __init__(self, resolve: Resolve) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls_context(),
            max_connections=None,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_Backend(resolve),
        )

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: httpcore.URL,
        headers: list[tuple[bytes, bytes]],
        body: AsyncIterator[bytes] | None,
    ) -> AsyncIterator[httpcore.Response]:
        """Send a request and give its response, whose body is not read yet and stays encoded.

        :raises UpstreamFailed: it cannot be sent, or the answer is not HTTP
        """
        request = httpcore.Request(method, url, headers=headers, content=body)
        with translated_errors(), watched_heads():
            response = await self._pool.handle_async_request(request)
        try:
            yield response
        finally:
            with suppress(httpcore.NetworkError, httpcore.ProtocolError):
                await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        with suppress(Exception):
            await self._pool.aclose()


class translated_errors:
    """Turns httpcore's errors into UpstreamFailed, without their text, which may quote headers."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, httpcore.TimeoutException):
            raise UpstreamFailed("the server did not answer in time", 504) from error
        if isinstance(error, httpcore.NetworkError):
            raise UpstreamFailed("the connection to the server broke") from error
        if isinstance(error, httpcore.ProtocolError | httpcore.UnsupportedProtocol):
            raise UpstreamFailed("the server does not answer as HTTP demands") from error
