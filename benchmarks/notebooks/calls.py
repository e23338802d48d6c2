"""Count the system calls of each cell of a local kernel, by strace, in a run that is not timed."""

from __future__ import annotations

import bisect
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks import processes

PREFIX = ("strace", "-D", "-f", "-qq", "-ttt", "-s", "0", "-e", "signal=none", "-o")
"""``-D``: strace is the grandchild, as ipykernel ends when its parent is not who started it."""
CALL = re.compile(r"\d+ +(\d+\.\d+) (\w+)\(")


def may_count() -> bool:
    """Return whether strace is there, and allowed."""
    if shutil.which("strace") is None:
        return False
    argv = [*PREFIX, "/dev/null", "true"]
    return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0


def await_end(seconds: float = 60.0) -> None:
    """Wait until strace has written its log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        names = [_name(process) for process in processes.descendants()]
        if "strace" not in names:
            return
        time.sleep(0.05)


def _name(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.Error:
        return ""


def count(log: Path, begins: Sequence[float], end: float) -> list[Counter[str]]:
    """Return the calls by name of each cell. ``begins``: when each began; ``end`` of the last."""
    found: list[Counter[str]] = [Counter() for _ in begins]
    with log.open(errors="replace") as lines:
        for line in lines:
            if call := CALL.match(line):
                at = float(call[1])
                if begins[0] <= at < end:
                    found[bisect.bisect_right(begins, at) - 1][call[2]] += 1
    return found


def describe(calls: Counter[str]) -> str:
    """Return the number of calls, and the most frequent ones."""
    most = ", ".join(f"{name} {number:,}" for name, number in calls.most_common(3))
    return f"{calls.total():,} ({most})" if calls else "0"
