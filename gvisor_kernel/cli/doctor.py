"""``doctor``: one line for each check, followed by a fix if the check did not pass."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from gvisor_kernel.cli.arguments import add_json
from gvisor_kernel.cli.checks import CHECKS, OF_RUNTIMES, run_check
from gvisor_kernel.cli.checks.base import Check
from gvisor_kernel.cli.output import make_console, print_json
from gvisor_kernel.shown_text import printable_name

WORDS = {"ok": "OK", "warning": "WARN", "failed": "FAIL"}
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


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
        choices=("kubernetes", "slurm", "ssh"),
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
