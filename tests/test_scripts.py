"""Tests of scripts/demo, docs and test: help, messages about missing programs, and the tour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .gvisor import gvisor_release
from .world import PROJECT

TOOLS = ("bash", "cat", "cksum", "cut", "dirname", "id", "mkdir", "mktemp", "python3", "unshare")


def run(*argv: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PATH": str(path)} if path else {})
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with the basic tools of any system and none of the programs to install."""
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (tmp_path / tool).symlink_to(found)
    return tmp_path


@pytest.mark.parametrize("script", ["demo", "docs", "test"])
def test_help_is_printed(script: str) -> None:
    done = run(PROJECT / "scripts" / script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: scripts/{script}")


@pytest.mark.parametrize("script", ["demo", "test"])
def test_user_without_runsc_gets_install_command(bare: Path, script: str) -> None:
    (bare / "apt-get").symlink_to("/bin/false")  # exists, but must not be called
    done = run("unshare", "--user", PROJECT / "scripts" / script, path=bare)
    assert done.returncode == 1
    line = "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends runsc'"
    assert line in done.stderr
    assert "run " + script + " again" in done.stderr


def test_system_without_apt_gets_package_names(bare: Path) -> None:
    done = run("unshare", "--user", PROJECT / "scripts" / "demo", path=bare)
    assert done.returncode == 1
    assert "this is missing: runsc" in done.stderr
    assert "gvisor.dev" in done.stderr


def test_wrong_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", "/bin/false")
    done = run(PROJECT / "scripts" / "demo")
    assert done.returncode == 1
    assert "PYTHON is /bin/false" in done.stderr


def test_tour_runs_and_leaves_plot(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2\n")
    done = run(sys.executable, PROJECT / "scripts" / "tour.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"kernel: Linux {gvisor_release()}, gVisor's own" in done.stdout
    assert (tmp_path / "outputs" / "tour.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "data.csv").read_text() == "1,2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "outputs"]


def test_docs_names_what_it_understands() -> None:
    done = run(PROJECT / "scripts" / "docs", "--biuld")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/docs")
