"""Finds which package indexes pip, uv and npm of this user are configured with. Only reads.

Configuration of a project (``pyproject.toml`` or ``.npmrc`` in a folder) is not read: a kernel may
have written it. The result has credentials, so it stays in the worker, and ``repr`` hides them.
"""

from __future__ import annotations

import base64
import configparser
import logging
import netrc
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

# by path: configuration files of this user and of the system

log = logging.getLogger(__name__)

PYPI = "https://pypi.org/simple/"
NPM = "https://registry.npmjs.org/"
ETC = Path("/etc")
MAX_CONFIGURATION = 1024 * 1024
_PREFIXES = ("PIP_", "UV_", "NPM_CONFIG_")
_NAMES = (
    *("HOME", "NETRC", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NPM_TOKEN", "NODE_AUTH_TOKEN"),
)


@dataclass(frozen=True)
class Index:
    """One index or registry. ``url`` ends with "/" and has no credentials.

    ``authorization``: the value of that header for requests to the index's own origin.
    ``verify``: whether its certificate is checked. ``ca``: a file of certificates to trust.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)
    verify: bool = True
    ca: str | None = None

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return origin_of(self.url)


@dataclass(frozen=True)
class Indexes:
    """The indexes of one tool, in its order.

    ``merged``: files of all indexes are offered together, as pip does. Otherwise the first index
    that has a package decides, as with uv.
    """

    indexes: tuple[Index, ...]
    merged: bool = True


@dataclass(frozen=True)
class Registries:
    """npm's registries: the default, and those of scopes such as "@acme"."""

    default: Index
    scopes: Mapping[str, Index] = field(default_factory=dict)

    def find(self, package: str) -> Index:
        """Return the registry of ``package``."""
        scope = package.partition("/")[0] if package.startswith("@") else ""
        return self.scopes.get(scope, self.default)


@dataclass(frozen=True)
class Configuration:
    """The indexes of each tool."""

    pip: Indexes
    uv: Indexes
    npm: Registries

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Configuration:
        """Read the configuration of this user's tools. Blocks."""
        pip = read_pip(environment)
        return cls(pip, read_uv(environment, pip), read_npm(environment))

    def find_indexes(self, tool: str) -> Indexes:
        """Return the indexes of "pypi", which is pip, or "uv"."""
        return self.pip if tool == "pypi" else self.uv

    def list_indexes(self, tool: str) -> tuple[Index, ...]:
        """Return all indexes of a tool, or of "npm"."""
        if tool == "npm":
            return (self.npm.default, *self.npm.scopes.values())
        return self.find_indexes(tool).indexes


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL.

    :raises ValueError: when the URL has none
    """
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValueError("not a URL of http or https with a host")
    return parts.scheme, parts.hostname.lower(), port


def find_configuration_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the configuration of pip, uv and npm consists of or refers to."""
    wanted = set(_NAMES)
    for path in _npmrc_files(environment):
        wanted.update(re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\??\}", _read_text(path)))
    return {
        name: value
        for name, value in environment.items()
        if name.upper() in wanted or name in wanted or name.upper().startswith(_PREFIXES)
    }


# -- pip -------------------------------------------------------------------------------------------


def read_pip(environment: Mapping[str, str], prefix: str = sys.prefix) -> Indexes:
    """Return the indexes of pip: its configuration files, then its variables.

    ``prefix``: the environment whose own ``pip.conf`` counts.
    """
    values = _read_pip_values(environment, prefix)
    ca = values.get("cert") or environment.get("REQUESTS_CA_BUNDLE")
    ca = ca or environment.get("CURL_CA_BUNDLE") or environment.get("SSL_CERT_FILE")
    trusted = values.get("trusted-host", "").split()
    if values.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        return Indexes(())
    urls = [values.get("index-url", "").strip() or PYPI, *values.get("extra-index-url", "").split()]
    return Indexes(_make_indexes(urls, environment, ca, trusted))


def _read_pip_values(environment: Mapping[str, str], prefix: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for path in _pip_files(environment, prefix):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(_read_text(path))
        except configparser.Error as error:
            log.warning("%s is not read: %s", path, type(error).__name__)
            continue
        for section in ("global", "download", "install"):
            if parser.has_section(section):
                values.update({k.replace("_", "-"): v for k, v in parser.items(section)})
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            values[name[4:].lower().replace("_", "-")] = value
    return values


def _pip_files(environment: Mapping[str, str], prefix: str) -> list[Path]:
    own = environment.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    home = Path(environment.get("HOME") or "/nonexistent")
    system = [*reversed(_config_directories(environment))]
    files = [*(directory / "pip" / "pip.conf" for directory in system), ETC / "pip.conf"]
    files += [home / ".pip" / "pip.conf", _config_home(environment) / "pip" / "pip.conf"]
    files.append(Path(prefix) / "pip.conf")
    return [*files, Path(own)] if own else files


# -- uv --------------------------------------------------------------------------------------------


def read_uv(environment: Mapping[str, str], pip: Indexes) -> Indexes:
    """Return the indexes of uv; those of ``pip`` if uv is not configured with any."""
    content: dict[str, Any] = {}
    own = environment.get("UV_CONFIG_FILE")
    files = [Path(own)] if own else _uv_files(environment)
    for path in files if environment.get("UV_NO_CONFIG", "") in ("", "0", "false") else ():
        try:
            content = {**content, **tomllib.loads(_read_text(path))}
        except tomllib.TOMLDecodeError:
            log.warning("%s is not read: it is not TOML", path)
    try:
        urls, strategy, insecure = _read_uv_urls(content, environment)
    except (TypeError, ValueError, AttributeError, KeyError):
        log.warning("The configuration of uv is not as uv documents it; pip's is used.")
        return pip
    if not urls:
        return pip
    ca = environment.get("SSL_CERT_FILE")
    merged = strategy in ("unsafe-best-match", "unsafe-first-match")
    return Indexes(_make_indexes(urls, environment, ca, insecure), merged=merged)


def _read_uv_urls(
    content: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[list[str], str, list[str]]:
    pip = content.get("pip", {})
    default: str | None = None
    urls: list[str] = []
    for entry in content.get("index", ()):
        url = _with_uv_credentials(entry["url"], entry.get("name"), environment)
        if entry.get("default"):
            default = url
        elif not entry.get("explicit"):
            urls.append(url)
    default = default or content.get("index-url") or pip.get("index-url")
    urls += [*content.get("extra-index-url", ()), *pip.get("extra-index-url", ())]
    named = environment.get("UV_INDEX", "").split()
    urls = [
        *(_with_uv_credentials(*_split_name(word), environment) for word in named),
        *environment.get("UV_EXTRA_INDEX_URL", "").split(),
        *urls,
    ]
    chosen = environment.get("UV_DEFAULT_INDEX")
    if chosen:
        default = _with_uv_credentials(*_split_name(chosen), environment)
    default = default or environment.get("UV_INDEX_URL")
    if not urls and not default:
        return [], "", []
    strategy = environment.get("UV_INDEX_STRATEGY") or content.get("index-strategy") or ""
    insecure = environment.get("UV_INSECURE_HOST", "").split()
    insecure += content.get("allow-insecure-host", [])
    return [*map(str, urls), str(default or PYPI)], str(strategy), insecure


def _split_name(word: str) -> tuple[str, str | None]:
    name, mark, url = word.partition("=")
    return (url, name) if mark and re.fullmatch(r"[\w.-]+", name) else (word, None)


def _with_uv_credentials(url: str, name: str | None, environment: Mapping[str, str]) -> str:
    key = re.sub(r"[^A-Z0-9]", "_", (name or "").upper())
    user = environment.get(f"UV_INDEX_{key}_USERNAME") if name else None
    password = environment.get(f"UV_INDEX_{key}_PASSWORD") if name else None
    parts = urlsplit(url)
    if user is None and password is None:
        return url
    login = ":".join(quote(word or "", safe="") for word in (user, password))
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}"))


def _uv_files(environment: Mapping[str, str]) -> list[Path]:
    directories = [*reversed(_config_directories(environment)), ETC]
    system = next((d / "uv/uv.toml" for d in directories if (d / "uv/uv.toml").exists()), None)
    own = _config_home(environment) / "uv" / "uv.toml"
    return [own] if system is None else [system, own]


# -- npm -------------------------------------------------------------------------------------------


def read_npm(environment: Mapping[str, str]) -> Registries:
    """Return npm's registries, with the tokens of the user's and the machine's ``.npmrc``."""
    values: dict[str, str] = {}
    for path in _npmrc_files(environment):
        for line in _read_text(path).splitlines():
            key, mark, value = line.strip().partition("=")
            if mark and not key.startswith(("#", ";")):
                values[key.strip()] = _expand(value.strip().strip("\"'"), environment)
    for name, value in environment.items():
        if name.lower().startswith("npm_config_") and value:
            key = name[len("npm_config_") :]
            values[key if key.startswith(("//", "@")) else key.lower().replace("_", "-")] = value
    verify = values.get("strict-ssl", "true") != "false"
    ca = values.get("cafile") or environment.get("NODE_EXTRA_CA_CERTS")

    def make(url: str) -> Index | None:
        made = _make_index(url, {}, ca, ())
        if made is None:
            return None
        token = _find_npm_authorization(made.url, values)
        return Index(made.url, token or made.authorization, verify, ca)

    scopes = {
        key.removesuffix(":registry"): index
        for key, value in values.items()
        if key.startswith("@") and key.endswith(":registry") and (index := make(value))
    }
    return Registries(make(values.get("registry", NPM)) or Index(NPM, None, verify, ca), scopes)


def _npmrc_files(environment: Mapping[str, str]) -> list[Path]:
    lower = {name.lower(): value for name, value in environment.items()}
    home = Path(environment.get("HOME") or "/nonexistent")
    system = lower.get("npm_config_globalconfig") or ETC / "npmrc"
    return [Path(system), Path(lower.get("npm_config_userconfig") or home / ".npmrc")]


def _find_npm_authorization(url: str, values: Mapping[str, str]) -> str | None:
    """Return what npm would send to ``url``: the entry of the longest path that holds it."""
    rest = "//" + url.partition("://")[2]
    while len(rest) > 2:
        for key in (rest, rest.rstrip("/")):
            if token := values.get(f"{key}:_authToken"):
                return f"Bearer {token}"
            if basic := values.get(f"{key}:_auth"):
                return f"Basic {basic}"
            user, password = values.get(f"{key}:username"), values.get(f"{key}:_password")
            if user and password:
                plain = base64.b64decode(password + "==", validate=False)
                return _basic(user.encode() + b":" + plain)
        rest = rest.rstrip("/").rpartition("/")[0] + "/"
    return None


def _expand(value: str, environment: Mapping[str, str]) -> str:
    return re.sub(
        r"\$\{([A-Za-z_][A-Za-z0-9_]*)\??\}", lambda m: environment.get(m[1], m[0]), value
    )


# -- common ----------------------------------------------------------------------------------------


def _make_indexes(
    urls: Iterable[str], environment: Mapping[str, str], ca: str | None, trusted: Iterable[str]
) -> tuple[Index, ...]:
    made = (_make_index(url, environment, ca, tuple(trusted)) for url in urls)
    return tuple(dict.fromkeys(index for index in made if index is not None))


def _make_index(
    url: str, environment: Mapping[str, str], ca: str | None, trusted: tuple[str, ...]
) -> Index | None:
    try:
        _, host, port = origin_of(url)
    except ValueError:
        log.warning("An index is left out: it is not a URL of http or https.")
        return None
    parts = urlsplit(url)
    login = _find_netrc(host, environment)
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    clean = parts._replace(
        netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/") + "/", fragment=""
    )
    authorization = None if login is None else _basic(login.encode())
    verify = not {host, f"{host}:{port}"} & {entry.lower() for entry in trusted}
    return Index(urlunsplit(clean), authorization, verify, ca)


def _find_netrc(host: str, environment: Mapping[str, str]) -> str | None:
    """Return user and password for a host."""
    home = environment.get("HOME") or "/nonexistent"
    path = Path(environment.get("NETRC") or Path(home) / ".netrc")
    try:
        found = netrc.netrc(str(path)).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
    return f"{found[0]}:{found[2]}" if found else None


def _basic(plain: bytes) -> str:
    return "Basic " + base64.b64encode(plain).decode("ascii")


def _config_home(environment: Mapping[str, str]) -> Path:
    home = Path(environment.get("HOME") or "/nonexistent")
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config")


def _config_directories(environment: Mapping[str, str]) -> list[Path]:
    return [Path(p) for p in (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if p]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CONFIGURATION).decode("utf-8", "replace")
    except OSError:
        return ""
