"""CONTRIBUTING.md says where the tests of each package are. Lists of tests name existing ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from .run_as_user import ONE_FOR_EACH
from .world import PROJECT

PACKAGE = PROJECT / "gvisor_kernel"
TEXT = (PROJECT / "CONTRIBUTING.md").read_text()
ROWS = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", TEXT, re.MULTILINE)


def packages() -> set[str]:
    """Return the folders with modules that are not in a row of their parent."""
    found = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    return {name for name in found if name not in (".", "runtimes") and not name.startswith("cli/")}


def test_each_package_has_a_row() -> None:
    named = {name.rstrip("/") for first, _ in ROWS for name in re.findall(r"`([^`]+)`", first)}
    assert named == packages()


def test_tests_of_the_ordinary_users_part_exist() -> None:
    for file, tests in ONE_FOR_EACH.items():
        tree = ast.parse((PROJECT / "tests" / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {f"test_{test.partition('[')[0]}" for test in tests} <= names, file


def test_named_tests_exist() -> None:
    named = set(re.findall(r"`((?:tests|fuzz)/[^`]*)`", TEXT))
    assert named
    assert not [name for name in named if not Path(PROJECT, name).exists()]
