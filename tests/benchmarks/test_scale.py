"""Short runs of the commands that measure many links, and real kernels of one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweeps import needs_all
from tests.world import PROJECT


@needs_all
@pytest.mark.timeout(120)
def test_each_link_answers_and_is_counted(tmp_path: Path) -> None:
    output = tmp_path / "links.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.links", "--links", "3", "--trips", "20"),
            *("--seconds", "0.5", "--output", str(output)),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())["figures"]
    assert [(each["links"], each["idle_stop"]) for each in found] == [(3, True), (3, False)]
    for each in found:
        assert each["descriptors"] > 3 * 16, "five sockets, a link and two processes each"
        assert each["busy_trips"] >= 1
        assert each["most_per_second"] > 0
        assert 0 < each["idle_p50"] <= each["idle_p99"]


@needs_all
@pytest.mark.timeout(400)
def test_real_kernels_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "node.json"
    argv = [sys.executable, "-m", "benchmarks.node", "--kernels", "1", "--seconds", "1"]
    done = subprocess.run(
        [*argv, "--output", str(output)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert [each["idle_stop"] for each in report["idle"]] == [True, False]
    for each in report["idle"]:
        assert {"sentry", "gofer"} <= set(each["by_process"])
        assert each["memory"] > each["by_process"]["sentry"]
    ways = [(each["snapshot"], each["at_once"]) for each in report["starts"]]
    assert ways == [("auto", 1), ("auto", 4), ("off", 1), ("off", 4)]
