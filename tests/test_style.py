"""Linters, type checker, and the import table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from .patience import scale_seconds
from .world import PROJECT

PACKAGE = PROJECT / "gvisor_kernel"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "kernelspecs_data" not in path.parts)


def read_table() -> dict[str, set[str]]:
    """Return for each part of the package (a top-level module or folder) the parts it may import.

    Read from docs/architecture.md. The parts of one row may import each other.
    """
    text = (PROJECT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (`.+) \| .+ \| (.+) \|$", text, re.MULTILINE)
    parts = [{name.rstrip("/") for name in re.findall(r"`([\w/]+)`", row[0])} for row in rows]
    table = {"__init__": {"api", "changes", "errors"}, "__main__": {"cli"}}
    for i, (_, may) in enumerate(rows):
        named = set(re.findall(r"`(\w+)`", may))
        if may.startswith("all"):
            reach = parts[:i] if may.startswith("all above") else parts
            named = set().union(*reach) - named
        for part in parts[i]:
            table[part] = named | parts[i]
    return table


MAY_IMPORT = read_table()

STANDARD_LIBRARY_ONLY = {"link", "errors", "guest", "strict_json", "tracing", "archive"}
IN_THE_SANDBOX = {"zmq", "ipykernel", "IPython"}
"""Packages of the image's Python, which the guest imports in the mode that needs them."""

JUPYTER_CLIENT = {"api", "jupyter", "kernel", "bridge", "lab"}


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
    run("mypy", "--strict", "gvisor_kernel")


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a module's syntax tree, which nobody may change."""
    return ast.parse(path.read_text())


def text_of(node: ast.expr) -> str:
    """Return the text of a name with dots as ast.unparse does, which takes twenty times as long."""
    if isinstance(node, ast.Attribute):
        return f"{text_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each import; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(PROJECT).parts[: -node.level]
                base = ".".join((*package, base)).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def parts_imported(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(path):
        words = name.split(".")
        if words[0] == "gvisor_kernel" and len(words) > 1 and words[1] != "__version__":
            yield line, words[1]


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_import_table_is_read() -> None:
    assert MAY_IMPORT["link"] == {"link", "strict_json"}
    assert MAY_IMPORT["guest"] == {"guest", "link", "strict_json"}
    assert {"config", "errors"} <= MAY_IMPORT["spec"]
    assert "runtimes" not in MAY_IMPORT["spec"] | MAY_IMPORT["bridge"]
    assert "guest" not in MAY_IMPORT["cli"] | MAY_IMPORT["jupyter"]
    assert {"jupyter", "runtimes", "link"} <= MAY_IMPORT["cli"]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_modules_import_only_what_the_table_allows() -> None:
    for path in MODULES:
        part = part_of(path)
        assert part in MAY_IMPORT, f"{part} is not in the table of docs/architecture.md"
        wrong = [
            f"{name_of(path)}, line {line}: {other}"
            for line, other in parts_imported(path)
            if other not in MAY_IMPORT[part] | {part}
        ]
        assert not wrong, f"{part} may import {sorted(MAY_IMPORT[part])}"


def test_modules_import_no_third_party_library_where_forbidden() -> None:
    for path in MODULES:
        part = part_of(path)
        for line, name in imports(path):
            library, where = name.split(".")[0], f"{name_of(path)}, line {line}: {name}"
            if part in STANDARD_LIBRARY_ONLY and library not in sys.stdlib_module_names:
                allowed = {"gvisor_kernel"} | (IN_THE_SANDBOX if part == "guest" else set())
                assert library in allowed, where
            if library == "jupyter_client":
                assert part in JUPYTER_CLIENT, where
            if library == "jupyter_client" and part == "bridge":
                assert name.startswith("jupyter_client.session"), where


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
            if isinstance(node, ast.Name):
                assert node.id != "SystemExit", f"{name_of(path)}, line {node.lineno}"


def test_modules_start_with_a_docstring() -> None:
    """It says what lives there."""
    for path in MODULES:
        assert ast.get_docstring(tree_of(path)), name_of(path)
        assert path.read_text().startswith(('"""', 'r"""')), name_of(path)


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
