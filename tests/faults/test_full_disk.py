"""A full or read-only disk of the host gives an error with the reason, and nothing is left.

The disks are small tmpfs mounts, so only root runs most of these tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.spec.layout import SCRATCH

from .. import leaks
from ..jupyter.helpers import execute, kernel_log, running_kernel
from ..sweeps import ALL, needs_all
from ..world import World

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
KIB = 1024
NO_ROOM = re.compile(r"no space left|no room|disk is full|too full|there is room for", re.I)
NOT_FOR_PEOPLE = re.compile(r"Traceback|Error\(", re.I)
LEFT = (0, 4, 8, 16, 32, 64, 128, 256, 512) if ALL else (0, 32, 512)
"""KiB that are free when a kernel starts."""


class Disk:
    """A small file system, which can be filled."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        self._filler = place / "filler"
        place.mkdir(mode=0o700, exist_ok=True)
        options = f"mode=0700,size={size // KIB}k"
        mount = ["mount", "-t", "tmpfs", "-o", options, "gvisor-kernel-test", str(place)]
        subprocess.run(mount, check=True)

    def fill(self, left: int = 0) -> None:
        """Leave ``left`` bytes free, or fewer."""
        with suppress(OSError), self._filler.open("ab") as file:
            while True:
                file.write(bytes(4 * KIB))
                file.flush()
        status = self._filler.stat()
        os.truncate(self._filler, max(status.st_size - left, 0))

    def empty(self) -> None:
        self._filler.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.place)], check=True)

    def content(self) -> set[Path]:
        return {path for path in self.place.rglob("*") if path != self._filler}

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Disk]:
    disk = Disk(place, size)
    try:
        yield disk
    finally:
        disk.remove()


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    before = leaks.find_things(world)
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left, "\n".join(sorted(left))


def try_to_start(**settings: Any) -> str:
    """Start a kernel and use it; return the error's text, or "" if it works."""
    try:
        with running_kernel(settings={"snapshot": "off", **settings}) as (_, client):
            assert execute(client, "6 * 7").result == "42"
            return ""
    except GvisorKernelError as error:
        words = str(error)
        assert not NOT_FOR_PEOPLE.search(words), words
        return words


@root_only
def test_start_with_little_room_is_refused_or_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any free space the start is refused with the reason, or it works."""
    with small_disk(world.base / "d1", 1024 * KIB) as disk:
        monkeypatch.setenv("XDG_STATE_HOME", str(disk.place))
        state_root()
        refused = []
        for left in LEFT:
            disk.fill(left * KIB)
            words = try_to_start()
            assert not words or NO_ROOM.search(words), words
            refused.append(bool(words))
            disk.empty()
            assert not records.sandbox_directories()
        assert refused[0]
        assert not refused[-1]
        assert not try_to_start()


@root_only
def test_running_kernel_survives_full_state_directory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs and transcripts get gaps; kernels run, restart and end."""
    with small_disk(world.base / "d1", 4096 * KIB) as disk:
        monkeypatch.setenv("XDG_STATE_HOME", str(disk.place))
        with running_kernel(settings={"snapshot": "off"}) as (manager, client):
            disk.fill()
            answer = execute(client, "print('x' * 3_000_000); 6 * 7")
            assert answer.text == "x" * 3_000_000 + "\n"
            assert answer.result == "42"
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            assert execute(client, "6 * 7").result == "42"
        assert not records.sandbox_directories()


@root_only
@pytest.mark.once
def test_full_outputs_folder_gives_error_in_cell(tmp_path: Path) -> None:
    with small_disk(tmp_path / "outputs", 1024 * KIB) as disk:
        settings = {"outputs": str(disk.place), "snapshot": "off"}
        with running_kernel(settings=settings) as (_, client):
            code = "open('/mnt/user-data/outputs/x', 'wb').write(bytes(2 << 20))"
            assert execute(client, code).error == "OSError"
            assert execute(client, "6 * 7").result == "42"
        disk.fill()
        assert not try_to_start(**settings)


@root_only
@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "TMPDIR",
        *(pytest.param(name, marks=needs_all) for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR")),
    ],
)
def test_start_with_full_user_folder_is_refused_or_works(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is refused with the reason if it needs the folder, or works."""
    with small_disk(world.base / "d2", 64 * KIB) as disk:
        monkeypatch.setenv(name, str(disk.place))
        monkeypatch.setattr("tempfile.tempdir", None)
        disk.fill()
        words = try_to_start()
        assert not words or NO_ROOM.search(words), words
        assert not [path for path in disk.content() if path.is_file() and path.stat().st_size]
        disk.empty()
        assert not try_to_start()


@root_only
@pytest.mark.once
@pytest.mark.parametrize(
    "size", [pytest.param(16, marks=needs_all), 60, pytest.param(120, marks=needs_all)]
)
def test_no_snapshot_is_made_without_room(
    size: int,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The command gives the reason, whichever limit comes first; kernels start cold."""
    monkeypatch.chdir(tmp_path)
    with small_disk(world.base / "d3", size * KIB * KIB) as disk:
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk.place))
        assert main(["snapshot", "build"]) == 1
        said = capsys.readouterr().err
        assert NO_ROOM.search(said), said
        assert not NOT_FOR_PEOPLE.search(said), said
        assert not [
            path
            for path in disk.content()
            if "-" in path.name and path.is_dir() and path.parent.name == "images"
        ]
        with running_kernel(settings={"snapshot": "auto"}) as (manager, client):
            assert execute(client, "6 * 7").result == "42"
            assert "was restored from a snapshot" not in kernel_log(manager)


def test_read_only_state_directory_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.base / "d4"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    try:
        with read_only(place):
            words = try_to_start()
            assert str(place) in words
            assert "What to do: " in words
            assert re.search("read-only|permission denied", words, re.I)
        with running_kernel(settings={"snapshot": "off"}) as (_, client), read_only(place):
            assert execute(client, "6 * 7").result == "42"
        assert not records.sandbox_directories()
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    if os.geteuid() == 0:
        kept = place.with_name("kept")
        kept.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
            kept.rmdir()
        return
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o500)
    try:
        yield
    finally:
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


def test_running_kernel_survives_removed_state_directory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel continues and ends, and the next start makes the directory again."""
    if any(is_within(sys.executable, place) for place in SCRATCH):
        pytest.skip("folders that lead to this Python would be in the state directory")
    place = world.base / "d5"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    with running_kernel(settings={"snapshot": "off"}) as (manager, client):
        shutil.rmtree(place)
        assert execute(client, "print('whole'); x = 6 * 7").text == "whole\n"
        assert execute(client, "x").result == "42"
        manager.interrupt_kernel()
        assert execute(client, "x").result == "42"
    assert not try_to_start()
    with running_kernel(settings={"snapshot": "off"}) as (manager, _):
        shutil.rmtree(place)
        with pytest.raises(GvisorKernelError, match=str(place)):  # clients could not connect
            manager.restart_kernel(now=True)
        manager.cleanup_resources()
    assert not try_to_start()
    shutil.rmtree(place)
