"""An engine is one folder: what belongs to it lies there, and nobody else knows of it.

A string that is a runtime's name and means something else has a comment beside it: ``# no runtime:
…`` and what it is.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gvisor_kernel.config.entry_points import GROUP, OWN

from ..world import PROJECT

PACKAGE = PROJECT / "gvisor_kernel"
ENTRIES = metadata.distribution(OWN).entry_points.select(group=GROUP)
NAMES = {entry.name for entry in ENTRIES}
ENGINES = {entry.module.rpartition(".")[0] for entry in ENTRIES}
"""The packages of our engines."""
FAR_HALF = {"gvisor_kernel.runtimes.nodes", "gvisor_kernel.runtimes.runsc"}
"""What ``node/`` may import, which is the other half of the nodes: it makes a sandbox by runsc on
another machine, and starts sooner if it looks for no entry point."""
INSTALLS = {
    f"gvisor_kernel.cli.{name}" for name in ("runsc", "offer", "checks.trial", "checks.updates")
}
"""What gets a program that only the runtime runsc runs, and tries it."""
MARK = "# no runtime: "


def engine_of(module: str) -> str:
    """Return the engine's package that a module is in; empty if it is in none."""
    return next((engine for engine in ENGINES if f"{module}.".startswith(f"{engine}.")), "")


def read_modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Yield the name, the text and the tree of each module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        yield ".".join(path.relative_to(PROJECT).with_suffix("").parts), text, ast.parse(text)


def engines_imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {engine_of(name) for name in found} - {""}


def test_the_engines_are_those_of_pyproject() -> None:
    assert {"docker", "kubernetes", "runsc", "slurm", "ssh"} == NAMES
    assert {engine.rpartition(".")[2] for engine in ENGINES} == {
        *("docker", "kubernetes", "nodes", "runsc"),
    }


def test_no_engine_is_imported_but_by_its_entry_point() -> None:
    for module, _, tree in read_modules():
        allowed = {engine_of(module)}
        if module.startswith("gvisor_kernel.node."):
            allowed |= FAR_HALF
        if module in INSTALLS:
            allowed.add("gvisor_kernel.runtimes.runsc")
        assert engines_imported(tree) <= allowed, module


def test_no_engine_is_named_outside_its_folder() -> None:
    named = []
    for module, text, tree in read_modules():
        if engine_of(module) or module.startswith("gvisor_kernel.node."):
            continue
        lines = text.splitlines()
        named += [
            f"{module}, line {node.lineno}: {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value in NAMES
            if MARK not in (line := lines[node.lineno - 1])
            and not line.startswith("DEFAULT_RUNTIME = ")
        ]
    assert not named, f"ask the runtime or its entry instead, or add {MARK!r} and what it is"


def test_each_folder_has_its_entry_and_its_checks() -> None:
    for engine in ENGINES:
        folder = Path(PROJECT, *engine.split("."))
        for name in ("entry.py", "checks.py", "runtime.py"):
            assert (folder / name).exists(), f"{engine} has no {name}"


EXTRAS = ("docker", "kubernetes", "websocket", "wsproto", "yaml")
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
from gvisor_kernel.config.entry_points import find_names
from gvisor_kernel.runtimes import get_runtime
for name in find_names():
    get_runtime(name).find_checks()
    print(name)
"""


def test_no_runtime_needs_a_library_of_an_extra_before_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"docker", "kubernetes", "runsc"} <= set(done.stdout.split())
