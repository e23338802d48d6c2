"""The settings of egress: the routes that exist, and the names of those that a kernel may use.

Which routes exist is Jupyter's configuration's alone (``c.GVisorEgress.routes``). No kernelspec and
no client is read here. A kernel's setting ``egress`` chooses among the routes by name.
"""

from __future__ import annotations

import inspect
import re
from typing import Any as AnyValue

from traitlets import Any
from traitlets.config import Config, Configurable

from gvisor_kernel.config.validators import accept_strings, parse_value
from gvisor_kernel.errors import SettingError, UnknownSetting

ROUTE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
ROUTE_NAME_RULE = 'a lower-case letter, then at most 31 lower-case letters, digits and "-"'
MAX_ROUTES = 64
"""Routes of one kernel, and routes that exist."""


class _Routes(Any):
    """A trait that stores any value; ``egress/routes.py`` validates it."""

    def default(self, obj: AnyValue = None) -> dict[str, AnyValue]:
        """Return a new empty mapping. Called by traitlets, once for each instance."""
        return {}

    def from_string(self, s: str) -> AnyValue:
        """Parse a value from Jupyter's command line."""
        return parse_value(s)


class GVisorEgress(Configurable):
    """The routes by which kernels may reach the network.

    The constructor accepts wrong names and values: ``read_routes`` raises for them.
    """

    routes = _Routes(
        help=inspect.cleandoc(
            """The routes that exist, by name. A kernel can use those that its setting "egress"
            names, and nothing else. Each is a mapping with "url" (one upstream, whose key stays
            outside the sandbox) or with "hosts" (names and ports to connect to). The route
            "packages" exists always. See docs/egress.md."""
        )
    ).tag(config=True)

    def __init__(self, config: Config | None = None) -> None:
        section = {} if config is None else config.get("GVisorEgress", {})
        self._unknown = [name for name in section if name != "routes"]
        own = {"routes": section["routes"]} if "routes" in section else {}
        super().__init__(config=Config({"GVisorEgress": own}))

    def configured_routes(self) -> object:
        """Return the value of ``routes``, not validated yet.

        :raises UnknownSetting: when the configuration has another name for this class
        """
        for name in self._unknown:  # its value may contain a secret
            raise UnknownSetting(f"c.GVisorEgress.{name}", "not shown", ["c.GVisorEgress.routes"])
        return self.routes


def accept_egress(name: str, value: object) -> tuple[str, ...]:
    """Return the names of routes, each once. Whether they exist is checked when a plan is made.

    :raises SettingError: when they are too many, or one cannot be the name of a route
    """
    accepted = f'a list of at most {MAX_ROUTES} names of routes, such as ["packages"]'
    names = accept_strings(name, value, accepted)
    if len(names) > MAX_ROUTES:
        raise SettingError(name, value, accepted)
    for i, item in enumerate(names):
        if not ROUTE_NAME.fullmatch(item):
            raise SettingError(f"{name}[{i}]", item, f"the name of a route: {ROUTE_NAME_RULE}")
    return tuple(dict.fromkeys(names))


def check_subset(name: str, chosen: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Check that a kernelspec chooses only routes that Jupyter's configuration gives to kernels.

    :raises SettingError: when it chooses another one
    """
    more = [item for item in chosen if item not in allowed]
    if more:
        shown = ", ".join(allowed) or "none"
        raise SettingError(
            name,
            list(chosen),
            f"routes that c.GVisorProvisioner.{name} in Jupyter's configuration allows to all"
            f" kernels ({shown}), or ask the administrator to add {', '.join(more)} there",
        )
