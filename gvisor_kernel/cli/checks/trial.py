"""The trial of a release of gVisor before it is used: what ``doctor`` does, with one program."""

from __future__ import annotations

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

    Blocks for seconds, at most for two minutes. Nothing is left of it, also if this process is
    killed. ``tell`` is told what is tried next.

    :raises RuntimeMissing: at the first that fails: it names what
    """
    choice, results = str(program), list[Check]()
    for name, words, seconds, function in (
        ("program", "reading its version and flags", 20, partial(check_runsc, choice)),
        ("platform", "starting a sandbox", 20, partial(check_platform, choice)),
        ("kernel", "running a cell in a kernel", 60, partial(check_kernel, choice)),
    ):
        tell(words)
        results += run_check(name, seconds, function)
        for check in results:
            if check.state == "failed":
                raise RuntimeMissing(
                    f"This release of gVisor cannot be used here, {words} failed: {check.fact}.",
                    "nothing was changed; try another one: `gvisor-kernel runsc install RELEASE`.",
                )
    return results
