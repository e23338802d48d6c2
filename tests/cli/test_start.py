"""start: a kernel runs a cell and ends; the steps of the start are listed."""

from __future__ import annotations

import re

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.tracing import Trace, step, tracing

from ..jupyter.helpers import SANDBOXED

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="needs a sandbox")


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
