"""Connections to package indexes, to the hosts on which they keep files, and to a proxy.

Hosts that the configuration names are where it says. Any other host is resolved and judged here,
and the connection goes to an address that was judged. What a server sends as the head of an answer
is bounded before it is parsed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import httpcore

from gvisor_kernel.egress.addresses import MAX_ADDRESSES, judge
from gvisor_kernel.egress.answer_heads import HEAD_READ, HeadWatch
from gvisor_kernel.egress.patterns import is_address, is_host_name

CONNECT_SECONDS = 5.0
"""For the addresses of a name, for one connection, and for TLS on it."""
NEXT_SECONDS = 0.25
"""After this time without an answer the next address of a host is tried, too."""
MAX_TRIED = 6
"""Addresses of one host to which connections are made."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a name, of whatever kind. Raises OSError when there are none."""


class Unreachable(Exception):
    """A host did not answer, or answered with a failure of its own; the text says which host."""


class Forbidden(Exception):
    """A page or a redirect leads where a sandbox must not make this machine go."""


_resolve: ContextVar[Resolve] = ContextVar("names_of_packages")


@contextmanager
def names_resolved_by(resolve: Resolve) -> Iterator[None]:
    """Let ``resolve`` find the hosts that an index names, for this task and those that it makes.

    A connection is made deep in httpcore, which does not know for which kernel.
    """
    token = _resolve.set(resolve)
    try:
        yield
    finally:
        _resolve.reset(token)


async def resolve_for_kernel(host: str, port: int) -> list[str]:
    """Return the addresses of a name, found by the resolver of the kernel that asks."""
    return await _resolve.get()(host, port)


class Hosts:
    """Where the hosts are that an index, and its pages, name.

    ``resolve_own`` is for ``index`` and ``proxy``, as hosts and ports; ``resolve`` for all others.
    They are two, so that names which a page chooses, and which nobody answers for, do not make the
    index wait.
    """

    def __init__(
        self,
        resolve: Resolve,
        resolve_own: Resolve,
        index: tuple[str, int],
        proxy: tuple[str, int] | None = None,
    ) -> None:
        self._resolve = resolve
        self._resolve_own = resolve_own
        self._index = index
        self._configured = {index, proxy}

    def is_configured(self, host: str, port: int) -> bool:
        """Whether the configuration names this host and port."""
        return (host.lower(), port) in self._configured

    async def find_configured(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that the configuration names.

        :raises OSError: when it has none
        """
        if is_address(host):
            return [host]
        return list(dict.fromkeys(await self._resolve_own(host, port)))

    async def find_judged(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that a page or a redirect names, all of them judged.

        One that is not public is accepted only if it is the index's own: a mirror that answers to
        several names.

        :raises OSError: when it has none
        :raises Forbidden: when one of them must not be connected to
        """
        host = host.lower()
        addresses = [host]
        if not is_address(host):
            if not is_host_name(host):
                raise Forbidden("a host is neither a name of DNS nor an address in its usual form")
            addresses = list(dict.fromkeys(await self._resolve(host, port)))
        if len(addresses) > MAX_ADDRESSES:
            raise Forbidden(f"{host} has more than {MAX_ADDRESSES} addresses")
        own: list[str] | None = None if port == self._index[1] else []
        for address in addresses:
            reason = judge(address, allow_private=False)
            if reason is None:
                continue
            if own is None:
                own = []
                with suppress(OSError):
                    own = await self.find_configured(*self._index)
            if address not in own:
                raise Forbidden(f"an address of {host} is not allowed: it {reason}")
        return addresses


class Backend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses of ``hosts``, which are found once for each connection."""

    def __init__(self, hosts: Hosts) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._hosts = hosts

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; called by httpcore."""
        configured = self._hosts.is_configured(host, port)
        find = self._hosts.find_configured if configured else self._hosts.find_judged
        try:
            async with asyncio.timeout(timeout):
                addresses = await find(host, port)
        except TimeoutError as error:
            if configured:
                raise httpcore.ConnectTimeout from error
            # It may have waited for other names of this kernel: others need not take it for down.
            raise Unreachable(f"the name {host} did not resolve in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error

        async def connect(address: str) -> httpcore.AsyncNetworkStream:
            return await self._inner.connect_tcp(address, port, timeout, local_address)

        return WatchedStream(await _connect_first(connect, _choose(addresses)))


class WatchedStream(httpcore.AsyncNetworkStream):
    """A connection on which each answer's head is bounded.

    An answer begins after something was written: a request, or the CONNECT to a proxy before it.
    HTTP/2 has other heads, and is not spoken.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._watch = HeadWatch()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._watch.is_over:
            return await self._inner.read(max_bytes, timeout)
        data = await self._inner.read(min(max_bytes, HEAD_READ), timeout)
        try:
            self._watch.feed(data)
        except ValueError as error:
            raise httpcore.RemoteProtocolError(str(error)) from error
        await asyncio.sleep(0)  # a read of what is there already does not let others run
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._watch = HeadWatch()
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(self, *arguments: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        return WatchedStream(await self._inner.start_tls(*arguments, **named))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _choose(addresses: list[str]) -> list[str]:
    """Return the addresses to try: of both families first, as one may lead nowhere."""
    first = addresses[0]
    other = next((each for each in addresses if (":" in each) != (":" in first)), first)
    return list(dict.fromkeys([first, other, *addresses]))[:MAX_TRIED]


async def _connect_first(
    connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]], addresses: list[str]
) -> httpcore.AsyncNetworkStream:
    """Return a connection to the address that answers first (RFC 8305).

    :raises httpcore.ConnectError, httpcore.ConnectTimeout: when none does
    """
    left = deque(addresses)
    attempts: list[asyncio.Future[httpcore.AsyncNetworkStream]] = []
    pending: set[asyncio.Future[httpcore.AsyncNetworkStream]] = set()
    chosen = None
    try:
        while True:
            if left:
                attempts.append(asyncio.ensure_future(connect(left.popleft())))
                pending.add(attempts[-1])
            done, pending = await asyncio.wait(
                pending,
                timeout=NEXT_SECONDS if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            chosen = next((each for each in done if each.exception() is None), None)
            if chosen is not None:
                return chosen.result()
            if not left and not pending:
                return attempts[-1].result()  # raises
    finally:
        others = [attempt for attempt in attempts if attempt is not chosen]
        for attempt in others:
            attempt.cancel()
        try:
            if others:
                await asyncio.wait(others)
        except asyncio.CancelledError:
            if chosen is not None:
                await chosen.result().aclose()
            raise
        for attempt in others:
            if not attempt.cancelled() and attempt.exception() is None:
                await attempt.result().aclose()
