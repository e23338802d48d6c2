"""What a person is told of a path that a sandbox does not show, and how paths are translated."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gvisor_kernel.guest import missed_paths
from gvisor_kernel.guest.missed_paths import MissedPaths, change_directory, explain, find_shown
from gvisor_kernel.guest.workspace import EMPTY, PATHS, TOLD, VARIABLE
from gvisor_kernel.kernel.host_paths import make_digest

SALT = b"0123456789abcdef"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /workspace, which shows /home/me/proj; the notebook is in a folder of it."""
    place = tmp_path / "workspace"
    (place / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(missed_paths, "WORKSPACE", str(place))
    monkeypatch.chdir(place / "notebooks")
    shown = {make_digest("/home/me/proj", SALT): str(place)}
    monkeypatch.setenv(PATHS, json.dumps([SALT.hex(), shown]))
    monkeypatch.setenv(VARIABLE, TOLD)
    return place


def missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(2, "No such file or directory", path)


def test_a_path_of_the_host_is_found_by_its_digest(workspace: Path) -> None:
    assert find_shown("/home/me/proj") == str(workspace)
    assert find_shown("/home/me/proj/./data/../notebooks") == f"{workspace}/notebooks"
    for other in ("/home/me/project", "/home/me", "/", ""):
        assert not find_shown(other)
    assert "/home" not in os.environ[PATHS]


def test_the_folder_of_the_host_can_be_entered(workspace: Path) -> None:
    change_directory("/home/me/proj")
    assert Path.cwd() == workspace
    with pytest.raises(FileNotFoundError, match="/home/me/proj/none"):
        change_directory("/home/me/proj/none")
    with pytest.raises(FileNotFoundError):
        change_directory("none")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (missing("../../data/a.csv"), "is above the folder"),
        (FileNotFoundError("../../images/a.png not found."), "../../images/a.png is above"),
        (missing("/home/me/proj/data/a.csv"), "/data/a.csv in the sandbox: write that"),
        (missing("/datasets/a.csv"), "/datasets/a.csv is not shown"),
        (missing("C:\\Users\\me\\a.csv"), "a.csv is not shown"),
        (missing("/home/me/\x1b[2J.csv"), "/home/me/?[2J.csv is not shown"),
        (missing("a.csv"), ""),
        (missing("../a.csv"), ""),
        (missing("/tmp/none.csv"), ""),
        (missing(""), ""),
        (FileNotFoundError(), ""),
        (ModuleNotFoundError("No module named 'x'"), ""),
    ],
)
def test_what_is_told(error: BaseException, told: str) -> None:
    text = explain(error, [TOLD])
    assert told in text
    assert bool(told) == bool(text)


def test_a_module_beside_the_folder_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'tool'", name="tool")
    monkeypatch.setattr(sys, "path", ["/none/lib/python3.zip", "../../src"])
    assert "../../src is above" in explain(error, [])


def test_it_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    paths = MissedPaths()
    for error in (None, ValueError(), missing("a"), missing("/datasets/a"), missing("/datasets/b")):
        paths.after_cell(SimpleNamespace(error_in_exec=error))
    told = capsys.readouterr().err
    assert told.count("gvisor-kernel:") == 1
    assert "/datasets/a" in told
    assert "lies directly in a home" in explain(missing("a"), [TOLD, EMPTY])


@pytest.mark.parametrize("facts", ["", "[]", "null", "[1, {}]", '["00", 1]'])
def test_other_facts_are_ignored(facts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of the kernel may have changed them."""
    monkeypatch.setenv(PATHS, facts)
    assert not find_shown("/home/me/proj")
    assert "is not shown" in explain(missing("/datasets/a"), [])
