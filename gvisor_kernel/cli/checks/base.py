"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of ``doctor``: what was looked at, how it stands, what to do where it is not well.

    ``fix`` is a command to paste, or a sentence where no command does it.
    """

    name: str
    state: State
    fact: str
    fix: str = ""
