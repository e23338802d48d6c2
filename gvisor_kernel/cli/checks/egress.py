"""The check of routes to the network: their configuration, and whether secrets can be read."""

from __future__ import annotations

from gvisor_kernel.cli.egress import find_users
from gvisor_kernel.egress.forward import MIN_SECRET
from gvisor_kernel.egress.kinds import UrlRoute
from gvisor_kernel.errors import SecretError
from gvisor_kernel.host.secrets import read_secret
from gvisor_kernel.jupyter.plan_factory import find_routes, read_configuration
from gvisor_kernel.runtimes.checks import Check, State, failed, ok, warning


def check_egress() -> list[Check]:
    """Check the configured routes, and each kernelspec's settings with the configuration's.

    A secret that cannot be read is a failure if a kernelspec uses its route; one that is too short
    to be masked is a warning. Returns no results if nothing is configured and no kernelspec uses a
    route.

    :raises SettingError: when the configuration of routes is wrong
    """
    config = read_configuration()
    routes, users = find_routes(config), find_users(config)
    checks = [
        failed(error.fact.rstrip("."), error.hint, name=f"settings of {name}")
        for name, error in users.broken.items()
    ]
    for name, route in routes.items():
        used = users.by_route.get(name, [])
        if not isinstance(route, UrlRoute) or route.secret is None:
            continue
        try:
            secret = read_secret(route.secret)
        except SecretError as error:
            state: State = "failed" if used else "warning"
            fact = f"its secret cannot be read by this process: {error.fact.rstrip('.')}"
            checks.append(Check(f"route {name}", state, fact, error.hint))
            continue
        if len(secret) < MIN_SECRET:
            fact = f"its secret has fewer than {MIN_SECRET} bytes, and is not masked in answers"
            checks.append(warning(fact, "use a longer secret.", name=f"route {name}"))
    if checks:
        return checks
    if len(routes) == 1 and not users.by_route:
        return []
    return [ok(f"{', '.join(routes)}: all secrets can be read")]
