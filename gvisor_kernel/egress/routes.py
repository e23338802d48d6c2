"""Reads routes from the configuration and validates them. Opens no file and no connection.

Values that may be a secret by mistake, such as a key in the place of its source, are not shown in
errors. The kinds of routes are in ``kinds.py``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
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

MAX_PATTERNS = 256
"""Patterns and hosts of one route."""
MAX_SOURCE = 1024
"""Characters of the place of a secret."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_SECRET = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|keyring:.+/.+")
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


def _parse_route(name: str, item: object) -> Route:
    place = f'{_TRAIT}["{name}"]'
    if name == PACKAGES:
        item = _check_keys(place, item, ("limits",))
        return PackagesRoute(limits=_parse_limits(place, item))
    if isinstance(item, Mapping) and "hosts" in item and "url" not in item:
        item = _check_keys(place, item, ("hosts", "allow_private", "limits"))
        allow_private = _parse_flag(place, item)
        return HostsRoute(
            name=name,
            hosts=_parse_hosts(f'{place}["hosts"]', item["hosts"], allow_private),
            allow_private=allow_private,
            limits=_parse_limits(place, item),
        )
    keys = ("url", "secret", "header", "methods", "paths", "variable", "allow_private")
    item = _check_keys(place, item, (*keys, "artifacts", "limits"))
    if "url" not in item:
        raise SettingError(
            place, sorted(item), 'a mapping with "url" (one upstream) or "hosts" (names and ports)'
        )
    allow_private = _parse_flag(place, item)
    secret = _parse_secret(f'{place}["secret"]', item.get("secret"))
    url = _parse_url(f'{place}["url"]', item["url"], allow_private)
    variable = _parse_variable(f'{place}["variable"]', item.get("variable"))
    known = find_api_of_variable(variable) or find_api_of_host(url)
    header = DEFAULT_HEADER if known is None else known.header
    header = item.get("header", None if secret is None else header)
    return UrlRoute(
        name=name,
        url=url,
        secret=secret,
        header=_parse_header(f'{place}["header"]', header, secret),
        methods=_parse_methods(f'{place}["methods"]', item.get("methods", METHODS)),
        paths=_parse_paths(f'{place}["paths"]', item.get("paths", ("/**",))),
        variable=variable,
        allow_private=allow_private,
        artifacts=_parse_flag(place, item, "artifacts"),
        limits=_parse_limits(place, item),
    )


def _shape(value: object) -> str:
    """Describe a value for an error without showing it."""
    return _Words(f"a value of type {type(value).__name__}")


def _check_keys(place: str, item: object, keys: tuple[str, ...]) -> Mapping[str, Any]:
    shown = ", ".join(f'"{key}"' for key in keys)
    if not isinstance(item, Mapping):
        raise SettingError(place, _shape(item), f"a mapping with some of the keys {shown}")
    for key in item:
        if key not in keys:
            raise SettingError(
                f"{place}: the key", key if _is_word(key) else _shape(key), f"one of {shown}"
            )
    return item


def _is_word(key: object) -> bool:
    """Return whether a key is short enough to be a misspelt name, and no token."""
    return isinstance(key, str) and re.fullmatch("[a-zA-Z_]{1,20}", key) is not None


def _parse_url(place: str, value: object, allow_private: bool) -> str:
    accepted = (
        'the URL of one upstream, such as "https://api.example.org/v1": https (or http, together'
        ' with "allow_private": True, as private addresses), a name or an address in its usual'
        " form, optionally a port and a path; no user, query or fragment"
    )

    def refuse() -> NoReturn:
        # A user, a query or a fragment may be a token.
        shown = isinstance(value, str) and not re.search(r"[@?#]", value)
        raise SettingError(place, value if shown else _NOT_SHOWN, accepted)

    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,2000}", value):
        refuse()
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        refuse()
    default = {"https": 443, "http": 80}.get(parts.scheme)
    if default is None or (parts.scheme == "http" and not allow_private):
        refuse()
    authority = parts.netloc if port is not None else f"{parts.netloc}:{default}"
    if parts.netloc != parts.netloc.lower() or not _is_reachable(authority, allow_private):
        refuse()
    path = parts.path.rstrip("/")
    if f"{parts.scheme}://{parts.netloc}{parts.path}" != value:
        refuse()
    if (parts.path and find_path_fault(parts.path.encode())) or len(path) > MAX_TARGET // 4:
        refuse()
    return f"{parts.scheme}://{parts.netloc}{path}"


def _parse_secret(place: str, value: object) -> str | None:
    if value is None:
        return None
    if (
        isinstance(value, str)
        and len(value) <= MAX_SOURCE
        and value.isprintable()
        and _SECRET.fullmatch(value)
    ):
        kind, _, rest = value.partition(":")
        if kind != "file" or not {"..", ".", ""} & set(rest.split("/")[1:]):
            return value
    raise SettingError(
        place,
        _NOT_SHOWN,
        'where the secret is, not the secret itself: "env:NAME", "file:/absolute/path" or'
        ' "keyring:SERVICE/USER"',
    )


def _parse_header(place: str, value: object, secret: str | None) -> str | None:
    accepted = (
        f'a header with {SECRET_MARK} in its value, such as "{DEFAULT_HEADER}", beside "secret";'
        " not one of the connection or the body, such as Host"
    )
    if value is None and secret is None:
        return None
    if isinstance(value, str) and secret is not None and re.fullmatch(r"[ -~]{1,1000}", value):
        name, colon, text = value.partition(":")
        if (
            colon
            and _TOKEN.fullmatch(name)
            and name.lower() not in _HOP_HEADERS
            and text.count(SECRET_MARK) == 1
        ):
            return f"{name}: {text.strip()}"
    raise SettingError(place, _NOT_SHOWN, accepted)


def _parse_list(place: str, value: object, accepted: str) -> tuple[str, ...]:
    if (
        isinstance(value, list | tuple)
        and 0 < len(value) <= MAX_PATTERNS
        and all(isinstance(item, str) and 0 < len(item) <= 512 for item in value)
    ):
        return tuple(dict.fromkeys(value))
    raise SettingError(place, value, accepted)


def _parse_each(
    place: str, value: object, accepted: str, is_fine: Callable[[str], bool]
) -> tuple[str, ...]:
    items = _parse_list(place, value, accepted)
    for i, item in enumerate(items):
        if not is_fine(item):
            raise SettingError(f"{place}[{i}]", item, accepted)
    return items


def _parse_methods(place: str, value: object) -> tuple[str, ...]:
    accepted = f"a list of some of {', '.join(METHODS)}"
    return _parse_each(place, value, accepted, METHODS.__contains__)


def _parse_paths(place: str, value: object) -> tuple[str, ...]:
    accepted = (
        'a list of patterns for the path after "url", such as ["/repos/acme/**", "/users/*"]: each'
        ' begins with "/"; "**" is any number of whole parts, "*" one part or a piece of one; at'
        f' most {MAX_PARTS} parts; no "//", "/../", ";" or backslash, and no encoded "/", "%" or'
        ' "?"'
    )
    return _parse_each(place, value, accepted, lambda item: find_pattern_fault(item) is None)


def _parse_hosts(place: str, value: object, allow_private: bool) -> tuple[str, ...]:
    accepted = (
        'a list of hosts with their ports, such as ["data.gov:443", "*.wikipedia.org:443"]: names'
        ' in lower case, "*." only before a name of two parts or more, plain addresses'
        ' (private ones together with "allow_private": True)'
    )
    return _parse_each(
        place,
        value,
        accepted,
        lambda item: (
            is_host_pattern(item) and _is_reachable(item.removeprefix("*."), allow_private)
        ),
    )


def _is_reachable(authority: str, allow_private: bool) -> bool:
    """Return whether a route may lead to ``host:port``, as far as is known without resolving."""
    found = split_authority(authority)
    if found is None:
        return False
    host, _ = found
    return not is_address(host) or judge(host, allow_private, literal=True) is None


def _parse_variable(place: str, value: object) -> str | None:
    if value is None:
        return None
    if (
        isinstance(value, str)
        and _VARIABLE.fullmatch(value)
        and value not in RESERVED_VARIABLES
        and not value.startswith(("KERNEL_", "LD_", "PYTHON", "GVISOR_EGRESS_"))
    ):
        return value
    raise SettingError(
        place,
        value,
        'the name of a variable that is set inside to the route\'s address, such as "MY_BASE_URL":'
        " capital letters, digits and _; not one of the sandbox's own, of Python or of the loader",
    )


def _parse_flag(place: str, item: Mapping[str, Any], name: str = "allow_private") -> bool:
    value = item.get(name, False)
    if isinstance(value, bool):
        return value
    raise SettingError(f'{place}["{name}"]', value, "True or False")


def _parse_limits(place: str, item: Mapping[str, Any]) -> Limits:
    place = f'{place}["limits"]'
    limits = {field.name: field for field in dataclasses.fields(Limits)}
    value = _check_keys(place, item.get("limits", {}), tuple(limits))
    for name, number in value.items():
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
        accepted += ", or None for no limit" if default is None else ""
        raise SettingError(f'{place}["{name}"]', number, accepted)
    return Limits(**{**value, "seconds": float(value.get("seconds", Limits.seconds))})


# -- secrets that a kernel would see ---------------------------------------------------------------


def check_exposure(routes: Iterable[Route], spec: SandboxSpec, folder: Path) -> None:
    """Check that a kernel with ``spec`` in ``folder`` sees no secret of ``routes``, whether it uses
    them or not.

    :raises SettingError: when it would see one
    """
    for route in routes:
        if not isinstance(route, UrlRoute) or route.secret is None:
            continue
        kind, _, place = route.secret.partition(":")
        if kind == "env" and place in spec.environment:
            raise SettingError(
                "environment",
                list(spec.environment),
                f"a list without {place}, which is the secret of the route {route.name}: a kernel"
                " that has the route does not need the key",
            )
        if kind == "file":
            for setting, value, shown in find_shown(spec, folder):
                if is_within(real_path(place), real_path(shown)):
                    raise SettingError(
                        setting,
                        value,
                        f"a folder without the secret of the route {route.name}, or move the file"
                        f" {place} out of {shown}, which this kernel sees",
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
