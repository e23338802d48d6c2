"""Kernels that outlive their server: left by it in order, or saved when it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from gvisor_kernel.errors import StateError
from gvisor_kernel.kernel import saved_budget
from gvisor_kernel.kernel.saved_kernel import find_saved
from gvisor_kernel.runtimes.state.kept_packages import KEPT
from gvisor_kernel.runtimes.state.listed import Listed, find_all
from gvisor_kernel.server.sandboxes import find_leftovers

from ..patience import scale_seconds
from ..world import PROJECT
from .helpers import wait_until


def run(way: str, kernel_id: str, folder: Path, **settings: object) -> tuple[list[str], int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.jupyter.keeper", way, kernel_id, json.dumps(settings)],
        cwd=folder,
        env=None,
        capture_output=True,
        text=True,
        timeout=scale_seconds(120),
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout.splitlines(), done.returncode


def find(kernel_id: str) -> Listed | None:
    return next((one for one in find_all() if one.record.kernel_id == kernel_id), None)


def wait_for_saved(kernel_id: str) -> Listed:
    """Wait until the process that a killed server leaves has saved its kernel."""
    deadline = time.monotonic() + scale_seconds(60)
    while True:
        found = find(kernel_id)
        if found is not None and found.state == "hibernated":
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


@pytest.mark.parametrize("way", ["leave", "die asleep", "die idle", "die now", "die busy"])
def test_a_kernel_outlives_its_server(way: str, folder: Path) -> None:
    kernel_id = str(uuid.uuid4())
    printed, status = run(way, kernel_id, folder)
    assert printed[0] == "1 None"
    assert status == (-9 if way.startswith("die") else 0)
    saved = wait_for_saved(kernel_id)
    assert (saved.directory / "saved").stat().st_mode & 0o777 == 0o700
    # Its packages are kept by what the server leaves behind, if that had no time for it.
    wait_until((saved.directory / "saved" / KEPT).exists, "its packages are kept")
    printed, _ = run("take over", kernel_id, folder)
    # The loop was under way when its server was killed, and has gone on to its end.
    assert printed == [f"2 {39 if way == 'die busy' else None}"]
    assert find(kernel_id) is None


@pytest.mark.parametrize("way", ["leave, before going back", "die going back"])
def test_checkpoints_come_with_the_kernel(way: str, folder: Path) -> None:
    kernel_id = str(uuid.uuid4())
    printed, _ = run(way, kernel_id, folder)
    assert printed[:2] == ["1 None", "2 None"]
    saved = wait_for_saved(kernel_id)
    assert (saved.directory / "checkpoints").stat().st_mode & 0o777 == 0o700
    one = saved.directory / "checkpoints" / "one"
    one.rename(one.with_name("one.old"))  # as if it was being replaced when its server was killed
    # First what it was when its server ended, whatever that did then; then the checkpoint.
    assert run("take back", kernel_id, folder)[0] == ["3 None", "()", "2 None"]
    assert find(kernel_id) is None


def test_encrypted_kernels_outlive_their_server(folder: Path, tmp_path: Path) -> None:
    key, ids = tmp_path / "key", [str(uuid.uuid4()) for _ in range(2)]
    key.touch(0o600)
    key.write_text(os.urandom(32).hex())
    settings = {"hibernate_key": f"file:{key}", "transcripts": False}
    assert run("die idle", ids[0], folder, **settings)[0] == ["1 None"]
    assert run("leave", ids[1], folder, **settings)[0][0] == "1 None"
    saved, other = (wait_for_saved(one).directory / "saved" for one in ids)
    for place in (saved, other):
        assert {path.suffix for path in (place / "image").iterdir()} == {".sealed"}
    for note in (saved.parent / "kernel.json", saved / "kernel.json"):
        assert note.read_text().startswith('{"sealed": 1')
    # Without the key, or with what was saved of another kernel, it is not taken, and stays.
    aside = tmp_path / "aside"
    for path, words in ((key, "cannot be read"), (saved / "kernel.json", "not what was saved")):
        path.rename(aside)
        if path != key:
            path.write_bytes((other / "kernel.json").read_bytes())
        with pytest.raises(StateError, match=words):
            find_saved(ids[0])
        aside.rename(path)
    for one in ids:
        assert run("take over", one, folder)[0] == ["2 None"]
        assert find(one) is None


def test_another_kernel_is_not_taken_over(folder: Path) -> None:
    kernel_id = str(uuid.uuid4())
    run("leave", kernel_id, folder)
    printed, _ = run("take another", str(uuid.uuid4()), folder)
    assert printed == ["1 None"]
    assert wait_for_saved(kernel_id)
    assert run("take over", kernel_id, folder)[0] == ["2 None"]


def test_what_is_removed_is_told_before_and_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> tuple[object, ...]:
        (one,) = (one for one in find_leftovers() if one["id"] == saved.id)
        assert one["folder"] == str(folder)
        return one["state"], one["next"], one["removed"]

    kernel_id = str(uuid.uuid4())
    run("leave", kernel_id, folder)
    saved = wait_for_saved(kernel_id)
    end = saved.record.saved + 30 * 86400
    assert look() == ("hibernated", False, end)
    for name, value in (("WARN_SECONDS", 31 * 86400), ("MAX_SIZE", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(saved_budget, name, value)
            assert look() == ("hibernated", True, end)
    saved_budget.remove_old()
    assert look() == ("hibernated", False, end)
    monkeypatch.setattr(saved_budget, "MAX_SIZE", 1)
    began = time.time()
    saved_budget.remove_old()
    assert not saved.directory.exists()
    state, is_next, removed = look()
    assert (state, is_next) == ("removed", False)
    assert isinstance(removed, float)
    assert began <= removed <= time.time()
    monkeypatch.setattr(saved_budget, "REMEMBER_SECONDS", 0)
    assert not [one for one in find_leftovers() if one["id"] == saved.id]


def test_what_was_withdrawn_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    kernel_id = str(uuid.uuid4())
    mount = {"source": str(tmp_path), "target": "/mnt/own", "read_only": False}
    run("leave", kernel_id, folder, mounts=[mount])
    for less in ({}, {"mounts": [mount | {"read_only": True}]}):
        (printed, *_), _ = run("take and leave", kernel_id, folder, **less)
        assert printed.startswith("NotResumed")
        assert f"writable {tmp_path} at /mnt/own (mounts)." in printed
    (printed, *_), _ = run("take and leave", kernel_id, folder, mounts=[mount], outputs=None)
    assert "outputs (outputs)." in printed
    assert run("take over", kernel_id, folder, mounts=[mount])[0] == ["2 None"]
