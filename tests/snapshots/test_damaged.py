"""An image that is damaged, or a lie, costs one cold start: no error, and the log says why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.snapshots.store import Snapshot, Store, check_private

from ..jupyter.helpers import execute, kernel_log, running_kernel
from ..world import kernelspec_of
from .conftest import copy_snapshot, rewrite, said

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


def pages(image: Snapshot) -> Path:
    """The largest file: the memory."""
    return max(image.files.iterdir(), key=lambda path: path.stat().st_size)


def replace_by_link(path: Path) -> None:
    elsewhere = path.parent.parent.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def lie_of_the_pages(image: Snapshot) -> None:
    """What the file system says of the files is made to fit: runsc has to find it out itself."""
    truncate(pages(image))
    stamps = check_private(image.files)
    rewrite(image, lambda content: content.update(stamps=stamps))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda image: truncate(pages(image)), "not as it was written"),
    "a bit flipped": (lambda image: flip_a_bit(pages(image)), "not as it was written"),
    "a bit of what is known of it": (
        lambda image: flip_a_bit(image.directory / "meta.json"),
        "is damaged",
    ),
    "a file missing": (lambda image: pages(image).unlink(), "not as it was written"),
    "a file more": (lambda image: (image.files / "more").touch(), "not as it was written"),
    "nothing known of it": (lambda image: (image.directory / "meta.json").unlink(), "No such file"),
    "a link in the place of a file": (lambda image: replace_by_link(pages(image)), "is a link"),
    "a link in the place of all": (lambda image: replace_by_link(image.directory), "no directory"),
    "its folder open to a group": (lambda image: image.files.chmod(0o770), "by others"),
    "a file open to a group": (lambda image: pages(image).chmod(0o660), "by others"),
    "files that lie": (lie_of_the_pages, "could not be restored"),
    "a manifest that lies": (
        lambda image: rewrite(
            image, lambda content: content["manifest"]["files"].append(["/etc/passwd", 1, 2, 3])
        ),
        "/etc/passwd has changed",
    ),
    "another image's": (
        lambda image: rewrite(image, lambda content: content.update(key="0" * 32)),
        "another image's",
    ),
}
if os.geteuid() == 0:
    DAMAGES["another user's folder"] = (
        lambda image: os.chown(image.files, 12345, 12345),
        "another user's",
    )
    DAMAGES["another user's file"] = (
        lambda image: os.chown(pages(image), 12345, 12345),
        "another user's",
    )


AT_THE_RESTORE = ("files that lie", "a manifest that lies")
STARTED = (
    *("truncated", "a bit flipped", "a file missing", "a link in the place of all"),
    *("its folder open to a group", *AT_THE_RESTORE),
)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in AT_THE_RESTORE])
def test_is_seen_before_it_is_restored(
    name: str,
    image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = copy_snapshot(tmp_path, monkeypatch)
    damage, reason = DAMAGES[name]
    damage(damaged)
    assert Store.open().snapshots() == []
    with Store.open().use(damaged.meta.key) as found:
        assert found is None
    assert reason in said(caplog)
    assert left() == []


@pytest.mark.once
@pytest.mark.parametrize("name", STARTED)
def test_costs_one_cold_start(
    name: str,
    image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = copy_snapshot(tmp_path, monkeypatch)
    damage, reason = DAMAGES[name]
    damage(damaged)
    with running_kernel(KERNEL, start={"cwd": str(tmp_path)}) as (manager, client):
        assert execute(client, "40 + 2").result == "42"
        log = kernel_log(manager)
    assert "the kernel goes on from an image" not in log
    assert "the kernel starts without an image" in log
    assert damaged.meta.key in said(caplog)
    assert reason in said(caplog)
    assert left() == []


def left() -> list[str]:
    store = Store.open()
    store.sweep()
    return sorted({path.name for path in store.root.iterdir()} - {"lock", "builder"})


def test_what_is_in_the_files_is_checked_when_asked(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that loses a bit changes no file's time."""
    damaged = copy_snapshot(tmp_path, monkeypatch)
    assert main(["snapshot", "verify"]) == 0
    flip_a_bit(pages(damaged))
    stamps = check_private(damaged.files)
    rewrite(damaged, lambda content: content.update(stamps=stamps))
    assert main(["snapshot", "verify"]) == 1
    assert f"{pages(damaged)} is damaged" in capsys.readouterr().out
    assert main(["snapshot", "remove", "--stale"]) == 0
    assert left() == []


def test_the_copy_that_is_damaged_there_would_have_served(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_snapshot(tmp_path, monkeypatch)
    with running_kernel(KERNEL, start={"cwd": str(tmp_path)}) as (manager, client):
        assert execute(client, "40 + 2").result == "42"
        assert "the kernel goes on from an image" in kernel_log(manager)
