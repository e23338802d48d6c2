"""The kinds of routes: frozen dataclasses without any I/O, and their form for another process.

A *url* route leads to one upstream below one URL and may add a credential; a *hosts* route lets a
kernel connect to listed names and ports; the route *packages* is ready made. A route names its
secret (``env:X``) but never has its value. ``routes.py`` reads them from the configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from gvisor_kernel.config.validators import GIB, MIB

D = TypeVar("D")

PACKAGES = "packages"
"""The name of the ready-made route to the package indexes of this machine."""
SECRET_MARK = "{secret}"  # noqa: S105 - the place of a secret in a header, not one
DEFAULT_HEADER = f"Authorization: Bearer {SECRET_MARK}"

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
"""Methods that a url route can allow; a route without a list allows all of them."""


MAX_NUMBER = 2**50
"""The largest limit: a petabyte."""


def _limit(default: D, least: int, most: int) -> D:
    """Return the field for a limit: what it is if the configuration has none, and its bounds."""
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class Limits:
    """The bounds of one route. A limit of None is not applied.

    Bytes are of bodies, and of both directions of a tunnel. ``seconds``: the longest time of one
    request or tunnel. ``requests_per_minute`` and ``at_once`` count for one kernel,
    ``daily_requests`` and ``daily_bytes`` for all processes of this user, from 0:00 UTC.
    """

    request_bytes: int = _limit(16 * MIB, 0, MAX_NUMBER)
    response_bytes: int = _limit(GIB, 0, MAX_NUMBER)
    requests_per_minute: int = _limit(600, 1, 100_000)
    at_once: int = _limit(64, 1, 256)
    seconds: float = _limit(600.0, 1, 86400)
    daily_requests: int | None = _limit(None, 0, MAX_NUMBER)
    daily_bytes: int | None = _limit(None, 0, MAX_NUMBER)


@dataclass(frozen=True)
class UrlRoute:
    """A route to one upstream. ``url`` has no ``/`` at its end.

    ``secret`` and ``header`` are both None, or ``header`` has ``{secret}`` in its value. ``paths``:
    patterns for what follows ``url``. ``variable``: one that gets the route's address inside.
    ``artifacts``: whether pages from sandboxes may use it, by the upstream's own address.
    """

    name: str
    url: str
    secret: str | None = None
    header: str | None = None
    methods: tuple[str, ...] = METHODS
    paths: tuple[str, ...] = ("/**",)
    variable: str | None = None
    allow_private: bool = False
    limits: Limits = field(default_factory=Limits)
    artifacts: bool = False

    @property
    def header_name(self) -> str | None:
        """The name of the header that carries the credential, in lower case."""
        return None if self.header is None else self.header.partition(":")[0].lower()

    def format_header(self, secret: str) -> tuple[str, str] | None:
        """Return name and value of the header that carries ``secret``; None if there is none."""
        if self.header is None:
            return None
        name, _, value = self.header.partition(":")
        return name, value.strip().replace(SECRET_MARK, secret)


@dataclass(frozen=True)
class HostsRoute:
    """A route to listed names and ports: ``hosts`` has entries such as ``*.example.org:443``."""

    name: str
    hosts: tuple[str, ...]
    allow_private: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class PackagesRoute:
    """The route to the package indexes that pip, uv and npm of this machine use."""

    name: str = PACKAGES
    limits: Limits = field(default_factory=Limits)


Route: TypeAlias = UrlRoute | HostsRoute | PackagesRoute

_KINDS: Mapping[str, type[UrlRoute] | type[HostsRoute] | type[PackagesRoute]] = {
    "url": UrlRoute,
    "hosts": HostsRoute,
    "packages": PackagesRoute,
}


def kind_of(route: Route) -> str:
    """Return "url", "hosts" or "packages"."""
    return next(kind for kind, cls in _KINDS.items() if isinstance(route, cls))


def write_route(route: Route) -> dict[str, Any]:
    """Return a route as JSON, for another process of the same user. It has no secret's value."""
    return {"kind": kind_of(route), **dataclasses.asdict(route)}


def read_route(content: Mapping[str, Any]) -> Route:
    """Return the route that ``write_route`` wrote."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    kind = values.pop("kind")
    values["limits"] = Limits(**values["limits"])
    return _KINDS[kind](**values)


@dataclass(frozen=True)
class KnownApi:
    """``variable``: what its client reads an address from; ``path``: the end of that address.
    ``key``: the variable without which the client refuses to start."""

    host: str
    variable: str
    path: str = ""
    key: str | None = None
    header: str = DEFAULT_HEADER


KNOWN_APIS = (
    KnownApi("api.openai.com", "OPENAI_BASE_URL", "/v1", "OPENAI_API_KEY"),
    KnownApi(
        "api.anthropic.com",
        "ANTHROPIC_BASE_URL",
        key="ANTHROPIC_API_KEY",
        header=f"x-api-key: {SECRET_MARK}",
    ),
    KnownApi("huggingface.co", "HF_ENDPOINT"),
    KnownApi("api.github.com", "GITHUB_API_URL"),
)


def find_api_of_host(url: str) -> KnownApi | None:
    """Return the API that is at the host of ``url``."""
    host = (urlsplit(url).hostname or "").lower()
    return next((api for api in KNOWN_APIS if api.host == host), None)


def find_api_of_variable(variable: str | None) -> KnownApi | None:
    """Return the API whose client reads ``variable``: another server may speak it, too."""
    return next((api for api in KNOWN_APIS if api.variable == variable), None)
