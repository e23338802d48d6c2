"""What is found of a Python environment: prefixes, links on the way, editable installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.folders import resolve_links
from gvisor_kernel.runtimes.mounts import host_python as worlds
from gvisor_kernel.runtimes.mounts.host_python import ask_interpreter, find_host_python, outermost

from .conftest import Start, make_request
from .standin import Conversation, standin_argv


def test_roots_contain_this_interpreter() -> None:
    world = find_host_python(sys.executable)
    assert "/usr" in world.roots
    for path in (sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), os.__file__):
        real = os.path.realpath(path)
        assert any(Path(real).is_relative_to(root) for root in world.roots), path


def test_no_root_is_inside_another() -> None:
    roots = find_host_python(sys.executable).roots
    assert roots == outermost(roots)


def test_probe_reports_the_same_as_this_process() -> None:
    worlds._probed.clear()
    asked = worlds._probe(sys.executable)
    known = ask_interpreter(sys.executable)
    assert asked.version == known.version
    assert asked.prefixes == known.prefixes
    assert set(asked.site_directories) == set(known.site_directories)


def test_error_names_an_interpreter_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(LaunchError, match=str(broken)):
        find_host_python(str(broken))


def test_follow_reports_each_link(tmp_path: Path) -> None:
    base = Path(os.path.realpath(tmp_path))
    (base / "versions" / "3.12.1").mkdir(parents=True)
    (base / "versions" / "3.12").symlink_to("3.12.1")
    (base / "current").symlink_to(base / "versions" / "3.12")
    for name in ("bin", "lib"):
        (base / "versions" / "3.12.1" / name).mkdir()
    links, real = resolve_links(f"{base}/current/./bin/../lib")
    assert real == f"{base}/versions/3.12.1/lib"
    assert links == {
        f"{base}/current": f"{base}/versions/3.12",
        f"{base}/versions/3.12": "3.12.1",
    }


def test_follow_refuses_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        resolve_links(str(tmp_path / "a" / "c"))


def test_prefix_that_is_a_home_shows_only_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("bin", "lib", ".ssh", "Documents"):
        (tmp_path / name).mkdir()
    assert list(worlds._show_prefix(str(tmp_path))) == [f"{tmp_path}/bin", f"{tmp_path}/lib"]


def test_virtual_environment_behind_links_works_inside(start: Start, tmp_path: Path) -> None:
    """In a private directory, behind a link, with an editable install."""
    from gvisor_kernel.config.settings import SandboxSpec
    from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime

    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    real = private / "env-1"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(real)], check=True)
    (private / "env").symlink_to("env-1")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "mine.py").write_text("value = 42\n")
    (packages,) = real.glob("lib/python*/site-packages")
    (packages / "mine.pth").write_text(f"{tmp_path / 'source'}\n")
    python = str(private / "env" / "bin" / "python")
    sandbox = RunscRuntime(init_argv=standin_argv(python)).start(
        SandboxSpec(outputs=None), make_request(tmp_path, python=python)
    )
    try:
        inside = Conversation(sandbox)
        assert inside.ask("sys.executable") == python
        assert inside.ask("__import__('mine').value") == 42
        assert inside.ask(f"sorted(os.listdir({str(private)!r}))") == ["env", "env-1"]
        assert inside.ask(f"os.access({str(private / 'env' / 'lib')!r}, os.R_OK)")
    finally:
        sandbox.close()
