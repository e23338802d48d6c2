"""Reads routes from the configuration and validates them. Opens no file and no connection.

Values that may be a secret by mistake, such as a key in the place of its source, are not shown in
errors. The kinds of routes are in ``kinds.py``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from gvisor_kernel.config.egress import MAX_ROUTES, ROUTE_NAME, ROUTE_NAME_RULE
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import (
    INSTALLED_SKILLS,
    RESERVED_VARIABLES,
    is_within,
    real_path,
)
from gvisor_kernel.egress.addresses import judge
from gvisor_kernel.egress.destinations import Destination, upstream_of
from gvisor_kernel.egress.kinds import (
    DEFAULT_HEADER,
    METHODS,
    PACKAGES,
    SECRET_MARK,
    HostsRoute,
    Limits,
    PackagesRoute,
    Route,
    UrlRoute,
    find_api_of_host,
    find_api_of_variable,
)
from gvisor_kernel.egress.patterns import (
    MAX_PARTS,
    MAX_TARGET,
    find_path_fault,
    find_pattern_fault,
    is_address,
    is_host_pattern,
    split_authority,
)
from gvisor_kernel.errors import SettingError
from gvisor_kernel.host.homes import find_home
from gvisor_kernel.skills.skill_store import FOLDERS, default_folder

D = TypeVar("D")
T = TypeVar("T")

MAX_PATTERNS = 256
"""Patterns and hosts of one route."""
MAX_SOURCE = 1024
"""Characters of the place of a secret."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_SOURCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|keyring:.+/.+")
_HOP_HEADERS = frozenset(
    {
        *("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer"),
        *("transfer-encoding", "upgrade", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "content-type", "content-encoding"),
    }
)
"""Headers that belong to the connection or the body: none can carry a credential."""


# -- choosing --------------------------------------------------------------------------------------


def choose_routes(names: Iterable[str], routes: Mapping[str, Route]) -> tuple[Route, ...]:
    """Return the routes that a kernel's setting ``egress`` names.

    :raises SettingError: when one does not exist, or two announce themselves by one variable
    """
    names = tuple(names)
    chosen: list[Route] = []
    by_variable: dict[str, str] = {}
    for i, name in enumerate(names):
        if name not in routes:
            accepted = (
                f"the name of a route that exists: {', '.join(routes)}. An administrator adds one"
                " to c.GVisorEgress.routes in Jupyter's configuration (docs/egress.md)"
            )
            if len(routes) == 1:
                accepted += (
                    ". If that has been done: nbclient and papermill read no configuration by"
                    " themselves; use jupyter nbconvert --execute, or pass config="
                )
            raise SettingError(f"egress[{i}]", name, accepted)
        route = routes[name]
        chosen.append(route)
        if isinstance(route, UrlRoute) and route.variable is not None:
            other = by_variable.setdefault(route.variable, name)
            if other != name:
                raise SettingError(
                    "egress",
                    list(names),
                    f"one of the routes {other} and {name}: both set the variable {route.variable}",
                )
    return tuple(chosen)


# -- parsing ---------------------------------------------------------------------------------------


class _Words(str):
    """Words that stand in an error for a value that is not shown, without quotes."""

    def __repr__(self) -> str:
        return str(self)


_NOT_SHOWN = _Words("not accepted (its value is not shown, as it may be a secret)")
_TRAIT = "c.GVisorEgress.routes"


def parse_routes(value: object) -> dict[str, Route]:
    """Return the validated routes by name. The route "packages" always exists, as the first.

    :raises SettingError: for the first key or value that is not accepted
    """
    if not isinstance(value, Mapping):
        raise SettingError(
            _TRAIT, _shape(value), "a mapping from the name of a route to its description"
        )
    if len(value) > MAX_ROUTES:
        raise SettingError(_TRAIT, _Words(f"{len(value)} routes"), f"at most {MAX_ROUTES} routes")
    routes: dict[str, Route] = {PACKAGES: PackagesRoute()}
    for name, item in value.items():
        if not isinstance(name, str) or not ROUTE_NAME.fullmatch(name):
            raise SettingError(f"{_TRAIT}: the name of a route", name, ROUTE_NAME_RULE)
        routes[name] = _parse_route(name, item)
    _check_addresses(routes.values())
    return routes


def _check_addresses(routes: Iterable[Route]) -> None:
    """Check that an address that a page asks for belongs to one route.

    :raises SettingError: when two routes for pages have the same one
    """
    by_address: dict[Destination, str] = {}
    for route in routes:
        if isinstance(route, UrlRoute) and route.artifacts:
            other = by_address.setdefault(upstream_of(route.url), route.name)
            if other != route.name:
                raise SettingError(
                    f'{_TRAIT}["{route.name}"]["artifacts"]',
                    True,
                    f"True for one of the routes {other} and {route.name}: both have the url that"
                    " a page would ask for",
                )


def _parse_route(name: str, value: object) -> Route:
    place = f'{_TRAIT}["{name}"]'
    if name == PACKAGES:
        return PackagesRoute(limits=_Item(place, value, ("limits",)).read_limits())
    if isinstance(value, Mapping) and "hosts" in value and "url" not in value:
        item = _Item(place, value, ("hosts", "allow_private", "limits"))
        allow_private = item.read_flag("allow_private")
        return HostsRoute(
            name=name,
            hosts=item.read_list("hosts", (), _HOSTS, partial(_is_host, allow_private)),
            allow_private=allow_private,
            limits=item.read_limits(),
        )
    keys = ("url", "secret", "header", "methods", "paths", "variable", "allow_private")
    item = _Item(place, value, (*keys, "artifacts", "limits"))
    if "url" not in item.values:
        raise SettingError(
            place,
            sorted(item.values),
            'a mapping with "url" (one upstream) or "hosts" (names and ports)',
        )
    allow_private = item.read_flag("allow_private")
    secret = item.read("secret", None, _PLACE, _find_secret)
    url = item.read("url", "", _URL, partial(_find_url, allow_private), _has_no_token)
    variable = item.read("variable", None, _VARIABLE, _find_variable, lambda value: True)
    known = find_api_of_variable(variable) or find_api_of_host(url)
    header = DEFAULT_HEADER if known is None else known.header
    return UrlRoute(
        name=name,
        url=url,
        secret=secret,
        header=item.read(
            "header", None if secret is None else header, _HEADER, partial(_find_header, secret)
        ),
        methods=item.read_list("methods", METHODS, _METHODS, METHODS.__contains__),
        paths=item.read_list("paths", ("/**",), _PATHS, lambda it: find_pattern_fault(it) is None),
        variable=variable,
        allow_private=allow_private,
        artifacts=item.read_flag("artifacts"),
        limits=item.read_limits(),
    )


class _Item:
    """The description of a route. ``place`` names it in errors; ``keys`` are those that it may
    have. Each method raises SettingError for a value that is not accepted."""

    def __init__(self, place: str, values: object, keys: Iterable[str]) -> None:
        shown = ", ".join(f'"{key}"' for key in keys)
        if not isinstance(values, Mapping):
            raise SettingError(place, _shape(values), f"a mapping with some of the keys {shown}")
        for key in values:
            if key not in keys:
                # One that is short enough is a misspelt name, and no token.
                is_word = isinstance(key, str) and re.fullmatch("[a-zA-Z_]{1,20}", key)
                where = f"{place}: the key"
                raise SettingError(where, key if is_word else _shape(key), f"one of {shown}")
        self.place = place
        self.values = values

    def refuse(self, key: str, value: object, accepted: str, more: str = "") -> NoReturn:
        raise SettingError(f'{self.place}["{key}"]{more}', value, accepted)

    def read(
        self,
        key: str,
        default: D,
        accepted: str,
        find: Callable[[Any], T | None],
        is_shown: Callable[[object], bool] = lambda value: False,
    ) -> D | T:
        """Return what ``find`` makes of a value. ``is_shown``: whether it can be no secret."""
        value = self.values.get(key, default)
        if value is None and default is None:
            return default
        found = find(value)
        if found is None:
            self.refuse(key, value if is_shown(value) else _NOT_SHOWN, accepted)
        return found

    def read_list(
        self, key: str, default: tuple[str, ...], accepted: str, is_fine: Callable[[str], bool]
    ) -> tuple[str, ...]:
        """Return a list of texts, each once."""
        value = self.values.get(key, default)
        if not (
            isinstance(value, list | tuple)
            and 0 < len(value) <= MAX_PATTERNS
            and all(isinstance(item, str) and 0 < len(item) <= 512 for item in value)
        ):
            self.refuse(key, value, accepted)
        for i, item in enumerate(value):
            if not is_fine(item):
                self.refuse(key, item, accepted, f"[{i}]")
        return tuple(dict.fromkeys(value))

    def read_flag(self, key: str) -> bool:
        """Return a flag, which is not set by itself."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.refuse(key, value, "True or False")
        return value

    def read_limits(self) -> Limits:
        """Return the limits; ``Limits`` declares their bounds."""
        limits = {field.name: field for field in dataclasses.fields(Limits)}
        item = _Item(f'{self.place}["limits"]', self.values.get("limits", {}), limits)
        for name, number in item.values.items():
            default, bounds = limits[name].default, limits[name].metadata
            kinds: Any = int
            noun = "whole number"
            if isinstance(default, float):
                kinds, noun = int | float, "number of seconds"
            is_number = isinstance(number, kinds) and not isinstance(number, bool)
            if (number is None and default is None) or (
                is_number and bounds["least"] <= number <= bounds["most"]
            ):
                continue
            accepted = f"a {noun} from {bounds['least']} to {bounds['most']}"
            item.refuse(name, number, accepted + (", or None for no limit" * (default is None)))
        seconds = float(item.values.get("seconds", Limits.seconds))
        return Limits(**{**item.values, "seconds": seconds})


def _shape(value: object) -> str:
    """Describe a value for an error without showing it."""
    return _Words(f"a value of type {type(value).__name__}")


_URL = (
    'the URL of one upstream, such as "https://api.example.org/v1": https (or http, together with'
    ' "allow_private": True, as private addresses), a name or an address in its usual form,'
    " optionally a port and a path; no user, query or fragment"
)
_PLACE = (
    'where the secret is, not the secret itself: "env:NAME", "file:/absolute/path" or'
    ' "keyring:SERVICE/USER"'
)
_HEADER = (
    f'a header with {SECRET_MARK} in its value, such as "{DEFAULT_HEADER}", beside "secret"; not'
    " one of the connection or the body, such as Host"
)
_METHODS = f"a list of some of {', '.join(METHODS)}"
_PATHS = (
    'a list of patterns for the path after "url", such as ["/repos/acme/**", "/users/*"]: each'
    ' begins with "/"; "**" is any number of whole parts, "*" one part or a piece of one; at most'
    f' {MAX_PARTS} parts; no "//", "/../", ";" or backslash, and no encoded "/", "%" or "?"'
)
_HOSTS = (
    'a list of hosts with their ports, such as ["data.gov:443", "*.wikipedia.org:443"]: names in'
    ' lower case, "*." only before a name of two parts or more, plain addresses (private ones'
    ' together with "allow_private": True)'
)
_VARIABLE = (
    'the name of a variable that is set inside to the route\'s address, such as "MY_BASE_URL":'
    " capital letters, digits and _; not one of the sandbox's own, of Python or of the loader"
)


def _find_url(allow_private: bool, value: object) -> str | None:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,2000}", value):
        return None
    try:
        parts = urlsplit(value)
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError):
        return None
    host, path = parts.netloc, parts.path.rstrip("/")
    authority = host if parts.port is not None else f"{host}:{port}"
    is_fine = (
        (parts.scheme == "https" or allow_private)
        and host == host.lower()
        and _is_reachable(authority, allow_private)
        and f"{parts.scheme}://{host}{parts.path}" == value
        and not (parts.path and find_path_fault(parts.path.encode()))
        and len(path) <= MAX_TARGET // 4
    )
    return f"{parts.scheme}://{host}{path}" if is_fine else None


def _has_no_token(url: object) -> bool:
    """Return whether a URL has no user, query or fragment, each of which may be a token."""
    return isinstance(url, str) and not re.search(r"[@?#]", url)


def _find_secret(value: object) -> str | None:
    if not isinstance(value, str) or len(value) > MAX_SOURCE or not value.isprintable():
        return None
    kind, _, rest = value.partition(":")
    is_odd = kind == "file" and {"..", ".", ""} & set(rest.split("/")[1:])
    return value if _SOURCE.fullmatch(value) and not is_odd else None


def _find_header(secret: str | None, value: object) -> str | None:
    if secret is None or not isinstance(value, str) or not re.fullmatch(r"[ -~]{1,1000}", value):
        return None
    name, _, text = value.partition(":")
    if not _TOKEN.fullmatch(name) or name.lower() in _HOP_HEADERS:
        return None
    return f"{name}: {text.strip()}" if text.count(SECRET_MARK) == 1 else None


def _find_variable(value: object) -> str | None:
    is_fine = (
        isinstance(value, str)
        and _NAME.fullmatch(value)
        and value not in RESERVED_VARIABLES
        and not value.startswith(("KERNEL_", "LD_", "PYTHON", "GVISOR_EGRESS_"))
    )
    return str(value) if is_fine else None


def _is_host(allow_private: bool, pattern: str) -> bool:
    return is_host_pattern(pattern) and _is_reachable(pattern.removeprefix("*."), allow_private)


def _is_reachable(authority: str, allow_private: bool) -> bool:
    """Return whether a route may lead to ``host:port``, as far as is known without resolving."""
    found = split_authority(authority)
    if found is None:
        return False
    host, _ = found
    return not is_address(host) or judge(host, allow_private, literal=True) is None


# -- secrets that a kernel would see ---------------------------------------------------------------


def check_exposure(routes: Iterable[Route], spec: SandboxSpec, folder: Path) -> None:
    """Check that a kernel with ``spec`` in ``folder`` sees no secret of ``routes``, whether it uses
    them or not, nor the key by which it is saved.

    :raises SettingError: when it would see one
    """
    found = [
        (f"the secret of the route {route.name}", route.secret)
        for route in routes
        if isinstance(route, UrlRoute) and route.secret is not None
    ]
    for what, secret in (*found, ("the key of saved kernels", spec.hibernate_key)):
        kind, _, place = secret.partition(":")
        if kind == "env" and place in spec.environment:
            raise SettingError(
                "environment",
                list(spec.environment),
                f"a list without {place}, which is {what}: a kernel that has the route does not"
                " need the key",
            )
        if kind == "file":
            for setting, value, shown in find_shown(spec, folder):
                if is_within(real_path(place), real_path(shown)):
                    raise SettingError(
                        setting,
                        value,
                        f"a folder without {what}, or move the file {place} out of {shown}, which"
                        " this kernel sees",
                    )


def find_shown(spec: SandboxSpec, folder: Path) -> Iterator[tuple[str, object, str]]:
    """Yield the folders and files of a person that a kernel sees: setting, value, path.

    The notebook's folder is not shown if it is a home, or above one.
    """
    for name in ("uploads", "outputs"):
        value = getattr(spec, name)
        if value is not None:
            path = os.path.join(folder, value)  # noqa: PTH118 - an absolute value replaces folder
            if find_home(real_path(path)) is None:
                yield name, value, path
    if spec.skills is not None:
        skills = str(default_folder()) if spec.skills == INSTALLED_SKILLS else spec.skills
        for name in FOLDERS:
            yield "skills", spec.skills, os.path.join(skills, name)  # noqa: PTH118 - text
    for i, mount in enumerate(spec.mounts):
        yield f"mounts[{i}].source", mount.source, mount.source
