"""Notebooks in a pool of forked workers, as users of nbclient run them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..patience import scale_seconds
from ..sweeps import needs_all
from ..world import PROJECT
from .helpers import SOONEST


def run_workers(notebooks: int, workers: int, seconds: float) -> None:
    argv = [*(sys.executable, "-m", "tests.jupyter.forked_workers"), SOONEST]
    done = subprocess.run(
        [*argv, str(notebooks), str(workers)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{notebooks} notebooks\n", done.stdout


def test_notebooks_run_in_forked_workers(shared_snapshot: str) -> None:
    run_workers(4, 2, scale_seconds(170))


@needs_all
@pytest.mark.alone
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("shared_snapshot")
def test_two_hundred_notebooks_run_in_forked_workers() -> None:
    run_workers(200, 6, 1150)
