"""The offer of ``install`` to install a release of runsc, where its kernels would find none."""

from __future__ import annotations

import os
import sys

from gvisor_kernel.cli.output import ask
from gvisor_kernel.config.settings import DEFAULT_RUNTIME, SandboxSpec
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.releases import SIZE, TRIED
from gvisor_kernel.runtimes.runsc.command_line import find_runsc


def offer_runsc(spec: SandboxSpec, *, agreed: bool) -> RuntimeMissing | None:
    """Return why kernels with ``spec`` have no runsc; None if they have one, also since now.

    It is installed if that was ``agreed``, or if a person at a terminal says yes. Prints what is
    done.

    :raises ReleaseError: when it cannot be had, or cannot be used here
    """
    from gvisor_kernel.cli.runsc import install

    if spec.runtime != DEFAULT_RUNTIME:
        return None
    try:
        find_runsc(spec.runsc)
    except RuntimeMissing as error:
        # A kernelspec that names a program would not start with another one.
        if spec.runsc or not (agreed or _is_wanted(error)):
            return error
        install()
    return None


def _is_wanted(missing: RuntimeMissing) -> bool:
    """Ask the person at the terminal; False if there is none."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    print(missing.fact)
    whom = "all users" if os.geteuid() == 0 else "this user"
    answer = None
    while answer not in ("", "y", "yes", "n", "no"):
        answer = ask(f"Install gVisor {TRIED} ({SIZE}) for {whom} now? [Y/n] ")
        if answer is None:
            print()
            return False
        if answer[:1] not in ("", "y", "n"):
            print("Please answer y or n.")
    return not answer.startswith("n")
