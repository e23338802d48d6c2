"""Finds the route for a URL that a page from a sandbox asks for. Pure functions.

A page asks for the upstream's own address. A browser writes it in one form: the scheme and the host
in lower case, names of other scripts in ASCII (``xn--``), no port that is the scheme's own. What a
browser would not write is refused, so that nobody has to guess which host it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from gvisor_kernel.egress.kinds import Route, UrlRoute
from gvisor_kernel.egress.patterns import MAX_TARGET, split_authority
from gvisor_kernel.errors import EgressRefused

DEFAULT_PORTS = {"https": 443, "http": 80}
MAX_SHOWN = 200
"""Characters of a host in an error."""

_URL = re.compile(r"(https?)://([^/?#\\]*)((?:[/?][^#]*)?)(#.*)?", re.IGNORECASE)
_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Destination:
    """``target``: the path and the query, in origin form. ``host`` has no brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def shown(self) -> str:
        """The host, and its port if that is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def read_destination(url: str) -> Destination:
    """Return where a URL leads. A fragment is left out, as it is never sent.

    :raises EgressRefused: it is no such URL, or servers and browsers could read it differently
    """
    found = _URL.fullmatch(url) if len(url) <= MAX_TARGET else None
    if found is None or not _PRINTABLE.fullmatch(url):
        raise EgressRefused(
            "This address is no URL of a server.",
            f"use https://host/path in ASCII, with at most {MAX_TARGET} characters.",
        )
    scheme, authority, target = found[1].lower(), found[2], found[3]
    shown = authority[:MAX_SHOWN]
    if "@" in authority:  # what stands there may be a password
        raise EgressRefused("A URL with the name of a user is not passed on.", "leave it out.")
    has_port = re.search(r":[0-9]*$", authority) is not None
    whole = authority if has_port else f"{authority}:{DEFAULT_PORTS[scheme]}"
    split = split_authority(whole)
    if split is None:
        raise EgressRefused(
            f"{shown or 'An empty name'} is no host in its usual form.",
            "write a name without a dot at its end, an address as 192.0.2.1 or [2001:db8::1], and"
            " a port as a plain number.",
        )
    if not target.startswith("/"):
        target = f"/{target}"
    return Destination(scheme, *split, target)


def upstream_of(url: str) -> Destination:
    """Return where a route's ``url`` leads, which was checked; ``target`` is its base path."""
    parts = urlsplit(url)
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    return Destination(parts.scheme, (parts.hostname or "").lower(), port, parts.path.rstrip("/"))


def find_route(wanted: Destination, routes: Iterable[Route]) -> tuple[UrlRoute, str]:
    """Return the route for pages that leads to ``wanted``, and the target below it.

    The base path of the route is compared as it is written. Of two routes that fit, the one with
    the longer base path is it.

    :raises EgressRefused: there is none
    """
    best: tuple[int, UrlRoute, str] | None = None
    hosts = set()
    for route in routes:
        if not isinstance(route, UrlRoute) or not route.artifacts:
            continue
        upstream = upstream_of(route.url)
        if (upstream.scheme, upstream.host, upstream.port) != (
            wanted.scheme,
            wanted.host,
            wanted.port,
        ):
            continue
        base = upstream.target
        hosts.add(f"{route.name} leads to {base or '/'}")
        below = wanted.target[len(base) :]
        if not wanted.target.startswith(base) or below[:1] not in ("", "/", "?"):
            continue
        if best is None or len(base) > best[0]:
            best = len(base), route, below if below.startswith("/") else f"/{below}"
    if best is not None:
        return best[1], best[2]
    if hosts:
        raise EgressRefused(
            f"No route for pages leads to this path of {wanted.shown}: {', '.join(sorted(hosts))}.",
            "ask for a path below, or ask an administrator for another route.",
        )
    raise EgressRefused(
        f"Pages have no route to {wanted.scheme}://{wanted.shown}.",
        f'an administrator can add one with "url": "{wanted.scheme}://{wanted.shown}" and'
        ' "artifacts": True to c.GVisorEgress.routes (docs/egress.md).',
    )


def outside_address(location: str, route: UrlRoute, inside: str) -> str:
    """Return an address in an answer as the server has sent it. ``inside``: the route's address for
    kernels, which ``forward`` has put there."""
    rest = location[len(inside) :]
    if location.startswith(inside) and rest[:1] in ("", "/", "?", "#"):
        return route.url + rest
    return location
