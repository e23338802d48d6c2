"""The variables by which a kernel's programs find its routes, or learn that there are none, in the
words of the door by which the kernel was started. Pure.

None of them is a secret, and none depends on the host: the same routes give the same variables.
They are set when a kernel starts or is restored, so no snapshot depends on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from gvisor_kernel.egress.kinds import (
    PackagesRoute,
    Route,
    UrlRoute,
    find_api_of_host,
    find_api_of_variable,
)
from gvisor_kernel.link.streams import EGRESS_PORT
from gvisor_kernel.spec.etc import HOSTNAME
from gvisor_kernel.spec.layout import HOME


@dataclass(frozen=True)
class Door:
    """``remedy``: what gives a kernel a network that has none. It is part of a status line: ASCII,
    at most 150 characters. ``giving``: what gives it the route NAME.
    """

    remedy: str
    giving: str


KERNELSPEC = re.compile(r"[a-z0-9._-]{1,24}")

JUPYTER = Door(
    "for packages, type on the host: gvisor-kernel install --update --egress packages; then shut it"
    " down and start it",
    'c.GVisorProvisioner.egress = ["NAME"], or gvisor-kernel install --egress NAME,',
)
PROGRAM = Door(
    'pass egress=["packages"] to Sandbox to give it packages', 'Sandbox(egress=["NAME"])'
)
MCP = Door(
    'ask the user to start this MCP server with --set egress=["packages"]',
    'gvisor-kernel mcp --set egress=["NAME"], which is the user\'s command,',
)

BASE = f"http://127.0.0.1:{EGRESS_PORT}"
PACKAGES_HOME = f"{HOME}/.venv"
"""Where pip and uv install; ``guest/installed.py`` makes it. It counts to the disk limit."""
REMEDY = "GVISOR_KERNEL_NO_NETWORK"
"""What to do about a kernel without routes; ``guest/refusals.py`` reads it."""
DUMMY_KEY = "gvisor-egress"
"""What clients get that refuse to start without a key. The route replaces it."""

_PROXY = {
    name: value
    for variable, value in (
        ("HTTP_PROXY", BASE),
        ("HTTPS_PROXY", BASE),
        ("NO_PROXY", f"localhost,{HOSTNAME},127.0.0.1,0.0.0.0,::1"),
    )
    for name in (variable, variable.lower())
}
"""In every kernel: a refusal says more than "Name or service not known", and comes at once.
Programs reach their own services also by the sandbox's name, or the address that they listen on."""

_QUIET = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "npm_config_audit": "false",
    "npm_config_fund": "false",
    "npm_config_update_notifier": "false",
}

_WITHOUT = {
    # pip shows why a CONNECT was refused in the warning before a second attempt, and only there.
    "PIP_RETRIES": "1",
    "PIP_DEFAULT_TIMEOUT": "5",
    "UV_HTTP_RETRIES": "0",
    "UV_HTTP_TIMEOUT": "5",
    "npm_config_fetch_retries": "0",
}

_DEFAULTS = {
    REMEDY: "",
    "PIP_RETRIES": "5",
    "PIP_DEFAULT_TIMEOUT": "15",
    "UV_HTTP_RETRIES": "3",
    "UV_HTTP_TIMEOUT": "30",
    "UV_DEFAULT_INDEX": "https://pypi.org/simple",
    "npm_config_fetch_retries": "2",
}
"""The own values of the tools. A kernel with routes may come from a snapshot, whose kernel had
none: its variables can be replaced then, but not removed."""

_PACKAGES = {
    "GVISOR_KERNEL_PACKAGES": PACKAGES_HOME,
    # Configuration of the image's pip may name indexes that only the host reaches.
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_INDEX_URL": f"{BASE}/packages/pypi/simple/",
    # The host has tried again already.
    "PIP_RETRIES": "1",
    "PIP_DEFAULT_TIMEOUT": "120",
    "UV_HTTP_RETRIES": "1",
    "UV_HTTP_TIMEOUT": "120",
    # The host keeps what was downloaded: a copy here would take memory and the disk limit.
    "PIP_NO_CACHE_DIR": "1",
    "UV_DEFAULT_INDEX": f"{BASE}/packages/uv/simple/",
    "UV_PYTHON_DOWNLOADS": "never",
    "npm_config_registry": f"{BASE}/packages/npm/",
    # Addresses of this route mean nothing elsewhere, so they do not belong in a lock file.
    "npm_config_omit_lockfile_registry_resolved": "true",
}


def name_door(door: Door, kernelspec: str) -> Door:
    """Return ``door``, with the kernelspec of the kernel in its command where there is room."""
    if door is not JUPYTER or not KERNELSPEC.fullmatch(kernelspec):
        return door
    return Door(door.remedy.replace("--update", f"--update --name {kernelspec}"), door.giving)


def egress_environment(routes: Iterable[Route], door: Door = JUPYTER) -> dict[str, str]:
    """Return all variables for a kernel that has ``routes``, and was started by ``door``."""
    routes = list(routes)
    if not routes:
        return no_egress_environment(door)
    environment = {**_PROXY, **_QUIET, **_DEFAULTS}
    for route in routes:
        if isinstance(route, UrlRoute):
            environment.update(_announce(route))
        elif isinstance(route, PackagesRoute):
            environment.update(_PACKAGES)
    return environment


def no_egress_environment(door: Door = JUPYTER) -> dict[str, str]:
    """Return the variables for a kernel without routes: attempts fail soon, and say why."""
    # uv shows neither a reason nor a body, but the address of the index that refused.
    words = re.sub(r"[^\w.=]+", "-", door.remedy)
    index = f"{BASE}/this-kernel-has-no-network/{words}"
    return {**_PROXY, **_QUIET, **_WITHOUT, "UV_DEFAULT_INDEX": index, REMEDY: door.remedy}


def _announce(route: UrlRoute) -> dict[str, str]:
    address = f"{BASE}/{route.name}"
    environment = {f"GVISOR_EGRESS_{route.name.upper().replace('-', '_')}": address}
    known = find_api_of_host(route.url)
    if known is not None:
        base = urlsplit(route.url).path.rstrip("/")
        if base in ("", known.path):  # otherwise the client's own paths do not fit this route
            environment[known.variable] = address if base == known.path else address + known.path
            if known.key is not None:
                environment[known.key] = DUMMY_KEY
    if route.variable is not None:
        environment[route.variable] = address
        known = find_api_of_variable(route.variable)
        if known is not None and known.key is not None:
            environment[known.key] = DUMMY_KEY
    return environment
