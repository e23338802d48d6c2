"""``doctor``: one line for each check, followed by a fix if the check did not pass."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import TypeAlias

from gvisor_kernel.cli.arguments import add_json
from gvisor_kernel.cli.checks.egress import check_egress
from gvisor_kernel.cli.checks.jupyter import (
    check_kernelspecs,
    check_others,
    check_provisioner,
    check_pythons,
    find_specs,
)
from gvisor_kernel.cli.checks.kernel import check_kernel
from gvisor_kernel.cli.checks.reach import check_reach
from gvisor_kernel.cli.checks.servers import check_servers
from gvisor_kernel.cli.checks.shown import check_shown
from gvisor_kernel.cli.checks.state import check_leftovers, check_state
from gvisor_kernel.cli.checks.updates import check_updates
from gvisor_kernel.cli.output import make_console, print_json
from gvisor_kernel.config.entry_points import find_names
from gvisor_kernel.config.settings import DEFAULT_RUNTIME, SandboxSpec, find_entry
from gvisor_kernel.config.validators import HOST_IMAGE
from gvisor_kernel.errors import GvisorKernelError, RuntimeMissing
from gvisor_kernel.host.bounded import call_within
from gvisor_kernel.jupyter.plan_factory import make_provisioner, read_configuration
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.checks import Check, failed
from gvisor_kernel.shown_text import printable_name

WORDS = {"ok": "OK", "warning": "WARN", "failed": "FAIL"}
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


Function: TypeAlias = Callable[[], "Check | list[Check]"]

Listed: TypeAlias = tuple[str, float, Function]
"""The name, the time limit in seconds, and the function of a check."""

CHECKS: tuple[Listed, ...] = (
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
)
"""The checks that concern no single runtime, but for that of a whole kernel."""
LOAD_SECONDS = 10.0
"""Seconds that the import of a runtime may take, which may be a stranger's."""


def find_checks(runtime: str | None) -> Iterator[Listed]:
    """Yield all checks, or those of ``runtime``. A runtime is imported when it is its turn."""
    if runtime is not None:
        yield from find_runtime_checks(runtime, is_chosen=True)
        return
    yield from find_runtime_checks(DEFAULT_RUNTIME)
    yield from CHECKS
    for name in find_names():
        if name != DEFAULT_RUNTIME:
            yield from find_runtime_checks(name)
    yield "kernel", 40, check_kernel


def find_runtime_checks(name: str, *, is_chosen: bool = False) -> Iterator[Listed]:
    """Yield the checks of a runtime. ``is_chosen``: also if no kernelspec has it."""
    try:
        runtime = call_within(LOAD_SECONDS, lambda: get_runtime(name))
    except (TimeoutError, RuntimeMissing) as error:
        yield f"runtime {name}", LOAD_SECONDS, partial(tell, error)
        return
    for check in runtime.find_checks():
        specs = find_usual_specs if is_chosen else find_specs
        yield check.name, check.seconds, partial(lambda check, s: check.run(s(name)), check, specs)


def tell(error: Exception) -> Check:
    """Return the result for a runtime that cannot be imported."""
    if isinstance(error, RuntimeMissing):
        return failed(error.fact, error.hint)
    return failed(f"its import has not ended: {error}", "uninstall its package, or ask its author")


def find_usual_specs(runtime: str) -> list[SandboxSpec]:
    """Return the settings of the kernelspecs with a runtime, or those by the configuration."""
    found = find_specs(runtime)
    if found:
        return found
    images = {"image": "none"} if find_entry(runtime).images else {}
    usual = make_provisioner({"runtime": runtime, **images}, read_configuration())
    return [replace(usual.sandbox_spec(), image=HOST_IMAGE)]


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
    add_json(parser)
    parser.add_argument(
        "--runtime",
        choices=find_names(),
        help="check only what this runtime needs, also if no kernelspec has it",
    )
    parser.add_argument(
        "--updates",
        action="store_true",
        help="ask gVisor's bucket of releases, too, whether there is a newer one",
    )


def run_doctor(arguments: argparse.Namespace) -> int:
    """``doctor``: run all checks, or those of one runtime, and print each result as it comes.
    Return 1 if one failed, else 0."""
    results: list[Check] = []
    console = make_console()
    with make_console(stderr=True).status("") as progress:
        updates = [("updates", 120, check_updates)] if arguments.updates else []
        for name, seconds, function in (*find_checks(arguments.runtime), *updates):
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
