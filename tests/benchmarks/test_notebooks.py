"""Notebooks that are measured: how they are read, run in both kernels, counted and compared."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks import figures
from benchmarks.notebooks import calls, tables
from benchmarks.notebooks.cells import OWN, Cell, find_notebooks
from benchmarks.notebooks.runs import Provisions, Runs
from benchmarks.peers.engine import EngineError
from benchmarks.results import Results
from benchmarks.schedule import QUICK, Schedule
from benchmarks.variants import BASELINE, Variant
from benchmarks.worker import Worker
from tests.world import WAYS

OURS = Variant("restored", "ours", settings=WAYS["restored"])
PERCENT = """# What it is about.

# %% a title
x = 3
# a comment
# %matplotlib inline
# !ls

# %% [markdown]
# Text.

# %%
x
"""


def write_ipynb(path: Path, *sources: str, language: str = "python") -> None:
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    cells.append({"cell_type": "markdown", "source": ["text"]})
    content = {"nbformat": 4, "cells": cells, "metadata": {"kernelspec": {"language": language}}}
    path.write_text(json.dumps(content))


def test_percent_files_and_notebooks_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(PERCENT)
    (tmp_path / "module.py").write_text("x = 1\n")
    (tmp_path / "deep").mkdir()
    write_ipynb(tmp_path / "deep" / "b.ipynb", "x = 1\nx", "%time x")
    write_ipynb(tmp_path / "c.ipynb", "import no_such_library.part\nimport os")
    write_ipynb(tmp_path / "d.ipynb", "1", language="R")
    (tmp_path / "e.ipynb").write_text("[]")
    found, left_out = find_notebooks([tmp_path])
    assert {n.name: n.cells for n in found} == {
        "a": (Cell("x = 3\n# a comment\n%matplotlib inline\n!ls", "a title"), Cell("x")),
        "deep/b": (Cell("x = 1\nx"), Cell("%time x")),
    }
    assert left_out["c"] == "not installed: no_such_library"
    assert left_out["d"] == "its language is R"
    assert "format 4" in left_out["e"]
    assert [n.name for n in find_notebooks([tmp_path], "eep")[0]] == ["deep/b"]


def test_notebooks_of_ours_are_twenty_and_have_no_name_of_a_library() -> None:
    """Else ``import requests`` would import the notebook where somebody opens it."""
    found, left_out = find_notebooks([OWN])
    assert len(found) + len(left_out) == 20
    assert all(reason.startswith("not installed: ") for reason in left_out.values())
    imported = {name for notebook in found for name in notebook.find_imports()}
    assert not imported & {path.stem for path in OWN.glob("*.py")}


def test_system_calls_are_counted_by_cell(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "7 9.5 read(3) = 1\n7 10.1 read(3, <unfinished ...>\n8 10.2 lseek(3) = 0\n"
        "7 10.3 <... read resumed>) = 1\n7 11.0 read(3) = 1\n8 12.5 +++ exited with 0 +++\n"
        "7 13.0 read(3) = 1\n"
    )
    found = calls.count(log, [10.0, 10.9], 12.9)
    assert found == [{"read": 1, "lseek": 1}, {"read": 1}]
    assert calls.describe(found[0]) == "2 system calls (read 1, lseek 1)"


class WorkersHere:
    """Stands in for the processes of workers: commands run in this one."""

    def __init__(self, folder: Path) -> None:
        self._worker = Worker(folder)
        self.process = SimpleNamespace(pid=os.getpid())
        self.no_user = ""

    def get(self, name: str) -> WorkersHere:
        return self

    def ask(self, do: str, seconds: float = 0, **arguments: Any) -> Any:
        return getattr(self._worker, do)(**arguments)

    def pids(self) -> list[int]:
        return [child.pid for child in psutil.Process().children()]

    def running(self, name: str) -> bool:
        return True


def test_both_kernels_run_and_a_difference_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    where = "import os\n1 if os.getcwd() == '/workspace' else {}['x']"
    write_ipynb(folder / "one.ipynb", "print('hello')", where)
    (folder / "two.py").write_text("# %% a sum\nsum(range(10))\n")
    notebooks, left_out = find_notebooks([folder])
    assert not left_out
    local = Variant(BASELINE, "local")
    results = Results({}, variants=[BASELINE, OURS.name])
    workers: Any = WorkersHere(tmp_path)
    schedule = Schedule([local, OURS], QUICK, workers, EngineError(""), results, lambda text: None)
    provisions = Provisions(tmp_path, None, None)
    Runs(schedule, [local, OURS], notebooks, provisions, results, passes=2).measure(0)

    assert not results.failures
    assert tables.differences(results, OURS.name) == [
        "one, cell 2: local: error KeyError; restored: text/plain"
    ]
    for part in (figures.WALL, figures.CELLS, figures.STEADY, figures.CPU_TIME, figures.FAULTS):
        for variant in results.variants:
            # A sandbox's processes are found by a program that adopts them, as this one does not.
            if variant == BASELINE or part not in (figures.CPU_TIME, figures.FAULTS):
                assert results.values(figures.NOTEBOOK.format("one", part), variant)[0] > 0, part
    text = "\n".join(tables.notebook_tables(results))
    assert "| one | " in text
    assert "| a sum | " in text
    assert tables.mean([1.0, 4.0]) == pytest.approx(2.0)
