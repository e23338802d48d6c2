"""The threat model names only tests that exist, and names each test of tests/security."""

from __future__ import annotations

import ast
import re
from functools import cache

from .world import PROJECT

NAMED = re.findall(
    r"`(tests/[\w/]+\.py)::(\w+)`", (PROJECT / "docs" / "threat-model.md").read_text()
)


@cache
def functions_in(file: str) -> set[str]:
    return set(re.findall(r"(?m)^ *def (\w+)\(", (PROJECT / file).read_text()))


def test_threat_model_names_tests() -> None:
    assert len(NAMED) > 10


def test_named_tests_exist() -> None:
    missing = [f"{file}::{name}" for file, name in NAMED if name not in functions_in(file)]
    assert not missing


def test_every_security_test_is_in_the_threat_model() -> None:
    named = set(NAMED)
    for path in sorted((PROJECT / "tests" / "security").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert (str(path.relative_to(PROJECT)), node.name) in named
