"""Scale the tests' deadlines by the speed of this machine, measured once per run.

A deadline in a test only ends the test; it does not assert a speed. ``scale_seconds`` computes one
from the seconds that an idle machine with two cores needs, with a margin.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

VARIABLE = "GK_TEST_PATIENCE"
"""Environment variable with the factor, for all processes of a run; may be set by hand."""
USUAL = 0.2
"""Seconds that ``work`` takes on an idle machine of two cores."""
MAX_FACTOR = 10.0


def work() -> None:
    """Do typical work of a sandbox: start processes, read memory, compute."""
    for _ in range(3):
        subprocess.run([sys.executable, "-I", "-c", "import json, socket"], check=True)
    data = bytes(16 * 1024 * 1024)
    for _ in range(8):
        hashlib.sha256(data).digest()


def measure() -> float:
    """Return how many times longer than usual ``work`` takes now, 1 to ``MAX_FACTOR``."""
    began = time.monotonic()
    work()
    return min(max((time.monotonic() - began) / USUAL, 1.0), MAX_FACTOR)


def workers_per_core() -> float:
    """Return the number of test processes per core, at least 1."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(workers / (os.cpu_count() or 1), 1.0)


def find_factor() -> float:
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{measure():.2f}"
    return float(os.environ[VARIABLE]) * workers_per_core()


FACTOR = find_factor()


def scale_seconds(seconds: float) -> float:
    """Return how long to wait for something that takes less than ``seconds`` on an idle machine."""
    return seconds * FACTOR
