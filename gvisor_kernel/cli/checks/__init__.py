"""The checks of ``doctor``: functions that return one or more Checks. Nothing here prints.

``CHECKS`` lists all of them and how long each may take.
"""

from __future__ import annotations

from collections.abc import Callable

from gvisor_kernel.cli.bounded import call_within
from gvisor_kernel.cli.checks.base import Check
from gvisor_kernel.cli.checks.cluster import check_chosen_clusters, check_clusters
from gvisor_kernel.cli.checks.egress import check_egress
from gvisor_kernel.cli.checks.host import check_cgroups, check_platform, check_seccomp, check_userns
from gvisor_kernel.cli.checks.jupyter import (
    check_kernelspecs,
    check_others,
    check_provisioner,
    check_pythons,
)
from gvisor_kernel.cli.checks.kernel import check_kernel
from gvisor_kernel.cli.checks.nodes import SECONDS, check_engines, check_nodes, make_check
from gvisor_kernel.cli.checks.reach import check_reach
from gvisor_kernel.cli.checks.runsc import check_runsc
from gvisor_kernel.cli.checks.servers import check_servers
from gvisor_kernel.cli.checks.shown import check_shown
from gvisor_kernel.cli.checks.state import check_leftovers, check_state
from gvisor_kernel.errors import GvisorKernelError

CHECKS: tuple[tuple[str, float, Callable[[], Check | list[Check]]], ...] = (
    ("runsc", 10, check_runsc),
    ("platform", 20, check_platform),
    ("user namespaces", 10, check_userns),
    ("seccomp", 5, check_seccomp),
    ("cgroups", 5, check_cgroups),
    ("python", 20, check_pythons),
    ("host files", 20, check_shown),
    ("provisioner", 5, check_provisioner),
    ("kernelspecs", 5, check_kernelspecs),
    ("other kernelspecs", 5, check_others),
    ("running kernels", 20, check_servers),
    ("pages of servers", 20, check_reach),
    ("routes", 10, check_egress),
    ("state directory", 5, check_state),
    ("leftovers", 5, check_leftovers),
    ("docker", 10, check_engines),
    ("other machines", SECONDS, check_nodes),
    ("kubernetes", 30, check_clusters),
    ("kernel", 40, check_kernel),
)
"""The name, the time limit in seconds, and the function."""

OF_RUNTIMES: dict[str, tuple[str, float, Callable[[], Check | list[Check]]]] = {
    "kubernetes": ("kubernetes", 30, check_chosen_clusters),
    "slurm": ("slurm", SECONDS, make_check("slurm")),
    "ssh": ("ssh", SECONDS, make_check("ssh")),
}
"""What ``--runtime`` checks in their place, also if no kernelspec has that runtime."""


def run_check(
    name: str, seconds: float, function: Callable[[], Check | list[Check]]
) -> list[Check]:
    """Run a check and return its results. A timeout or an exception becomes a failed Check."""
    try:
        result = call_within(seconds, function)
    except TimeoutError as error:
        return [
            Check(name, "failed", str(error), "look for a file system that does not answer: df")
        ]
    except GvisorKernelError as error:
        return [Check(name, "failed", error.fact, error.hint)]
    except Exception as error:
        return [
            Check(
                name,
                "failed",
                f"the check itself raised {type(error).__name__}: {error}",
                "please report this as a bug of gvisor-kernel",
            )
        ]
    return result if isinstance(result, list) else [result]
