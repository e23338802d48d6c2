"""A damaged or forged snapshot costs one cold start: no error is raised, and the log says why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.snapshots.snapshot import Snapshot, check_private
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import execute, kernel_log, running_kernel
from ..sweeps import needs_all
from ..world import kernelspec_of
from .conftest import copy_snapshot, rewrite

KERNEL = kernelspec_of("restored")
Damage = Callable[[Snapshot], None]


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def pages(snapshot: Snapshot) -> Path:
    """The largest file: the memory."""
    return max(snapshot.files.iterdir(), key=lambda path: path.stat().st_size)


def replace_by_link(path: Path) -> None:
    elsewhere = path.parent.parent.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def truncate_unnoticed(snapshot: Snapshot) -> None:
    """Truncate the memory and forge the stamps, so that only runsc can notice it."""
    truncate(pages(snapshot))
    stamps = check_private(snapshot.files)
    rewrite(snapshot, lambda content: content.update(stamps=stamps))


CHANGED = "was changed after it was written"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda snapshot: truncate(pages(snapshot)), CHANGED),
    "a bit flipped": (lambda snapshot: flip_a_bit(pages(snapshot)), CHANGED),
    "a bit of meta.json flipped": (
        lambda snapshot: flip_a_bit(snapshot.directory / "meta.json"),
        "is damaged",
    ),
    "a file missing": (lambda snapshot: pages(snapshot).unlink(), CHANGED),
    "an additional file": (lambda snapshot: (snapshot.files / "more").touch(), CHANGED),
    "meta.json missing": (
        lambda snapshot: (snapshot.directory / "meta.json").unlink(),
        "No such file",
    ),
    "a file replaced by a link": (
        lambda snapshot: replace_by_link(pages(snapshot)),
        "is a symbolic link",
    ),
    "the snapshot replaced by a link": (
        lambda snapshot: replace_by_link(snapshot.directory),
        "is not a directory",
    ),
    "a folder writable by its group": (
        lambda snapshot: snapshot.files.chmod(0o770),
        "is writable by other users",
    ),
    "a file writable by its group": (
        lambda snapshot: pages(snapshot).chmod(0o660),
        "is writable by other users",
    ),
    "truncated with forged stamps": (truncate_unnoticed, "could not be restored"),
    "a forged manifest": (
        lambda snapshot: rewrite(
            snapshot, lambda content: content["manifest"]["files"].append(["/etc/passwd", 1, 2, 3])
        ),
        "/etc/passwd has changed",
    ),
    "meta.json of another snapshot": (
        lambda snapshot: rewrite(snapshot, lambda content: content.update(key="0" * 32)),
        "belongs to another snapshot",
    ),
}
if os.geteuid() == 0:
    DAMAGES["a folder of another user"] = (
        lambda snapshot: os.chown(snapshot.files, 12345, 12345),
        "belongs to another user (uid 12345)",
    )
    DAMAGES["a file of another user"] = (
        lambda snapshot: os.chown(pages(snapshot), 12345, 12345),
        "belongs to another user (uid 12345)",
    )


DETECTED_AT_RESTORE = ("truncated with forged stamps", "a forged manifest")
STARTED = (
    *("a bit flipped", *DETECTED_AT_RESTORE),
    *(
        pytest.param(name, marks=needs_all)
        for name in (
            *("truncated", "a file missing", "the snapshot replaced by a link"),
            "a folder writable by its group",
        )
    ),
)
"""One that is detected as the others are, and those that only a start detects."""


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in DETECTED_AT_RESTORE])
def test_damage_is_detected_before_restore(
    name: str,
    shared_snapshot: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    discards: Callable[[], str],
) -> None:
    damaged = copy_snapshot(tmp_path, monkeypatch)
    damage, reason = DAMAGES[name]
    damage(damaged)
    assert Store.open().snapshots() == []
    with Store.open().use(damaged.meta.key) as found:
        assert found is None
    assert reason in discards()
    assert left() == []


@pytest.mark.once
@pytest.mark.parametrize("name", STARTED)
def test_damaged_snapshot_makes_one_start_cold(
    name: str,
    shared_snapshot: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    discards: Callable[[], str],
) -> None:
    damaged = copy_snapshot(tmp_path, monkeypatch)
    damage, reason = DAMAGES[name]
    damage(damaged)
    with running_kernel(KERNEL, start={"cwd": str(tmp_path)}) as (manager, client):
        assert execute(client, "40 + 2").result == "42"
        log = kernel_log(manager)
    assert "the kernel was restored from a snapshot" not in log
    assert "the kernel starts without a snapshot" in log
    assert damaged.meta.key in discards()
    assert reason in discards()
    assert left() == []


def left() -> list[str]:
    store = Store.open()
    store.sweep()
    return sorted({path.name for path in store.root.iterdir()} - {"lock", "builder"})


def test_verify_detects_damaged_content(
    shared_snapshot: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bit that the disk loses changes no file's time, so only ``snapshot verify`` finds it."""
    damaged = copy_snapshot(tmp_path, monkeypatch)
    assert main(["snapshot", "verify"]) == 0
    flip_a_bit(pages(damaged))
    stamps = check_private(damaged.files)
    rewrite(damaged, lambda content: content.update(stamps=stamps))
    assert main(["snapshot", "verify"]) == 1
    assert f"{pages(damaged)} is damaged" in capsys.readouterr().out
    assert main(["snapshot", "remove", "--stale"]) == 0
    assert left() == []


def test_undamaged_copy_is_restored(
    shared_snapshot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_snapshot(tmp_path, monkeypatch)
    with running_kernel(KERNEL, start={"cwd": str(tmp_path)}) as (manager, client):
        assert execute(client, "40 + 2").result == "42"
        assert "the kernel was restored from a snapshot" in kernel_log(manager)
