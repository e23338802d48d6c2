"""Connections to servers on behalf of a sandbox: always to an address that was judged.

A name is resolved once, each of its addresses is judged (``addresses``), and the connection goes to
one of those. No library below resolves the name again, so a resolver that gives another answer the
second time (rebinding) gains nothing. TLS still names and verifies the name.

The heads of an answer are bounded before h11 parses them, which takes interim answers (1xx) as long
as they come, and a head of any number of headers. Both would keep the process busy, and fill its
memory, for as long as a server likes.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Protocol
from weakref import WeakSet

import httpcore
from aiohappyeyeballs import start_connection

from gvisor_kernel.egress.refusals import Unreachable, UpstreamFailed

MAX_BYTES = 64 * 1024
"""Of all heads of one answer. Servers send 8 to 32 KiB at most."""
MAX_LINES = 400
"""Of all heads of one answer."""
MAX_INTERIM = 20
HEAD_READ = 16 * 1024
"""Bytes to read at once while a head comes: what is parsed in one turn."""
RECORD = 64 * 1024
"""Bytes to read of the socket at once."""
WRITE_SIZE = 64 * 1024


class HeadWatch:
    """The heads of one answer: those of interim answers, and that of the final one."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._bytes = self._lines = self._interim = 0
        self.is_over = False
        """The final head is complete: what follows is the body."""

    def feed(self, data: bytes) -> None:
        """Look at bytes that have come.

        :raises ValueError: when a bound is exceeded
        """
        if self.is_over:
            return
        self._held += data
        while not self.is_over:
            end = _find_end(self._held)
            part = len(self._held) if end is None else end
            lines = self._held.count(b"\n", 0, part)
            if self._bytes + part > MAX_BYTES or self._lines + lines > MAX_LINES:
                raise ValueError("the head of the answer is too large")
            if end is None:
                return
            self._bytes, self._lines = self._bytes + part, self._lines + lines
            is_interim = self._held[:end][9:10] == b"1"  # as in "HTTP/1.1 103 Early Hints"
            del self._held[:end]
            if is_interim:
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise ValueError("there are too many interim answers")
            else:
                self.is_over = True
                self._held.clear()


def _find_end(data: bytearray) -> int | None:
    """Return where the first head ends, with its empty line; None if it is not complete."""
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := data.find(mark)) != -1]
    return min(ends, default=None)


class Transport(Protocol):
    """A connection. Use it in one task at a time, or in one for each direction."""

    async def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; b"" at the end.

        :raises OSError: the connection broke
        """

    async def write(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises OSError: the connection broke
        """

    @property
    def is_readable(self) -> bool:
        """Return whether bytes, or the end, have come. Of an idle connection: that it has ended."""


class SocketTransport:
    """``sock`` is connected and not blocking; whoever made it closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        return await self._loop.sock_recv(self._sock, size)

    async def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        await self._loop.sock_sendall(self._sock, data)

    @property
    def is_readable(self) -> bool:
        """Return whether bytes, or the end, have come."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)  # no timeout: it is ready, or does not block
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


class TlsTransport:
    """A client's side of TLS on another transport."""

    def __init__(self, inner: Transport, context: ssl.SSLContext, host: str) -> None:
        self._inner = inner
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
        """Return up to ``size`` bytes. A server may end the connection without TLS's own end, as
        many do."""
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
        """Send all of ``data``."""
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
        """Return whether bytes, or the end, have come."""
        return bool(self._tls.pending() or self._incoming.pending) or self._inner.is_readable

    async def _flush(self) -> None:
        async with self._sending:
            while self._outgoing.pending:
                await self._inner.write(self._outgoing.read(WRITE_SIZE))

    async def _receive(self, size: int) -> None:
        data = await self._inner.read(size)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


CONNECT_SECONDS = 15.0
"""For a connection, and for TLS on it."""
NEXT_SECONDS = 0.25
"""After this time without an answer the next address of a host is tried, too (RFC 8305)."""
MAX_TRIED = 6
"""Addresses of one host to which connections are made."""
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
    """Return a connected socket, not blocking, to the address of ``host`` that answers first.

    :raises Refusal: it may not be reached, or cannot be
    """
    found = [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            "",
            (address, port),
        )
        for address in _choose(await resolve(host, port))
    ]
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await start_connection(found, happy_eyeballs_delay=NEXT_SECONDS, interleave=1)
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"no connection to {host}:{port} can be made") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _choose(addresses: list[str]) -> list[str]:
    """Return the addresses to try: of both families first, as one may lead nowhere."""
    first = addresses[0]
    other = next((each for each in addresses if (":" in each) != (":" in first)), first)
    return list(dict.fromkeys([first, other, *addresses]))[:MAX_TRIED]


class _Stream(httpcore.AsyncNetworkStream):
    """A connection as httpcore uses it; with TLS after ``start_tls``, also to a proxy and again to
    the server behind it.

    An answer begins after something was written: a request, or the CONNECT to a proxy before it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._transport: Transport = SocketTransport(sock)
        self._watch = HeadWatch()
        _open.add(self)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        is_body = self._watch.is_over
        try:
            async with asyncio.timeout(timeout):
                data = await self._transport.read(find_read_size() if is_body else HEAD_READ)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        except OSError as error:
            raise httpcore.ReadError from error
        if not is_body:
            try:
                self._watch.feed(data)
            except ValueError as error:
                raise httpcore.RemoteProtocolError(str(error)) from error
            await asyncio.sleep(0)  # a read of what is there already does not let others run
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._watch = HeadWatch()
        try:
            async with asyncio.timeout(timeout):
                await self._transport.write(buffer)
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
            tls = TlsTransport(self._transport, ssl_context, server_hostname or "")
            async with asyncio.timeout(CONNECT_SECONDS):
                await tls.shake_hands()
        except (OSError, TimeoutError) as error:
            self._sock.close()
            fact = "has no valid certificate" if isinstance(error, ssl.SSLError) else "does no TLS"
            raise Unreachable(f"{server_hostname} {fact}") from error
        self._transport = tls
        return self

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":  # asked of an idle connection: readable means that it has ended
            return self._transport.is_readable
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
    """Requests to servers, over connections that are kept.

    ``seconds``: how long a read or a write may take; None if the caller has a limit.
    """

    def __init__(
        self,
        resolve: Resolve,
        *,
        context: ssl.SSLContext | None = None,
        proxy: httpcore.Proxy | None = None,
        most: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self._timeout = {"read": seconds, "write": seconds, "pool": seconds}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context or tls_context(),
            proxy=proxy,
            max_connections=most,
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
        extensions = {"timeout": self._timeout}
        request = httpcore.Request(
            method, url, headers=headers, content=body, extensions=extensions
        )
        with translated_errors():
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
        if isinstance(error, httpcore.ProxyError):
            raise Unreachable("the proxy makes no connection to the server") from error
        if isinstance(error, httpcore.ProtocolError | httpcore.UnsupportedProtocol):
            raise UpstreamFailed("the server does not answer as HTTP demands") from error
