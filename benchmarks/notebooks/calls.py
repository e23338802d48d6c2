"""Count the system calls of each cell of a local kernel, by strace, in a run that is not timed."""

from __future__ import annotations

import bisect
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

PREFIX = (
    # A kernel ends when its parent is not the process that JPY_PARENT_PID names.
    *("env", "-u", "JPY_PARENT_PID", "strace", "-f", "-qq", "-ttt"),
    *("-s", "0", "-e", "signal=none", "-o"),
)
CALL = re.compile(r"\d+ +(\d+\.\d+) (\w+)\(")


def may_count() -> bool:
    """Return whether strace is there, and allowed."""
    if shutil.which("strace") is None:
        return False
    argv = [*PREFIX, "/dev/null", "true"]
    return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0


def count(log: Path, begins: Sequence[float], end: float) -> list[Counter[str]]:
    """Return the calls by name of each cell. ``begins``: when each began; ``end`` of the last."""
    found: list[Counter[str]] = [Counter() for _ in begins]
    with log.open(errors="replace") as lines:
        for line in lines:
            call = CALL.match(line)
            if call and begins[0] <= (at := float(call[1])) < end:
                found[bisect.bisect_right(begins, at) - 1][call[2]] += 1
    return found


def describe(calls: Counter[str]) -> str:
    """Return the number of calls, and the most frequent ones."""
    most = ", ".join(f"{name} {number:,}" for name, number in calls.most_common(3))
    return f"{calls.total():,} system calls ({most})" if calls else "no system call"
