"""The threat model names only tests that exist, and names each test of tests/security."""

from __future__ import annotations

import ast
import re

import pytest

from .world import PROJECT

NAMED = re.findall(
    r"`(tests/[\w/]+\.py)::(\w+)`", (PROJECT / "docs" / "threat-model.md").read_text()
)


def test_threat_model_names_tests() -> None:
    assert len(NAMED) > 10


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda value: str(value).split("/")[-1])
def test_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((PROJECT / file).read_text())
    assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_every_security_test_is_in_the_threat_model() -> None:
    named = set(NAMED)
    for path in sorted((PROJECT / "tests" / "security").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert (str(path.relative_to(PROJECT)), node.name) in named
