"""Linters, type checker, and what every module of the package looks like."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import chain

import pytest

from .patience import scale_seconds
from .source import MODULES, name_of, part_of, tree_of
from .world import PROJECT

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
QUESTION = re.compile(r"(What|Whether|Which|Who|Where|When|Why|How|Of|Between|Has)\b")


def run(*argv: str) -> None:
    """Run a linter; its output is the text of the failure."""
    result = subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=scale_seconds(150),
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_check() -> None:
    run("ruff", "check", "--no-cache", ".")


def test_ruff_format() -> None:
    run("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.timeout(170)
def test_mypy_strict() -> None:
    run("mypy", "--strict", "gvisor_kernel", "tests/typed_program.py")


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_only_the_command_line_and_the_guest_end_a_process() -> None:
    for path in MODULES:
        if part_of(path) in {"cli", "guest", "__main__"}:
            continue
        # A module that runs as a program with -m may exit under its main guard.
        body = [node for node in tree_of(path).body if not is_main_guard(node)]
        for node in chain.from_iterable(map(ast.walk, body)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                where = f"{name_of(path)}, line {node.lineno}"
                assert called not in {"sys.exit", "os._exit", "exit", "quit"}, where
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = ast.unparse(node.exc).partition("(")[0]
                assert raised != "SystemExit", f"{name_of(path)}, line {node.lineno}"


def test_modules_start_with_a_docstring() -> None:
    """It says what lives there."""
    for path in MODULES:
        assert ast.get_docstring(tree_of(path)), name_of(path)
        assert path.read_text().startswith(('"""', 'r"""')), name_of(path)


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """One that answers a question ("Whether it runs") says neither what is returned nor done."""
    wrong = [
        f"{name_of(path)}: {text.splitlines()[0]}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, DOCUMENTED)
        and QUESTION.match(text := ast.get_docstring(node, clean=False) or "")
    ]
    assert not wrong


def test_modules_are_shorter_than_500_lines() -> None:
    long = [name_of(path) for path in MODULES if len(path.read_text().splitlines()) >= 500]
    assert not long, "split it by noun"


def test_every_test_module_has_a_docstring() -> None:
    for path in (PROJECT / "tests").rglob("*.py"):
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_guest_and_link_parse_as_python_3_9() -> None:
    for path in MODULES:
        if part_of(path) in {"guest", "link"}:
            ast.parse(path.read_text(), feature_version=(3, 9))
