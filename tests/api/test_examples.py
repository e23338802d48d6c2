"""The Python blocks of docs/api.md run as they are written there.

They are run in one folder, one after the other, with pandas' and the agents' packages if these are
installed here.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..sweeps import needs_all
from ..world import PROJECT

BLOCKS = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "api.md").read_text(), re.DOTALL)
PACKAGES = ("langchain_core", "pandas", "smolagents")
EXPECTED = (
    "count  1.0  1.0",
    "42\n",
    "added --- /dev/null\n+++ notes.txt\n",
    "[('report.csv', 'link')]\nb'42'\nreport.csv: it is a link, or lies behind one.\n",
    "42\n[{'right': False}, {'right': True}]\n",
    "\n3\n",
    "(1, 2)\n",
    "\n{'a': 1, 'b': 2}\n",
)
"""What each block prints, among other things."""


@pytest.fixture
def model() -> Any:
    """A model of smolagents that follows a script: a mistake, its correction, the answer."""
    smolagents = pytest.importorskip("smolagents", reason="smolagents is not installed here")
    steps = iter(
        [
            "import pandas as pd; total = pd.read_csv('sales.csv')['c']",
            "total = int(pd.read_csv('sales.csv').to_numpy().sum()); print(total)",
            "final_answer(total)",
        ]
    )

    class Scripted(smolagents.Model):  # type: ignore[misc]
        def generate(self, messages: Any, **_: Any) -> Any:
            text = f"Thought: next.\n<code>\n{next(steps)}\n</code>"
            return smolagents.ChatMessage(role="assistant", content=text)

    return Scripted()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sales.csv").write_text("a,b\n1,2\n")
    yield tmp_path
    linecache.checkcache()


# The packages of others may warn, when they are imported.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=needs_all) for number in range(1, len(EXPECTED)))]
)
def test_a_block_of_the_documentation_runs(
    number: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    shared_snapshot: str,
) -> None:
    code = BLOCKS[number]
    for package in PACKAGES:
        if package in code or (package == "pandas" and "pd." in code):
            pytest.importorskip(package, reason=f"{package} is not installed here")
    names: dict[str, Any] = {"__name__": "documentation"}
    if "model=model" in code:
        names["model"] = request.getfixturevalue("model")
    name = f"<docs/api.md, block {number}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    exec(compile(code, name, "exec"), names)  # noqa: S102 - the documentation's own
    assert EXPECTED[number] in capsys.readouterr().out


def test_each_block_is_run() -> None:
    assert len(BLOCKS) == len(EXPECTED)
