"""The setting ``egress``: the names of the routes to the network that a kernel may use.

Which routes exist is Jupyter's configuration's alone: ``jupyter_config.GVisorEgress``.
"""

from __future__ import annotations

import re

from gvisor_kernel.config.validators import accept_strings
from gvisor_kernel.errors import SettingError

ROUTE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
ROUTE_NAME_RULE = 'a lower-case letter, then at most 31 lower-case letters, digits and "-"'
MAX_ROUTES = 64
"""Routes of one kernel, and routes that exist."""


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
