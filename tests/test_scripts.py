"""Tests of scripts/demo, docs and test: help, messages about missing programs, and the tour; and of
.ci/run: where it runs the suite, and what it leaves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.runtimes.mounts.plan import OWN_PLACES

from .gvisor import gvisor_release
from .world import PROJECT

UNSHARE = str(shutil.which("unshare"))
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
def test_user_without_a_program_gets_install_command(bare: Path, script: str) -> None:
    (bare / "apt-get").symlink_to("/bin/false")  # exists, but must not be called
    (bare / "unshare").unlink()
    done = run(UNSHARE, "--user", PROJECT / "scripts" / script, path=bare)
    assert done.returncode == 1
    line = "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends util-linux'"
    assert line in done.stderr
    assert "run " + script + " again" in done.stderr


def test_system_without_apt_gets_package_names(bare: Path) -> None:
    (bare / "unshare").unlink()
    done = run(UNSHARE, "--user", PROJECT / "scripts" / "demo", path=bare)
    assert done.returncode == 1
    assert "this is missing: util-linux" in done.stderr


NEED_RUNSC = """
source "$1/scripts/common.sh"
VENV="$2"
find_runsc() { cat "$VENV/found" 2>/dev/null; }
id() { echo 1000; }
need_runsc
echo "with $RUNSC"
"""


def need_runsc(environment: Path) -> subprocess.CompletedProcess[str]:
    return run("bash", "-euo", "pipefail", "-c", NEED_RUNSC, "-", PROJECT, environment)


def test_scripts_get_runsc_by_the_command_that_they_name(tmp_path: Path) -> None:
    """The command itself is tried in tests/cli/test_offer.py."""
    program = tmp_path / "bin" / "gvisor-kernel"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no bucket' >&2; exit 1\n")
    program.chmod(0o755)
    done = need_runsc(tmp_path)
    assert done.returncode == 1
    assert f"{program} runsc install" in done.stderr
    assert "docs/install.md" in done.stderr
    program.write_text(
        f'#!/bin/sh\n[ "$*" = "runsc install" ] && echo /x/runsc > {tmp_path}/found\n'
    )
    done = need_runsc(tmp_path)
    assert "gvisor-kernel runsc install" in done.stdout
    assert done.stdout.endswith("with /x/runsc\n")
    program.unlink()
    assert need_runsc(tmp_path).stdout == "with /x/runsc\n"


def test_wrong_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", "/bin/false")
    done = run(PROJECT / "scripts" / "demo")
    assert done.returncode == 1
    assert "PYTHON is /bin/false" in done.stderr


ELSEWHERE = """
mount -t tmpfs none "$2" && mkdir -p "$3" && mount --bind "$1" "$3" && exec "$3/scripts/demo"
"""
"""Runs the demo of a folder at another place, in namespaces of its own."""


@pytest.mark.parametrize("place", OWN_PLACES)
def test_clone_at_a_place_of_the_sandbox_is_refused(place: str, tmp_path: Path) -> None:
    listed = re.findall(r"own\+?=\((.*)\)", (PROJECT / "scripts" / "common.sh").read_text())
    assert place in " ".join(listed).split()
    top = f"/{place.split('/')[1]}"
    if not Path(top).is_dir():
        pytest.skip(f"this machine has no {top}")
    shutil.copytree(PROJECT / "scripts", tmp_path / "scripts")  # top may be above the checkout
    argv = ("unshare", "-rm", "bash", "-c", ELSEWHERE, "-", tmp_path, top, f"{place}/clone")
    done = run(*argv)
    assert done.returncode == 1, done.stderr
    assert f"{place} belongs to the sandbox" in done.stderr
    assert "Move the clone to another folder" in done.stderr


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


SUITE = """#!/usr/bin/env bash
cd "$(dirname "$0")/.."
find . -type f -printf '%P/ '
echo "with $*"
if [ "$1" = wait ]; then sleep 1000; fi
exit 7
"""
"""Stands for scripts/test: says in which folder it is, with which files and arguments."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a tracked file, a removed one, a new one and an ignored one."""
    folder = tmp_path / "checkout"
    for name in (".ci/run", "scripts/test", ".gitignore", "tracked", "removed"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    shutil.copy(PROJECT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "scripts/test").write_text(SUITE)
    (folder / "scripts/test").chmod(0o755)
    (folder / ".gitignore").write_text("*.log\n")
    for words in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", folder, *words], check=True)
    (folder / "removed").unlink()
    for name in ("new [1] ü", "ignored.log"):
        (folder / name).touch()
    return folder


@pytest.mark.once
def test_ci_runs_the_suite_in_a_copy_elsewhere(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLONE", str(tmp_path / "made" / "a place" / "kernel"))
    done = run(checkout / ".ci" / "run", "-k", "a b")
    assert done.returncode == 7, done.stderr
    told, files = done.stdout.splitlines()
    assert told == f"==> Testing in a copy: CLONE='{os.environ['CLONE']}'"
    names, _, arguments = files.partition("with ")
    assert sorted(names.split("/ ")) == [
        *("", ".ci/run", ".gitignore", "new [1] ü", "scripts/test", "tracked"),
    ]
    assert arguments == "-k a b"
    assert not (tmp_path / "made").exists()
    monkeypatch.setenv("CLONE", str(checkout))
    assert "exists" in run(checkout / ".ci" / "run").stderr
    assert (checkout / "tracked").exists()
    monkeypatch.delenv("CLONE")
    said = [run(checkout / ".ci" / "run") for _ in range(4)]
    assert len({done.stdout.partition("\n")[0] or done.stderr for done in said}) > 1


@pytest.mark.once
def test_ci_that_is_ended_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    clone = tmp_path / "made" / "clone"
    argv = [checkout / ".ci" / "run", "wait"]
    environment = {**os.environ, "CLONE": str(clone)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "with wait" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""  # also the suite's processes have ended
        assert process.wait() == 143
    assert not clone.parent.exists()
    assert (checkout / "tracked").exists()
