"""Which imports of cells are reported to the host."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gvisor_kernel.guest import cell_hooks, installed
from gvisor_kernel.guest.cell_hooks import CellImports, find_imports

CELL = """%%time
import numpy as np, pandas
if True:
    import matplotlib.pyplot as plt; import one
from scipy import stats, \\
    linalg
from sklearn.svm import (SVC)
text = "import a"
x.important = 1
"""


def test_imports_are_found_in_a_cell_with_magics() -> None:
    assert set(find_imports(CELL)) == {
        *("numpy", "pandas", "matplotlib.pyplot", "one", "scipy", "scipy.stats"),
        *("sklearn.svm", "sklearn.svm.SVC"),
    }
    assert list(find_imports("from . import a\nfrom .b import c\nimport a.b.c.d\n")) == []


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was reported. ``gk_one``, ``gk_two`` and their members are of the environment."""
    found: list[list[str]] = []
    monkeypatch.setattr(cell_hooks, "send_report", lambda names, _: found.append(names))
    monkeypatch.setattr(installed, "find_directories", lambda: ["/packages/"])
    for name, origin in (
        *(("gk_one", "/packages/gk_one.py"), ("gk_two", "/packages/gk_two/__init__.py")),
        *(("gk_two.deep", "/packages/gk_two/deep.py"), ("gk_own", "/workspace/gk_own.py")),
        *(("gk_built", "built-in"), ("gk_space", None)),
    ):
        module: Any = ModuleType(name)
        module.__spec__ = SimpleNamespace(origin=origin)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv(cell_hooks.LEARNS, "imports")
    return found


def run(imports: CellImports, code: str) -> None:
    imports.after_cell(SimpleNamespace(info=SimpleNamespace(raw_cell=code)))


def test_only_modules_of_the_environment_are_reported_each_once(reported: list[list[str]]) -> None:
    imports = CellImports()
    run(imports, "import gk_own, gk_built, gk_space, json, gk_none, gk_one")
    run(imports, "import gk_one")
    run(imports, "from gk_two import deep, shallow")
    run(imports, "1 + 1")
    assert reported == [["gk_one"], ["gk_two", "gk_two.deep"]]


def test_variables_that_a_cell_names_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names only, and only if they are set."""
    found: list[list[list[str]]] = []
    monkeypatch.setattr(cell_hooks, "send_report", lambda *words: found.append(list(words)))
    monkeypatch.setenv(cell_hooks.LEARNS, "imports")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GK_OTHER"):
        monkeypatch.setenv(name, "1")
    imports = CellImports()
    run(
        imports, "%env OMP_NUM_THREADS=1\nos.environ['MKL_NUM_THREADS'] = '1'; x['NOT_SET'] = 'env'"
    )
    run(imports, "GK_OTHER = 'OMP_NUM_THREADS'")
    assert found == [[[], ["MKL_NUM_THREADS", "OMP_NUM_THREADS"]]]


def test_nothing_is_reported_unasked_late_or_of_an_odd_cell(
    reported: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(CellImports(), "import gk_one" + " " * cell_hooks.MAX_CODE)
    CellImports().after_cell(None)
    monkeypatch.setattr(cell_hooks, "SECONDS", -1.0)
    run(CellImports(), "import gk_one")
    monkeypatch.undo()
    monkeypatch.delenv(cell_hooks.LEARNS, raising=False)
    run(CellImports(), "import pytest")
    assert reported == []


def test_report_that_cannot_be_sent_is_sent_with_the_next(
    reported: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = CellImports()
    with monkeypatch.context() as patch:
        patch.setattr(cell_hooks, "ADDRESS", "\0gk-nobody-listens")
        patch.setattr(cell_hooks, "send_report", SEND)
        run(imports, "import gk_one")
    run(imports, "import gk_one, gk_two")
    assert reported == [["gk_one", "gk_two"]]


SEND = cell_hooks.send_report


def test_report_has_a_length_and_needs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "s")
    monkeypatch.setattr(cell_hooks, "ADDRESS", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(1)
        SEND(["numpy"])
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            data = stream.read()
    size, head = int.from_bytes(data[:4], "big"), data[8:]
    assert size == len(data) - 4
    assert int.from_bytes(data[4:8], "big") == len(head)
    assert json.loads(head) == {"do": "imports", "names": ["numpy"], "variables": []}
