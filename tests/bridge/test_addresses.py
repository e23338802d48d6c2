"""The directories for the Unix sockets of kernels, and the sweep after dead processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.bridge import addresses
from gvisor_kernel.errors import StateError

from ..world import World


def dead_name() -> str:
    """Return the name of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = addresses.owner_name(process.pid)
        process.communicate()
    assert name is not None
    assert addresses.owner_name(process.pid) != name
    return name


def test_each_process_has_private_directory(world: World) -> None:
    root = world.run / "sockets"
    base = addresses.make_base(root)
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert base == root / (addresses.owner_name(os.getpid()) or "")
    assert addresses.make_base(root) == base
    addresses.remove_base(root, base.name)
    root.rmdir()


def test_too_long_path_falls_back_to_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TMPDIR is not used, as it may be too long as well."""
    root = tmp_path / ("long" * 25)
    monkeypatch.setenv("TMPDIR", str(root))
    base = addresses.make_base(root)
    try:
        assert len(os.fsencode(base)) <= addresses.MAX_BASE
        assert stat.S_IMODE(base.stat().st_mode) == 0o700
        assert addresses.make_base(root) == base
    finally:
        addresses.remove_base(root, addresses.owner_name(os.getpid()) or "")
    assert not base.exists()
    assert not list(root.iterdir())


def test_sweep_removes_only_directories_of_dead_processes(tmp_path: Path) -> None:
    mine = tmp_path / (addresses.owner_name(os.getpid()) or "")
    (mine / "0001").mkdir(parents=True)
    for name in (dead_name(), f"{os.getpid()}-1", "4194999-12"):
        (tmp_path / name / "0002").mkdir(parents=True)
        (tmp_path / name / "0002" / "l-1").touch()
    (tmp_path / "something-else").mkdir()
    assert addresses.sweep_bases(tmp_path) == 3
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "something-else"}
    assert (mine / "0001").exists()
    assert addresses.sweep_bases(tmp_path / "nowhere") == 0


def test_sweep_follows_only_its_own_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    root = tmp_path / "sockets"
    root.mkdir()
    (root / dead_name()).symlink_to(precious)
    addresses.sweep_bases(root)
    assert not list(root.iterdir())
    assert (precious / "file").exists()


def test_unusable_root_raises_error_with_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="sockets cannot be used") as error:
        addresses.make_base(tmp_path / "file")
    assert error.value.hint
