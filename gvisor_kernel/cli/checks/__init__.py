"""The checks of ``doctor``, by what is checked: functions that return one or more Checks.

Nothing here prints. ``cli/doctor.py`` has the list of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One result that ``doctor`` prints: what was checked, its state, the fact, and a fix.

    ``name``: empty for the one that the check has in ``doctor.CHECKS``. ``fix`` is a command to
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
