"""A run of the benchmarks' command with the cheapest figures of the local kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures
from tests.sweeps import needs_all
from tests.world import PROJECT


@needs_all
@pytest.mark.timeout(120)
def test_one_round_leaves_results_tables_and_plots(tmp_path: Path) -> None:
    argv = [
        *(sys.executable, "-m", "benchmarks", "--rounds", "1", "--output", str(tmp_path)),
        *("--variants", "local", "--figures", "start,trips,interrupt"),
    ]
    # Other tests of this process may have started an engine, and named it in the environment.
    environment = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
    done = subprocess.run(
        argv,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    samples = results["samples"]
    starts = [samples[name]["local"] for name in (figures.INFO, figures.FIRST, figures.IMPORTED)]
    assert all(len(values) == 1 for values in starts)
    assert starts == sorted(starts), "each is measured from the start"
    assert len(samples[figures.TRIP]["local"]) == 40
    assert samples[figures.INTERRUPT]["local"]
    assert not results["absent"]
    assert not results["failures"]
    assert {"when", "commit", "runsc", "load", "load_at_end"} <= set(results["machine"])
    assert "| local |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "start.png").exists()


def test_unknown_figure_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--figures", "nonsense"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "no figure is called 'nonsense'" in done.stderr
