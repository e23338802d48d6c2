"""The list of fonts of a snapshot: made by a process that ends, whatever matplotlib does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.guest import font_list
from gvisor_kernel.host.processes import read_start_time

from ..jupyter.helpers import wait_until

ENDLESS = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
with open(FILE + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(FILE + ".new", FILE)
signal.pause()
"""
LIST = "open(FILE, 'x').close()"
WRITE = """
import os
folders = {}
for name in ("matplotlib", "fontconfig"):
    folders[name] = os.path.join(os.environ["XDG_CACHE_HOME"], name)
    os.mkdir(folders[name])
open(folders["matplotlib"] + "/fontlist-v390.json", "x").close()
open(folders["fontconfig"] + "/0123-le64.cache-9", "x").close()
"""
LOCK = """
open(folders["matplotlib"] + "/fontlist-v390.json.matplotlib-lock", "x").close()
for ending in ("LCK", "NEW", "TMP-abcdef"):
    open(folders["fontconfig"] + "/0123-le64.cache-9." + ending, "x").close()
"""

Pretend = Callable[[str], Path]


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Return a function that makes a package matplotlib of ``code``; it returns the path FILE."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(code: str) -> Path:
        package = tmp_path / "matplotlib"
        package.mkdir()
        (package / "__init__.py").touch()
        file = tmp_path / "written"
        (package / "font_manager.py").write_text(f"FILE = {str(file)!r}\n{code}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, font_list.MODULE, raising=False)
        monkeypatch.delitem(sys.modules, font_list.PACKAGE, raising=False)
        return file

    return make


def test_list_is_made_by_another_process(pretend: Pretend) -> None:
    file = pretend(LIST)
    assert font_list.make()
    assert file.exists()
    assert font_list.MODULE not in sys.modules


@pytest.mark.parametrize("folder", ["", "own"])
def test_only_whole_files_come_into_the_home(
    folder: str, pretend: Pretend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kernel's matplotlib would wait for a lock that nobody holds."""
    home = tmp_path / "home"
    lists = tmp_path / folder if folder else home / "matplotlib"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(lists) if folder else "")
    pretend(WRITE + LOCK)
    assert font_list.make()
    assert [path.name for path in lists.iterdir()] == ["fontlist-v390.json"]
    assert [path.name for path in (home / "fontconfig").iterdir()] == ["0123-le64.cache-9"]
    assert {path.name for path in home.iterdir()} <= {"fontconfig", "matplotlib"}


@pytest.mark.parametrize("code", ["raise ImportError", "import os; os._exit(3)", "import os, no_"])
def test_matplotlib_that_fails_costs_the_list_only(pretend: Pretend, code: str) -> None:
    pretend(code)
    assert not font_list.make()


def test_environment_without_matplotlib_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_list, "PACKAGE", "gk_no_such_package")
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.delitem(sys.modules, font_list.MODULE, raising=False)
    assert not font_list.make()


def test_list_that_takes_too_long_is_given_up(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process is killed with those that it has started, and its locks are nowhere."""
    file = pretend(WRITE + LOCK + ENDLESS)
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    wait = subprocess.Popen.wait

    def give_up(process: Any, timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        while not file.exists():
            assert process.poll() is None
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", give_up)
    assert not font_list.make()
    assert list(home.iterdir()) == []
    parent, child = map(int, file.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(parent, 0)
    # Its signal was sent; nobody here can wait for another process's child.
    wait_until(lambda: read_start_time(child) is None, "the end of the child")
