"""A short run of the soak's command, and its detection of leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import counts
from tests.sweeps import needs_all
from tests.world import PROJECT

pytestmark = pytest.mark.alone


@needs_all
@pytest.mark.slow
@pytest.mark.timeout(170)
def test_short_soak_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "soak.json"
    argv = [
        *(sys.executable, "-m", "benchmarks.soak", "--output", str(output)),
        *("--minutes", "0.07", "--kernels", "4", "--starts", "2", "--users", "2"),
    ]
    done = subprocess.run(
        argv, cwd=PROJECT, capture_output=True, text=True, timeout=160, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    assert report["leaks"] == report["errors"] == []
    assert report["starts"] >= 7
    assert report["done"]["starts and stops"] == 3
    assert report["phases"]["kernels at once"]["had"] == 4
    before, after = report["counts"]["before"], report["counts"]["after"]
    assert after["descriptors"] <= before["descriptors"]
    assert "leaks: 0" in done.stdout


def test_leaks_are_named() -> None:
    nothing: frozenset[str] = frozenset()
    before = counts.Counts(nothing, 0, 10, nothing, nothing, nothing, nothing, 50 << 20)
    assert counts.find_leaks(before, before, 100) == []
    after = replace(
        before, processes=frozenset({"7 runsc-sandbox"}), zombies=1, descriptors=12, rss=500 << 20
    )
    assert counts.find_leaks(before, after, 100) == [
        "processes: 7 runsc-sandbox",
        "zombies: 1, and 0 before",
        "descriptors: 12, and 10 before",
        "rss: 450 MiB more, 65 are allowed",
    ]


def test_count_includes_processes_files_and_descriptors(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    before = counts.count(tmp_path, [])
    (tmp_path / "t" / "file").touch()
    with (
        open("/dev/null"),
        subprocess.Popen(["sleep", "60"], env={"MARK": str(tmp_path)}) as process,
    ):
        after = counts.count(tmp_path, [])
        process.kill()
    leaks = counts.find_leaks(before, after, 0)
    assert any(leak.startswith("processes: ") and "sleep 60" in leak for leak in leaks)
    assert f"files: {tmp_path / 't' / 'file'}" in leaks
    assert any(leak.startswith("descriptors: ") for leak in leaks)
