"""The results of ``doctor``'s checks, and how a runtime declares its own.

Nothing here prints: ``cli/doctor.py`` runs all checks, each within its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gvisor_kernel.config.settings import SandboxSpec

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One result that ``doctor`` prints: what was checked, its state, the fact, and a fix.

    ``name``: empty for the one that the check has in ``doctor``'s list. ``fix`` is a command to
    paste, or a sentence where no command can do it.
    """

    name: str
    state: State
    fact: str
    fix: str = ""


def ok(fact: str, fix: str = "", name: str = "") -> Check:
    """Return the result of a check that has found nothing wrong."""
    return Check(name, "ok", fact, fix)


def warning(fact: str, fix: str, name: str = "") -> Check:
    """Return the result of a check: kernels start, but something should be known or changed."""
    return Check(name, "warning", fact, fix)


def failed(fact: str, fix: str, name: str = "") -> Check:
    """Return the result of a check: some kernels cannot start, or not as they should."""
    return Check(name, "failed", fact, fix)


@dataclass(frozen=True)
class RuntimeCheck:
    """A check of a runtime.

    ``run`` gets the settings of each kernelspec that has the runtime, or the usual ones if
    ``doctor`` was asked for this runtime and no kernelspec has it. None: nobody has asked for it,
    so what is missing is no failure. It may take ``seconds``, at most 40.
    """

    name: str
    seconds: float
    run: Callable[[Sequence[SandboxSpec]], list[Check]]
