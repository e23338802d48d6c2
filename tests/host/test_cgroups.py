"""Cgroups of version 2, with made-up files. Real ones are tested with sandboxes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gvisor_kernel.host import cgroups
from gvisor_kernel.host.cgroups import Cgroup, HostLimits, make_cgroup

LIMITS = HostLimits(memory=1000, cpu_shares=1024, pids=50)


def make_tree(root: Path, path: str, controllers: str) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (folder / "cgroup.procs").touch()
    (folder / "cgroup.subtree_control").write_text(controllers)
    return folder


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("as_user")
def test_delegated_cgroup_of_an_ancestor_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_ = make_tree(tmp_path, "user.slice/app.slice", "memory pids\n")
    make_tree(tmp_path, "user.slice/app.slice/jupyter.scope", "")
    monkeypatch.setattr(cgroups, "_own_path_v2", lambda: "/user.slice/app.slice/jupyter.scope")
    made = make_cgroup("name", LIMITS, root=tmp_path)
    assert made.directories == (slice_ / "name",)
    assert made.bounds_memory
    assert {p.name: p.read_text() for p in (slice_ / "name").iterdir()} == {
        "memory.max": "1000",
        "pids.max": "50",
    }


@pytest.mark.usefixtures("as_user")
def test_no_cgroup_is_made_without_delegation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path, "session.scope", "")
    monkeypatch.setattr(cgroups, "_own_path_v2", lambda: "/session.scope")
    assert make_cgroup("name", LIMITS, root=tmp_path) == Cgroup()
    assert not list(tmp_path.rglob("name"))


def test_no_cgroup_is_made_without_controllers_of_version_1(tmp_path: Path) -> None:
    assert make_cgroup("name", LIMITS, root=tmp_path) == Cgroup()
    assert list(tmp_path.iterdir()) == []


def test_remove_cgroup_reports_whether_it_was_removed(tmp_path: Path) -> None:
    assert cgroups.remove_cgroup([tmp_path / "gone"], time.monotonic())
    (tmp_path / "busy" / "child").mkdir(parents=True)
    assert not cgroups.remove_cgroup([tmp_path / "busy"], time.monotonic() + 0.02)


def test_kill_cgroup_ignores_missing_processes(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("4194303\n")  # no process has this pid
    assert cgroups.kill_cgroup([tmp_path, tmp_path / "gone"]) == []


def test_oom_kills_are_counted(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert cgroups.count_oom_kills([tmp_path / "gone", tmp_path]) == 2
    assert cgroups.count_oom_kills([]) == 0


def test_a_machine_is_short_of_memory_below_a_share_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for share, short in ((1.0, True), (0.0, False)):
        monkeypatch.setattr(cgroups, "SHORT_SHARE", share)
        assert cgroups.is_host_short() is short
