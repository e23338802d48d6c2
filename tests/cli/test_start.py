"""start: a kernel runs a cell and ends; the steps of the start are listed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.cli.checks.jupyter import check_kernelspecs
from gvisor_kernel.cli.main import main
from gvisor_kernel.tracing import Trace, step, tracing

from ..jupyter.helpers import SANDBOXED
from ..world import World, kernelspec_of

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="needs a sandbox")


@pytest.mark.slow
def test_trace_lists_each_step_with_its_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(["start", "--trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.fullmatch(r" *(\d+) +(\d+)  (.+)", line) for line in lines[1:]]
    assert all(rows)
    at = [int(row[1]) for row in rows if row]
    assert at == sorted(at)
    words = [row[3] for row in rows if row]
    assert words[-2:] == ["kernel_info answered", "first cell run"]
    assert any("by runsc" in text for text in words)


def test_unknown_kernel_is_named_in_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--kernel", "nowhere"]) == 1
    assert "There is no kernelspec named 'nowhere'." in capsys.readouterr().err


@pytest.mark.slow
def test_start_reports_why_the_kernel_died(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    world: World,
) -> None:
    """An interpreter without ipykernel says so on stderr, which is gone with the sandbox."""
    python = tmp_path / "bare" / "bin" / "python3"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60
    )
    spec = json.loads((world.kernelspecs / kernelspec_of("relay") / "kernel.json").read_text())
    folder = world.add_kernelspec("bare", {**spec, "argv": [str(python), *spec["argv"][1:]]})
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["start", "--kernel", "bare"]) == 1
    finally:
        shutil.rmtree(folder)
    error = capsys.readouterr().err
    assert error.count("The kernel ended before it answered, with exit status 1.") == 1
    assert error.count("No module named") == 1
    assert "install ipykernel for the interpreter that the kernelspec names" in error


def test_kernelspec_that_is_not_json_is_named(
    capsys: pytest.CaptureFixture[str], world: World
) -> None:
    folder = world.add_kernelspec("broken", {})
    file = folder / "kernel.json"
    file.write_text("{broken")
    try:
        assert main(["start", "--kernel", "broken"]) == 1
        assert main(["uninstall", "--name", "broken"]) == 1
        (check,) = (c for c in check_kernelspecs() if c.name == "kernelspec broken")
    finally:
        shutil.rmtree(folder)
    error = capsys.readouterr().err
    assert f"{file} cannot be read: Expecting" in error
    assert f"rm -r {folder}" in error
    assert check.state == "warning"
    assert "it is not JSON" in check.fact


@pytest.mark.slow
def test_steps_are_recorded_only_while_tracing() -> None:
    step("before")
    with tracing() as trace:
        step("one")
        with tracing() as inner:
            step("two")
        assert inner is trace
    step("after")
    assert [words for words, _ in trace.steps] == ["one", "two"]
    assert Trace().steps == []
