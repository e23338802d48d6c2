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
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore

from gvisor_kernel import __version__
from gvisor_kernel.egress.addresses import NameResolver, resolve
from gvisor_kernel.egress.package_index import Index, origin_of
from gvisor_kernel.egress.patterns import is_address
from gvisor_kernel.egress.refusals import Unreachable, UpstreamFailed
from gvisor_kernel.egress.upstream import Upstream, tls_context, translated_errors
from gvisor_kernel.errors import EgressError, EgressRefused

log = logging.getLogger(__name__)

NAME_SECONDS = 5.0
"""How long the name of an index, or of a proxy, may take to be resolved."""
READ_SECONDS = 30.0
DOWN_SECONDS = 20.0
"""How long a host that did not answer is not asked again: an install asks for many pages."""
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 32

NAMES: ContextVar[NameResolver] = ContextVar("names")
"""The resolver of the kernel whose request this task works for. A connection is made deep in
httpcore, which does not know for which kernel."""


@dataclass(frozen=True)
class Answer:
    """An answer without its body. The names of ``headers`` are in lower case."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


class Hosts:
    """The hosts that an index and its pages name, and where each is.

    ``names`` is for ``index`` and ``proxy``, as hosts and ports; NAMES for all others. They are
    two, so that names which a page chooses, and which nobody answers for, do not make the index
    wait.
    """

    def __init__(
        self, names: NameResolver, index: tuple[str, int], proxy: tuple[str, int] | None = None
    ) -> None:
        self._names = names
        self._index = index
        self._configured = {index, proxy}
        self.is_proxied = proxy is not None

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host to connect to.

        :raises UpstreamFailed: when it has none, or one that must not be connected to
        """
        host = host.lower()
        if (host, port) in self._configured:
            return await self._resolve_configured(host, port)
        return await self.resolve_judged(host, port)

    async def _resolve_configured(self, host: str, port: int) -> list[str]:
        if is_address(host):
            return [host]
        try:
            async with asyncio.timeout(NAME_SECONDS):
                return list(dict.fromkeys(await self._names.resolve(host, port)))
        except (OSError, UnicodeError, TimeoutError) as error:
            raise Unreachable(f"the name {host} does not resolve") from error

    async def resolve_judged(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that a page or a redirect names, all of them judged.

        One that is not public is accepted only if it is the index's own: a mirror that answers to
        several names.

        :raises UpstreamFailed: when it has none, or one that is not allowed
        """
        names = NAMES.get().resolve  # no timeout: a variable of a context, not a queue
        try:
            try:
                return await resolve(host, port, names)
            except EgressRefused:
                if port != self._index[1]:
                    raise
                own = await self._resolve_configured(*self._index)
                return await resolve(host, port, names, accepted=own)
        except EgressRefused as error:
            raise UpstreamFailed(f"{host} is not allowed: {error.fact.rstrip('.')}") from error
        except EgressError as error:
            raise UpstreamFailed(error.fact.rstrip(".")) from error


class IndexClient:
    """Keeps connections to indexes. Use it in one event loop, and ``close`` it.

    ``threads`` resolve the names of configured hosts (``make_name_threads``).
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._proxies = getproxies()
        self._servers: dict[tuple[Any, ...], tuple[Upstream, Hosts]] = {}
        self._down: dict[tuple[str, str, int], float] = {}

    @asynccontextmanager
    async def get(
        self, index: Index, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Get ``url``, which ``index`` named. Redirects are followed.

        :raises UpstreamFailed: when no answer came, or the URL or a redirect leads to the inside
        """
        for _ in range(MAX_REDIRECTS + 1):
            async with self._get_once(index, url, headers) as answer:
                target = answer.headers.get("location")
                if answer.status not in (301, 302, 303, 307, 308) or target is None:
                    yield answer
                    return
            try:
                following = urljoin(url, target)
                secure = origin_of(following)[0] == "https" or origin_of(url)[0] == "http"
            except ValueError:
                secure = False
            host = urlsplit(url).hostname
            if not secure or "@" in urlsplit(following).netloc:
                raise UpstreamFailed(f"{host} redirects to something else than HTTPS")
            url = following.partition("#")[0]
        raise UpstreamFailed(f"{host} redirects more than {MAX_REDIRECTS} times")

    @asynccontextmanager
    async def _get_once(
        self, index: Index, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        origin = origin_of(url)
        own = origin == index.origin
        if time.monotonic() - self._down.get(origin, -DOWN_SECONDS) < DOWN_SECONDS:
            raise UpstreamFailed(f"{origin[1]} did not answer a moment ago")
        sent = {"Host": urlsplit(url).netloc, "User-Agent": f"gvisor-kernel/{__version__}"}
        sent |= headers
        if own and index.authorization is not None:
            sent["Authorization"] = index.authorization
        upstream, hosts = self._find_server(index, origin, verify=index.verify or not own)
        if hosts.is_proxied and origin[1:] != index.origin[1:]:
            # The proxy may reach more than the public network.
            await hosts.resolve_judged(*origin[1:])
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
        try:
            async with upstream.send("GET", httpcore.URL(url), pairs, None) as response:
                received = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in response.headers
                }
                with translated_errors():
                    yield Answer(response.status, url, received, response.aiter_stream())
        except Unreachable:
            now = time.monotonic()
            self._down = {o: t for o, t in self._down.items() if now - t < DOWN_SECONDS}
            self._down[origin] = now
            raise

    def _find_server(
        self, index: Index, origin: tuple[str, str, int], *, verify: bool
    ) -> tuple[Upstream, Hosts]:
        url = self._proxies.get(origin[0]) or self._proxies.get("all")
        is_local = origin[1] in ("127.0.0.1", "localhost", "::1")
        proxy = None
        if url and not is_local and not proxy_bypass(f"{origin[1]}:{origin[2]}"):
            proxy = _make_proxy(url)
        key = (index.origin, verify, index.ca, bool(proxy))
        if key not in self._servers:
            through = None
            if proxy is not None:
                through = (proxy.url.host.decode(), proxy.url.origin.port)
            hosts = Hosts(NameResolver(self._threads), index.origin[1:], through)
            upstream = Upstream(
                hosts.resolve,
                context=_make_context(verify, index.ca),
                proxy=proxy,
                most=MAX_CONNECTIONS,
                seconds=READ_SECONDS,
            )
            self._servers[key] = upstream, hosts
        return self._servers[key]

    async def close(self) -> None:
        """Close all connections."""
        for upstream, _ in self._servers.values():
            await upstream.close()
        self._servers.clear()


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
    context = tls_context() if parts.scheme == "https" else None
    return httpcore.Proxy(f"{parts.scheme}://{host}", auth=auth, ssl_context=context)
