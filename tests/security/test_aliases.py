"""Folders that are reached by a second path: a bind mount, or a link that a kernel planted."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.mounts.host_python import find_host_python
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.state import records

from ..snapshots.conftest import make_python, packages_of
from .inside import outputs_of, uploads_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes bind mounts")


@contextmanager
def bound(source: Path, target: Path) -> Iterator[Path]:
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def refused(folder: Path, base: Path) -> None:
    """Assert that the folder is neither shown nor written, by default or by a setting."""
    assert uploads_of(SandboxSpec(), folder) is None
    for spec in (
        SandboxSpec(uploads=str(folder)),
        SandboxSpec(outputs=str(folder)),
        SandboxSpec(mounts=(ExtraMount(str(folder), "/mnt/x", read_only=False),)),
    ):
        with pytest.raises(SettingError):
            outputs_of(spec, base)


@as_root
def test_home_through_bind_mount_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "people" / "ann"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    with bound(home.parent, tmp_path / "data") as people:
        refused(people / "ann", tmp_path)
        refused(people, tmp_path)
        assert uploads_of(SandboxSpec(), people / "ann" / "work") == f"{people}/ann/work"


@as_root
def test_other_users_home_through_bind_mount_is_not_shown(tmp_path: Path) -> None:
    if not Path("/home").is_dir():
        pytest.skip("there is no /home")
    with bound(Path("/home"), tmp_path / "data") as people:
        refused(people, tmp_path)
        name = f"gk-{os.getpid()}"
        (people / name).mkdir()
        try:
            refused(people / name, tmp_path)
        finally:
            (people / name / "outputs").rmdir() if (people / name / "outputs").exists() else None
            (people / name).rmdir()


@as_root
def test_jupyter_folders_through_bind_mount_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "own" / "jupyter"
    (data / "runtime" / "deep").mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(data))
    monkeypatch.delenv("JUPYTER_RUNTIME_DIR", raising=False)
    with bound(tmp_path / "own", tmp_path / "alias") as alias:
        for folder in (alias, alias / "jupyter", alias / "jupyter" / "runtime" / "deep"):
            refused(folder, tmp_path)


def make_editable(tmp_path: Path) -> tuple[Path, str]:
    """Create a repository with a package, and an interpreter that has it as an editable install."""
    repository, prefix = tmp_path / "repository", tmp_path / "env"
    (repository / "src" / "mine").mkdir(parents=True)
    (repository / "src" / "mine" / "__init__.py").touch()
    (repository / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    python = make_python(prefix)
    (packages_of(prefix) / "mine.pth").write_text(f"{repository / 'src'}\n")
    return repository, str(python)


def note(folder: Path) -> None:
    with open_path(str(folder)) as opened, records.locked():
        note_written([opened])


def test_planted_link_to_package_is_not_followed(tmp_path: Path) -> None:
    """A later kernel does not follow a link that a kernel could have made in the repository."""
    repository, python = make_editable(tmp_path)
    package = repository / "src" / "mine"
    writable = read_written(SandboxSpec()).has
    assert str(package) in find_host_python(python, writable).roots
    private = tmp_path / "private"
    package.rename(private)
    package.symlink_to(private)
    assert str(private) in find_host_python(python, writable).roots, "a person's own link"
    note(repository)
    assert str(private) not in find_host_python(python, read_written(SandboxSpec()).has).roots


def test_package_that_links_to_jupyter_folder_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, python = make_editable(tmp_path)
    package, runtime = repository / "src" / "mine", tmp_path / "runtime"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    package.rename(runtime)
    package.symlink_to(runtime)
    assert str(runtime) not in find_host_python(python).roots


def test_interpreter_that_kernel_could_write_is_not_run(tmp_path: Path) -> None:
    """The host would run it outside of a sandbox to ask for its paths."""
    _, python = make_editable(tmp_path)
    ran = tmp_path / "ran"
    Path(python).unlink()
    Path(python).write_text(f'#!/bin/sh\ntouch {ran}\nexec {shlex.quote(sys.executable)} "$@"\n')
    Path(python).chmod(0o755)
    note(tmp_path / "env")
    with pytest.raises(LaunchError, match="where a kernel can write"):
        find_host_python(python, read_written(SandboxSpec()).has)
    assert not ran.exists()
