"""The list of long tests names tests that exist."""

from __future__ import annotations

import pytest

from .run_as_user import ONE_FOR_EACH
from .sweeps import BY_USER, LONG, is_long
from .world import PROJECT


@pytest.mark.parametrize(("file", "names"), [*LONG.items(), *BY_USER.items()])
def test_long_tests_exist(file: str, names: tuple[str, ...]) -> None:
    text = (PROJECT / "tests" / file).read_text()
    for name in names:
        assert f"def test_{name.partition('[')[0]}(" in text, name


def test_the_ordinary_users_part_has_what_root_leaves_to_it() -> None:
    for file, names in BY_USER.items():
        for name in names:
            assert any(chosen.startswith(name) for chosen in ONE_FOR_EACH[file]), name
            assert not name.startswith(LONG.get(file, ())), name


def test_only_listed_tests_are_long() -> None:
    assert is_long("skills/test_inside.py", "test_pdf_examples_work")
    assert not is_long("skills/test_inside.py", "test_plotting_examples_work")
    assert not is_long("skills/test_other.py", "test_pdf_examples_work")
