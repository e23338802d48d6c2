"""What was skipped is told in few lines, at the end of scripts/test."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import skips


def test_skips_of_all_parts_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "skips"
    file.touch()
    monkeypatch.setenv(skips.VARIABLE, str(file))
    skips.append({"takes long": 3, "no browser": 1})
    skips.append({"takes long": 2})
    assert skips.sum_up(file.read_text().splitlines()) == [
        "    5 x takes long",
        "    1 x no browser",
    ]


def test_many_reasons_take_at_most_twenty_lines() -> None:
    lines = skips.sum_up([f'{{"reason {n}": {n + 1}}}' for n in range(50)])
    assert len(lines) == skips.MAX_LINES
    assert lines[0] == "   50 x reason 49"
    assert lines[-1] == f"{sum(range(1, 32)):5} x other reasons: see above"
