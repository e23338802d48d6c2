"""Applying to a full or read-only disk, and with one for the old files. Only root can mount one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gvisor_kernel.changes.apply import undo
from gvisor_kernel.changes.change import ChangesError

from ..faults.test_full_disk import Disk, small_disk
from .helpers import apply, begin, entry, find, open_root

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
    pytest.mark.once,
]
MIB = 1024 * 1024
LARGE = bytes(MIB)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", 4 * MIB) as made:
        yield made


def use_up_inodes(disk: Disk) -> None:
    disk.remount("nr_inodes=20")
    with suppress(OSError):
        for number in range(40):
            (disk.place / f"filler{number}").touch()


HOWS = {
    "full": (lambda disk: disk.fill(), "the disk is full"),
    "little room": (lambda disk: disk.fill(MIB // 2), "the disk is full"),
    "no inodes": (use_up_inodes, "no room for another file"),
    "read-only": (lambda disk: disk.remount("ro"), "can only be read"),
}


@pytest.mark.parametrize("how", HOWS)
def test_a_folder_that_cannot_be_written_is_as_before(how: str, disk: Disk) -> None:
    place = disk.place / "shown"
    place.mkdir()
    (place / "file").write_text("before")
    (place / "folder").touch()
    spoil, words = HOWS[how]
    claims = [entry("file"), entry("new"), entry("folder", what="folder")]
    with open_root(place) as root:
        found = find(root, *claims)
        backup = begin(root)
        spoil(disk)
        result = apply(root, backup, found, LARGE)
        done = {"folder"} if how in ("full", "little room") else set()
        assert set(result.applied) == done
        assert all(words in one.reason for one in result.refused)
        assert (place / "file").read_text() == "before"
        assert {path.name for path in place.iterdir()} == {"file", "folder"}
        assert len(undo(root, backup)[0]) == len(done)
        backup.remove()


def test_without_room_for_the_old_file_nothing_is_done(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(disk.place))
    place = tmp_path / "shown"
    place.mkdir()
    (place / "file").write_bytes(LARGE)
    (place / "small").write_bytes(b"before")
    with open_root(place) as root:
        found = find(root, entry("file"), entry("small"), entry("new"))
        backup = begin(root)
        disk.fill(MIB // 2)
        result = apply(root, backup, found)
        assert result.applied == ("new", "small")
        assert [one.path for one in result.refused] == ["file"]
        assert "cannot be kept: the disk is full" in result.refused[0].reason
        disk.fill()
        assert not apply(root, backup, find(root, entry("file"))).applied
        assert (place / "file").read_bytes() == LARGE
        with pytest.raises(ChangesError, match="cannot be kept"):
            begin(root)
        disk.empty()
        assert undo(root, backup) == (["small", "new"], [])
    assert {path.name for path in place.iterdir()} == {"file", "small"}
