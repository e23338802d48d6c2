"""``doctor``: one line for each check, followed by a fix if the check did not pass."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TypeAlias

from gvisor_kernel.cli.arguments import add_json
from gvisor_kernel.cli.bounded import call_within
from gvisor_kernel.cli.checks import Check, failed
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
from gvisor_kernel.cli.output import make_console, print_json
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.shown_text import printable_name

WORDS = {"ok": "OK", "warning": "WARN", "failed": "FAIL"}
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


Function: TypeAlias = Callable[[], "Check | list[Check]"]

CHECKS: tuple[tuple[str, float, Function], ...] = (
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

OF_RUNTIMES: dict[str, tuple[str, float, Function]] = {
    "kubernetes": ("kubernetes", 30, check_chosen_clusters),
    "slurm": ("slurm", SECONDS, make_check("slurm")),
    "ssh": ("ssh", SECONDS, make_check("ssh")),
}
"""The checks of ``--runtime``, in place of those, also if no kernelspec has that runtime."""


def run_check(name: str, seconds: float, function: Function) -> list[Check]:
    """Run a check and return its results. A timeout or an exception becomes a failed Check."""
    try:
        result = call_within(seconds, function)
    except TimeoutError as error:
        return [failed(str(error), "look for a file system that does not answer: df", name)]
    except GvisorKernelError as error:
        return [failed(error.fact, error.hint, name)]
    except Exception as error:
        return [
            failed(
                f"the check itself raised {type(error).__name__}: {error}",
                "please report this as a bug of gvisor-kernel",
                name,
            )
        ]
    results = result if isinstance(result, list) else [result]
    return [replace(check, name=check.name or name) for check in results]


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``doctor``."""
    parser.epilog = (
        "Each check prints OK, WARN or FAIL, and a line with an arrow that says what to do.\n"
        "The exit status is 1 if a check failed; warnings do not count. No check takes longer\n"
        "than 40 s."
    )
    parser.set_defaults(run=run_doctor)
    add_json(parser)
    parser.add_argument(
        "--runtime",
        choices=tuple(OF_RUNTIMES),
        help="check only what this runtime needs, also if no kernelspec has it",
    )


def run_doctor(arguments: argparse.Namespace) -> int:
    """``doctor``: run CHECKS, or those of one runtime, and print each result as it comes. Return 1
    if one failed, else 0."""
    checks = [OF_RUNTIMES[arguments.runtime]] if arguments.runtime else CHECKS
    results: list[Check] = []
    console = make_console()
    with make_console(stderr=True).status("") as progress:
        for name, seconds, function in checks:
            progress.update(f"Checking {name} …")
            found = run_check(name, seconds, function)
            results += found
            if not arguments.json:
                for check in found:
                    console.print(f"{WORDS[check.state]:<5}", style=STYLES[check.state], end="")
                    console.print(printable_name(f"{check.name}: {check.fact}"), soft_wrap=True)
                    if check.fix:
                        console.print(f"      → {printable_name(check.fix)}", soft_wrap=True)
    failed = any(check.state == "failed" for check in results)
    if arguments.json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in results]})
    return int(failed)
