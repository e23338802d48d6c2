"""The trial of a release of gVisor before it is used: what ``doctor`` does, with one program."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gvisor_kernel.cli.checks.kernel import check_kernel
from gvisor_kernel.cli.doctor import run_check
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.runtimes.checks import Check
from gvisor_kernel.runtimes.runsc.checks import check_platform, check_runsc


def try_release(program: Path, tell: Callable[[str], None] = lambda words: None) -> list[Check]:
    """Try all that kernels need of the runsc at the absolute path ``program``; return the results.

    Its version and flags are read, a sandbox is started, and a kernel that runs a cell. Blocks for
    seconds, at most for two minutes. Nothing is left of it, also if this process is killed.
    ``tell`` is told what is tried next, a clause.

    :raises RuntimeMissing: at the first that fails: it names what
    """
    choice = str(program)
    steps = (
        ("runsc", "reading its version and flags", 20.0, partial(_check_program, program)),
        ("platform", "starting a sandbox", 20.0, partial(check_platform, choice)),
        ("kernel", "running a cell in a kernel", 60.0, partial(check_kernel, choice)),
    )
    results: list[Check] = []
    for name, words, seconds, function in steps:
        tell(words)
        found = run_check(name, seconds, function)
        for check in found:
            if check.state == "failed":
                raise RuntimeMissing(
                    f"This release of gVisor cannot be used here, {words} failed: {check.fact}.",
                    "nothing was changed; try another release: `gvisor-kernel runsc install"
                    " RELEASE`.",
                )
        results += found
    return results


def _check_program(program: Path) -> list[Check]:
    if os.statvfs(program).f_flag & os.ST_NOEXEC:
        raise RuntimeMissing(f"no program can be run below {program.parent}: it is mounted noexec")
    return check_runsc(str(program))
