"""Requests to package indexes, and to the hosts on which they keep files.

An index is where the configuration says, whatever its address is. Everything else that an index
names, in a page or by a redirect, must be in the public network, and gets no credential.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore

from gvisor_kernel import __version__
from gvisor_kernel.egress.name_resolver import NameResolver
from gvisor_kernel.egress.package_connections import (
    CONNECT_SECONDS,
    Backend,
    Forbidden,
    Hosts,
    Unreachable,
    resolve_for_kernel,
)
from gvisor_kernel.egress.package_index import Index, origin_of

log = logging.getLogger(__name__)

READ_SECONDS = 30.0
DOWN_SECONDS = 20.0
"""How long a host that did not answer is not asked again: an install asks for many pages."""
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 32

_TIMEOUT = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": 30.0, "pool": 60.0}


@dataclass(frozen=True)
class Answer:
    """An answer without its body. The names of ``headers`` are in lower case."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


@dataclass(frozen=True)
class _Pool:
    """Connections for one index. ``proxied``: they lead to a proxy."""

    connections: httpcore.AsyncConnectionPool
    hosts: Hosts
    proxied: bool


class Upstream:
    """Keeps connections to indexes. Use it in one event loop, and ``close`` it.

    ``threads`` resolve names (``make_threads``): those of configured hosts here, and those that an
    index names by the resolver of the kernel that asks (``names_resolved_by``).
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._proxies = getproxies()
        self._pools: dict[tuple[Any, ...], _Pool] = {}
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
        if pool.proxied:
            await _judge_for_proxy(pool.hosts, index, *origin[1:])
        try:
            async with pool.connections.stream(
                "GET", url, headers=list(sent.items()), extensions={"timeout": _TIMEOUT}
            ) as response:
                received = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in response.headers
                }
                yield Answer(response.status, url, received, response.aiter_stream())
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError) as error:
            now = time.monotonic()
            self._down = {o: t for o, t in self._down.items() if now - t < DOWN_SECONDS}
            self._down[origin] = now
            raise Unreachable(f"{origin[1]} cannot be reached") from error
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
        ) as error:
            raise Unreachable(f"{origin[1]} broke off") from error

    def _find_pool(self, index: Index, origin: tuple[str, str, int], *, verify: bool) -> _Pool:
        proxy = self._proxies.get(origin[0]) or self._proxies.get("all")
        if proxy and (origin[1:] in _loopback(origin) or _bypasses(origin)):
            proxy = None
        key = (index.origin, verify, index.ca, proxy)
        if key not in self._pools:
            through = _authority(proxy) if proxy else None
            own = NameResolver(self._threads)
            hosts = Hosts(resolve_for_kernel, own.resolve, index.origin[1:], through)
            connections = httpcore.AsyncConnectionPool(
                ssl_context=_make_context(verify, index.ca),
                max_connections=MAX_CONNECTIONS,
                keepalive_expiry=30.0,
                network_backend=Backend(hosts),
                proxy=_make_proxy(proxy) if proxy else None,
            )
            self._pools[key] = _Pool(connections, hosts, proxied=bool(proxy))
        return self._pools[key]

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.connections.aclose()
        self._pools.clear()


async def _judge_for_proxy(hosts: Hosts, index: Index, host: str, port: int) -> None:
    """Judge a host before a proxy is asked for it, which may reach more than the public network.

    :raises Unreachable: when it is not known here where the host is
    :raises Forbidden: when it is not allowed
    """
    if (host, port) == index.origin[1:]:
        return
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await hosts.find_judged(host, port)
    except (OSError, UnicodeError) as error:
        raise Unreachable(
            f"the name {host} does not resolve on this machine, so the proxy is not asked for it"
        ) from error


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
