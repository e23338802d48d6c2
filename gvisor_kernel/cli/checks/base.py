"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One result that ``doctor`` prints: what was checked, its state, the fact, and a fix.

    ``fix`` is a command to paste, or a sentence where no command can do it.
    """

    name: str
    state: State
    fact: str
    fix: str = ""
