"""How long the tests wait: by what this machine takes for a piece of work, measured once a run.

A deadline in a test is there to end it, and tells nothing of speed. ``patient`` makes one of the
seconds that an idle machine of two cores needs, with room.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

VARIABLE = "GK_TEST_PATIENCE"
"""Holds the factor for all processes of a run, and for who wants another one."""
USUAL = 0.2
"""Seconds that ``work`` takes on an idle machine of two cores."""
MAX_FACTOR = 10.0


def work() -> None:
    """Some of what sandboxes cost: processes that start, memory that is read, computing."""
    for _ in range(3):
        subprocess.run([sys.executable, "-I", "-c", "import json, socket"], check=True)
    data = bytes(16 * 1024 * 1024)
    for _ in range(8):
        hashlib.sha256(data).digest()


def measure() -> float:
    """How many times longer than usual something takes here and now; 1 where it takes less."""
    began = time.monotonic()
    work()
    return min(max((time.monotonic() - began) / USUAL, 1.0), MAX_FACTOR)


def beside() -> float:
    """How many of the run's processes share a core, one of a run without others being 1."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(workers / (os.cpu_count() or 1), 1.0)


def find_factor() -> float:
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{measure():.2f}"
    return float(os.environ[VARIABLE]) * beside()


FACTOR = find_factor()


def patient(seconds: float) -> float:
    """How long to wait here for what takes less than ``seconds`` on an idle machine."""
    return seconds * FACTOR
