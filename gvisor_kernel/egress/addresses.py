"""Judges the addresses that a route would connect to. The connection goes to what was judged.

A name is resolved once, here, on the host. Every address that it has is judged, and one that is
not allowed refuses all of them: a name that leads to the inside and to the outside is an attack, or
a mistake. The caller connects to one of the returned addresses and does not resolve again, so a
name cannot lead elsewhere a moment later.

The system's resolver cannot be told to stop: a name whose server does not answer keeps a thread for
half a minute, after the request has given up. So each kernel has at most NAMES_AT_ONCE of them.

What this module cannot know: a public address that leads back to this machine by a translation in
the network, and private services that have public addresses.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeAlias

from gvisor_kernel.egress.patterns import is_address, is_host_name
from gvisor_kernel.egress.turns import Turns
from gvisor_kernel.errors import EgressError, EgressRefused

MAX_ADDRESSES = 64
"""Addresses of one name. More are refused: all are judged, and judging one takes system calls."""
RESOLVE_SECONDS = 10.0
NAME_THREADS = 32
NAMES_AT_ONCE = 4
"""Threads for names of all kernels of a worker, and of one."""

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""Takes a name and a port; returns addresses as text. Raises OSError when there are none."""

METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure, a public address
        "169.254.169.254",  # most of them
        "192.0.0.192",  # Oracle
        "fd00:ec2::23",  # Amazon EKS
        "fd00:ec2::254",  # Amazon EC2
        "fd20:ce::254",  # Google
    )
)
"""Services that tell a cloud's machine its credentials; link-local addresses are refused anyway."""

_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""What ``allow_private`` allows. 100.64.0.0/10 is that of carriers and of some VPNs."""

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: networks with IPv6 only give such an address to each name that has only IPv4."""

_CARRIERS = {
    ipaddress.ip_network("::/96"): "an IPv4 address in IPv6",
    ipaddress.ip_network("::ffff:0:0/96"): "an IPv4 address in IPv6",
    ipaddress.ip_network("::ffff:0:0:0/96"): "an IPv4 address in IPv6",
    ipaddress.ip_network("64:ff9b:1::/48"): "an address of a local translation to IPv4",
    ipaddress.ip_network("2001::/32"): "an address of a Teredo tunnel",
    ipaddress.ip_network("2002::/16"): "an address of a 6to4 tunnel",
}
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
_GLOBAL_6 = ipaddress.ip_network("2000::/3")
_RESERVED = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "3fff::/20"),
    )
)
"""Written down here because the list in ``ipaddress`` differs between releases of Python."""


def judge(address: str, allow_private: bool, *, literal: bool = False) -> str | None:
    """Return why a route must not connect to ``address``; None if it may.

    ``allow_private``: the route's setting. ``literal``: the route's configuration has this address
    itself; together with ``allow_private`` it may be one of this machine, such as 127.0.0.1.
    """
    if not is_address(address):
        return "is not an address in its usual form"
    return _judge(ipaddress.ip_address(address), allow_private, allow_private and literal)


def _judge(address: Address, allow_private: bool, allow_own: bool) -> str | None:
    if address in METADATA:
        return "is a cloud's metadata service"
    if isinstance(address, ipaddress.IPv6Address) and int(address) > 1:  # not "::" and "::1"
        if address in _TRANSLATED:
            inner = ipaddress.ip_address(int(address) & 0xFFFF_FFFF)
            return _judge(inner, allow_private=False, allow_own=False)
        # First, as some releases of Python judge such an address by the one in it, others do not.
        for network, name in _CARRIERS.items():
            if address in network:
                return f"is {name}"
        if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return "is an address of an ISATAP tunnel"
    if address.is_unspecified:
        return "is the unspecified address"
    if address.is_loopback:
        return None if allow_own else "is a loopback address of this machine"
    if address.is_multicast:
        return "is a multicast address"
    if address.is_link_local or (address.version == 6 and address.is_site_local):
        return "is a link-local address"
    is_private = _is_in(address, _PRIVATE)
    if is_private and not allow_private:
        return "is a private address"
    if not is_private and not _is_public(address):
        return "is a reserved address"
    try:
        return "is an address of this machine" if not allow_own and is_own(address) else None
    except OSError as error:
        return f"could not be checked: {error.strerror}"


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not _is_in(address, _RESERVED)
        and (address.version == 4 or address in _GLOBAL_6)
    )


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def is_own(address: Address) -> bool:
    """Return whether packets to ``address`` would be delivered to this machine itself.

    The host's kernel is asked, not a list of interfaces: it knows each address that it accepts.

    :raises OSError: when it cannot be asked, for example because no descriptor is free
    """
    with _probe(address) as probe, suppress(OSError):
        if probe is not None:
            probe.connect((str(address), 9))  # sends nothing
            if probe.getsockname()[0] == str(address):
                return True
    return _may_bind(address) and not _may_bind(_OTHERS[address.version])


_OTHERS = {4: ipaddress.ip_address("192.0.2.1"), 6: ipaddress.ip_address("2001:db8::1")}
"""Addresses that no machine has: one that binds to them lets programs bind to any address."""


def _may_bind(address: Address) -> bool:
    with _probe(address) as probe, suppress(OSError):
        if probe is not None:
            probe.bind((str(address), 0))
            return True
    return False


@contextmanager
def _probe(address: Address) -> Iterator[socket.socket | None]:
    """Make a socket for addresses of this kind; None on a machine that has none of them."""
    try:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        probe = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        yield None
        return
    with probe:
        yield probe


async def resolve(
    host: str,
    port: int,
    resolver: Resolver,
    *,
    allow_private: bool = False,
    accepted: Collection[str] = (),
    seconds: float = RESOLVE_SECONDS,
) -> list[str]:
    """Return the addresses of ``host`` to connect to, all of them judged, each once.

    An address as ``host`` is not resolved; the caller has checked that the route lists it. Those in
    ``accepted`` are not judged.

    :raises EgressRefused: when one of them is not allowed
    :raises EgressError: when the name has no address, or does not resolve within ``seconds``
    """
    if is_address(host):
        if host not in accepted:
            _refuse(host, host, judge(host, allow_private, literal=True))
        return [host]
    if not is_host_name(host):
        raise EgressRefused(
            f"{host!r} is neither a name of DNS nor an address in its usual form.",
            "use the name that the service's documentation has.",
        )
    try:
        async with asyncio.timeout(seconds):
            found = list(dict.fromkeys(await resolver(host, port)))
    except TimeoutError:
        raise EgressError(
            f"The name {host} did not resolve within {seconds:g} s.",
            f"check the resolver of the host: getent hosts {host}",
        ) from None
    except (OSError, UnicodeError) as error:
        raise EgressError(
            f"The name {host} does not resolve: {error}.",
            "check its spelling, and the resolver of the host.",
        ) from error
    if not found:
        raise EgressError(f"The name {host} has no address.", "check its spelling.")
    if len(found) > MAX_ADDRESSES:
        raise EgressRefused(
            f"The name {host} has {len(found)} addresses, over the limit of {MAX_ADDRESSES}.",
            "use a name with fewer.",
        )
    for address in found:
        if address not in accepted:
            _refuse(host, address, judge(address, allow_private))
    return found


def _refuse(host: str, address: str, reason: str | None) -> None:
    if reason is None:
        return
    # Which address an internal name has is not the sandbox's business.
    fact = "The address" if host == address else "An address of the name"
    raise EgressRefused(
        f"{fact} {host} {reason}.",
        'an administrator may set "allow_private": True for a route to a private network; an'
        " address of the machine itself must also be written in the route as an address."
        " Link-local, multicast and metadata addresses are never allowed.",
    )


class NameResolver:
    """The resolver of one kernel. ``threads`` are those of the worker (``make_name_threads``)."""

    def __init__(
        self,
        threads: ThreadPoolExecutor,
        find: Callable[[str, int], list[str]] | None = None,
    ) -> None:
        """``find`` blocks; without it the system is asked."""
        self._threads = threads
        self._find = find or _find_addresses
        self._turns = Turns(NAMES_AT_ONCE)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of ``host``, as the host's programs find them.

        :raises OSError: when the name has no address
        """
        await self._turns.acquire()  # no timeout: bounded by RESOLVE_SECONDS in addresses
        loop = asyncio.get_running_loop()
        resolving = loop.run_in_executor(self._threads, self._find, host, port)
        resolving.add_done_callback(self._end_turn)
        return await asyncio.shield(resolving)  # no timeout: bounded by RESOLVE_SECONDS

    def _end_turn(self, resolving: asyncio.Future[list[str]]) -> None:
        """Let the next name be resolved: the thread has ended, whether or not anyone waits."""
        self._turns.release()
        resolving.exception()  # it is no error that nobody has seen it


def make_name_threads() -> ThreadPoolExecutor:
    """Return the threads in which names are resolved, for all kernels of a worker."""
    return ThreadPoolExecutor(NAME_THREADS, "names")


def _find_addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
