"""What is taken over of a folder that a sandbox has filled, and what is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.environments.collection import collect, find_packages
from gvisor_kernel.environments.environment import Facts
from gvisor_kernel.errors import ArchiveError, PackagesError
from gvisor_kernel.host.private_directories import remove_at_any_depth

from .helpers import fill


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    fill(folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_packages_and_programs_are_copied_without_the_frame(source: Path, target: Path) -> None:
    count = sum(len(folders) + len(files) for _, folders, files in os.walk(source))
    (source / "bin/demo").chmod(0o755)
    assert collect(source, target, "3.12") == count
    found = {str(p.relative_to(target)) for p in target.rglob("*") if not p.is_dir()}
    assert found == {"bin/demo", "lib/python3.12/site-packages/demo.py"}
    assert (target / "bin/demo").stat().st_mode & 0o7777 == 0o755
    assert find_packages(target, "3.12") == (("demo", "1.0"),)


def test_set_uid_bits_are_not_copied(source: Path, target: Path) -> None:
    (source / "bin/demo").chmod(0o6755)
    collect(source, target, "3.12")
    assert (target / "bin/demo").stat().st_mode & 0o7777 == 0o755


def link_out(source: Path) -> None:
    (source / "lib/python3.12/site-packages/leak").symlink_to("/etc")


def link_inside(source: Path) -> None:
    (source / "lib/python3.12/site-packages/same.py").symlink_to("demo.py")


def link_instead_of_frame(source: Path) -> None:
    (source / "bin/python3.13").symlink_to("/usr/bin/python3")


def link_above_packages(source: Path) -> None:
    (source / "lib").rename(source / "other")
    (source / "lib").symlink_to("other")


def pipe(source: Path) -> None:
    os.mkfifo(source / "bin/pipe")


def pipe_in_dev(source: Path) -> None:
    (source / "dev").mkdir()
    os.mkfifo(source / "dev/pipe")


def unix_socket(source: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "bin/socket"))


def control_character(source: Path) -> None:
    (source / "bin/\x1b[2Jclear").write_text("")


def not_utf8(source: Path) -> None:
    Path(os.fsdecode(bytes(source) + b"/bin/\xff")).write_text("")


def very_deep(source: Path) -> None:
    folder = source / "d"
    for _ in range(120):
        folder.mkdir()
        folder = folder / "d"


def other_python(source: Path) -> None:
    (source / "lib/python3.12").rename(source / "lib/python3.13")


@pytest.mark.parametrize(
    "spoil",
    [
        *(link_out, link_inside, link_instead_of_frame, link_above_packages, pipe, pipe_in_dev),
        *(unix_socket, control_character, not_utf8, very_deep, other_python),
    ],
)
def test_hostile_tree_is_refused(source: Path, target: Path, spoil: Callable[[Path], None]) -> None:
    spoil(source)
    with pytest.raises(ArchiveError):
        collect(source, target, "3.12")


def test_link_in_place_of_the_folder_is_not_followed(tmp_path: Path, target: Path) -> None:
    secret = tmp_path / "secret"
    fill(secret)
    (tmp_path / "source").symlink_to(secret)
    with pytest.raises(ArchiveError, match="cannot be opened"):
        collect(tmp_path / "source", target, "3.12")
    assert list(target.iterdir()) == []


def test_device_is_refused(source: Path, target: Path) -> None:
    try:
        os.mknod(source / "bin/null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    with pytest.raises(ArchiveError, match="device"):
        collect(source, target, "3.12")


def test_number_of_files_and_bytes_are_bounded(source: Path, target: Path) -> None:
    with pytest.raises(ArchiveError, match="the environment has more than 5 files"):
        collect(source, target, "3.12", entries=5)
    with (source / "bin/large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArchiveError, match="more disk space"):
        collect(source, target, "3.12", most=1 << 20)


def test_any_folder_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    place = os.open(top, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.symlink("/etc", "link", dir_fd=below)
        os.close(place)
        place = below
    os.fchmod(place, 0)
    os.close(place)
    (top / "d").chmod(0)
    top.chmod(0)
    remove_at_any_depth(top)
    assert not top.exists()
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"python": "3.12", "abi": ".so", "entries": -1},
        {"python": "3.12", "abi": ".so", "entries": True * 10**9},
        {"python": "../..", "abi": ".so", "entries": 1},
        {"python": "3.12", "abi": "/etc", "entries": 1},
        {"python": 3.12, "abi": ".so", "entries": 1},
    ],
)
def test_odd_answer_of_the_sandbox_is_refused(answer: object) -> None:
    with pytest.raises(PackagesError, match="odd answer"):
        Facts.parse(answer)
