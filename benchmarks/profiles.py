"""Where the time goes: ``--profile``. A stub for now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PROFILES: dict[str, Callable[..., str]] = {}
_ = Any
