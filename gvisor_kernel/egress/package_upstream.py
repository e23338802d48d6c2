"""Requests to package indexes, and to the hosts on which they keep files.

An index is where the configuration says, whatever its address is. Everything else that an index
names, in a page or by a redirect, must be in the public network, and gets no credential.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore

from gvisor_kernel import __version__
from gvisor_kernel.egress.addresses import judge
from gvisor_kernel.egress.package_index import Index, origin_of

log = logging.getLogger(__name__)

CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
DOWN_SECONDS = 20.0
"""How long a host that did not answer is not asked again: an install asks for many pages."""
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 32

Resolve = Callable[[str, int], Awaitable[list[str]]]
_TIMEOUT = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": 30.0, "pool": 60.0}


class Unreachable(Exception):
    """A host did not answer, or answered with a failure of its own; the text says which host."""


class Forbidden(Exception):
    """A page or a redirect leads where a sandbox must not make this machine go."""


@dataclass(frozen=True)
class Answer:
    """An answer without its body. The names of ``headers`` are in lower case."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name.

    :raises OSError: when it has none
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Backend(httpcore.AsyncNetworkBackend):
    """Connects to the index as it is configured, to other hosts only at judged addresses.

    A name is resolved once, and the connection goes to the address that was judged. An address that
    is not public is accepted only if it is the index's own: a mirror that answers to several names.
    """

    def __init__(self, resolve: Resolve, index: tuple[str, int], *others: tuple[str, int]) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._resolve = resolve
        self._index = index
        self._configured = frozenset({index, *others})

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; called by httpcore."""
        addresses = [host]
        if (host.lower(), port) not in self._configured:
            try:
                async with asyncio.timeout(timeout):
                    addresses = await self._resolve(host, port)
            except (OSError, TimeoutError, UnicodeError) as error:
                raise httpcore.ConnectError(str(error)) from error
            await self._judge(host, port, addresses)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address)
            except httpcore.ConnectError:
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address)

    async def _judge(self, host: str, port: int, addresses: list[str]) -> None:
        """Raise Forbidden if one of the addresses must not be connected to."""
        own: list[str] | None = None
        for address in addresses:
            reason = judge(address, allow_private=False)
            if reason is None:
                continue
            if own is None:
                try:
                    own = await self._resolve(*self._index) if port == self._index[1] else []
                except OSError:
                    own = []
            if address not in own:
                raise Forbidden(f"an address of {host} is not allowed: it {reason}")


class Upstream:
    """Keeps connections to indexes. Use it in one event loop, and ``close`` it."""

    def __init__(self, resolve: Resolve = resolve) -> None:
        self._resolve = resolve
        self._proxies = getproxies()
        self._pools: dict[tuple[Any, ...], httpcore.AsyncConnectionPool] = {}
        self._down: dict[tuple[str, str, int], float] = {}

    @asynccontextmanager
    async def get(
        self, index: Index, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Get ``url``, which ``index`` named. Redirects are followed.

        :raises Unreachable: when no answer came
        :raises Forbidden: when the URL, or a redirect, leads to the inside
        """
        for _ in range(MAX_REDIRECTS + 1):
            async with self._get_once(index, url, headers) as answer:
                target = answer.headers.get("location")
                if answer.status not in (301, 302, 303, 307, 308) or target is None:
                    yield answer
                    return
            following = urljoin(url, target)
            try:
                secure = origin_of(following)[0] == "https" or origin_of(url)[0] == "http"
            except ValueError:
                secure = False
            if not secure or "@" in urlsplit(following).netloc:
                raise Forbidden(f"{urlsplit(url).hostname} redirects to something else than HTTPS")
            url = following.partition("#")[0]
        raise Unreachable(f"{urlsplit(url).hostname} redirects more than {MAX_REDIRECTS} times")

    @asynccontextmanager
    async def _get_once(
        self, index: Index, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        origin = origin_of(url)
        own = origin == index.origin
        if time.monotonic() - self._down.get(origin, -DOWN_SECONDS) < DOWN_SECONDS:
            raise Unreachable(f"{origin[1]} did not answer a moment ago")
        sent = {"User-Agent": f"gvisor-kernel/{__version__}", **headers}
        if own and index.authorization is not None:
            sent["Authorization"] = index.authorization
        pool = self._find_pool(index, origin, verify=index.verify or not own)
        try:
            async with pool.stream(
                "GET", url, headers=list(sent.items()), extensions={"timeout": _TIMEOUT}
            ) as response:
                received = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in response.headers
                }
                yield Answer(response.status, url, received, response.aiter_stream())
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError) as error:
            self._down[origin] = time.monotonic()
            raise Unreachable(f"{origin[1]} cannot be reached") from error
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
        ) as error:
            raise Unreachable(f"{origin[1]} broke off") from error

    def _find_pool(
        self, index: Index, origin: tuple[str, str, int], *, verify: bool
    ) -> httpcore.AsyncConnectionPool:
        proxy = self._proxies.get(origin[0]) or self._proxies.get("all")
        if proxy and (origin[1:] in _loopback(origin) or _bypasses(origin)):
            proxy = None
        if proxy and _is_private_literal(origin[1]) and origin != index.origin:
            raise Forbidden(f"{origin[1]} is not in the public network")
        key = (index.origin, verify, index.ca, proxy)
        if key not in self._pools:
            through = _authority(proxy) if proxy else None
            others = () if through is None else (through,)
            self._pools[key] = httpcore.AsyncConnectionPool(
                ssl_context=_make_context(verify, index.ca),
                max_connections=MAX_CONNECTIONS,
                keepalive_expiry=30.0,
                http2=importlib.util.find_spec("h2") is not None,
                network_backend=Backend(self._resolve, index.origin[1:], *others),
                proxy=_make_proxy(proxy) if proxy else None,
            )
        return self._pools[key]

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()


def _make_context(verify: bool, ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except OSError as error:
            log.warning("The certificates in %s are not used: %s", ca, error.strerror)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _make_proxy(url: str) -> httpcore.Proxy:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    auth = None
    if parts.username is not None:
        auth = (parts.username, parts.password or "")
    host = parts.netloc.rpartition("@")[2]
    return httpcore.Proxy(f"{parts.scheme}://{host}", auth=auth)


def _authority(url: str) -> tuple[str, int] | None:
    try:
        return origin_of(url if "//" in url else f"http://{url}")[1:]
    except ValueError:
        return None


def _bypasses(origin: tuple[str, str, int]) -> bool:
    return bool(proxy_bypass(f"{origin[1]}:{origin[2]}"))


def _loopback(origin: tuple[str, str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((host, origin[2]) for host in ("127.0.0.1", "localhost", "::1"))


def _is_private_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.rpartition(".")[2].isdigit() or host.startswith("0x")
    return judge(host, allow_private=False) is not None
