"""The list of long tests names tests that exist."""

from __future__ import annotations

import pytest

from .sweeps import LONG, is_long
from .world import PROJECT


@pytest.mark.parametrize("file", LONG)
def test_long_tests_exist(file: str) -> None:
    text = (PROJECT / "tests" / file).read_text()
    for name in LONG[file]:
        assert f"def test_{name.partition('[')[0]}(" in text, name


def test_only_listed_tests_are_long() -> None:
    assert is_long("skills/test_inside.py", "test_pdf_examples_work")
    assert not is_long("skills/test_inside.py", "test_plotting_examples_work")
    assert not is_long("skills/test_other.py", "test_pdf_examples_work")
