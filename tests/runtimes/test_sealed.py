"""What is saved of a kernel, encrypted: what was changed, cut or moved is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host import cgroups, memory_folder, processes
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.sealed import CHUNK, TAG, Cipher, read_note

PART = CHUNK - TAG
CONTENT = {
    "empty": b"",
    "short": b"secret",
    "whole": os.urandom(PART),
    "longer": os.urandom(3 * PART + 1),
    "blocks": os.urandom(17 * PART),
}


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(f"{os.urandom(32).hex()}\n")
    return f"file:{path}"


def make_record() -> Record:
    owner = processes.identify(os.getpid())
    assert owner is not None
    return Record("", "", "", "", "", 0.0, 1, owner, records.this_machine())


def write(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_suffix(".aside"))
    other.rename(one)
    one.with_suffix(".aside").rename(other)


def change(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def swap_chunks(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[CHUNK : 2 * CHUNK] + content[:CHUNK] + content[2 * CHUNK :])


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda image: change(image / "longer.sealed", CHUNK + 5),
    "a byte of the tag": lambda image: change(image / "short.sealed", -1),
    "cut within a chunk": lambda image: os.truncate(image / "longer.sealed", CHUNK + 9),
    "cut after a chunk": lambda image: os.truncate(image / "longer.sealed", 2 * CHUNK),
    "cut to nothing": lambda image: os.truncate(image / "longer.sealed", 0),
    "longer": lambda image: lengthen(image / "whole.sealed"),
    "chunks swapped": lambda image: swap_chunks(image / "longer.sealed"),
    "files swapped": lambda image: swap(image / "short.sealed", image / "whole.sealed"),
    "of another image": lambda image: swap(
        image / "whole.sealed", image.parent / "other/whole.sealed"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_is_refused(tmp_path: Path, key: str, what: str) -> None:
    cipher, seals = Cipher(key), []
    for name in ("image", "other"):
        (tmp_path / name).mkdir()
        seals.append(cipher.write_image(tmp_path / name, make_record(), write))
    image = tmp_path / "image"
    with cipher.opened(image, seals[0]) as plain:
        assert read(plain) == CONTENT
        assert plain.parts[:3] == ("/", "dev", "shm")
        assert plain.stat().st_mode & 0o777 == 0o700
    assert not plain.exists()
    CHANGES[what](image)
    with pytest.raises(SnapshotError, match="not what was saved"), cipher.opened(image, seals[0]):
        raise AssertionError("it was opened")


def test_another_key_salt_or_kernel_opens_nothing(tmp_path: Path, key: str) -> None:
    cipher, path = Cipher(key), tmp_path / "kernel.json"
    seal = cipher.write_image(tmp_path, make_record(), write)
    path.write_text(cipher.write_note('{"a": "secret"}', "one"))
    assert "secret" not in path.read_text()
    assert cipher.write_note("x", "one") != cipher.write_note("x", "one")
    assert read_note(path, "one") == (b'{"a": "secret"}', key)
    with pytest.raises(SnapshotError, match="not what was saved"):
        read_note(path, "two")
    salt = os.urandom(32).hex()
    with pytest.raises(SnapshotError), cipher.opened(tmp_path, replace(seal, salt=salt)):
        pass
    Path(key.removeprefix("file:")).write_text(os.urandom(32).hex())
    with pytest.raises(SnapshotError, match=f"with the key {key}: the key is another one"):
        read_note(path, "one")


def test_a_key_is_a_private_file_of_64_digits(tmp_path: Path, key: str) -> None:
    path = Path(key.removeprefix("file:"))
    for text, mode, words in (
        ("a" * 63, 0o600, "63 characters"),
        ("g" * 64, 0o600, "64 hexadecimal digits"),
        ("a" * 64, 0o640, "mode 0640"),
    ):
        path.write_text(text)
        path.chmod(mode)
        with pytest.raises(SnapshotError, match=words) as error:
            Cipher(key)
        assert text not in str(error.value)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(SnapshotError, match="symbolic link"):
        Cipher(f"file:{tmp_path}/link")


def test_without_room_nothing_is_written(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_folder, "find_room", lambda _: 1024)
    with pytest.raises(SnapshotError, match=r"up to 64 MiB, and 1 KiB are free"):
        Cipher(key).write_image(tmp_path, make_record(), lambda _: pytest.fail("it was written"))
    monkeypatch.setattr(memory_folder, "SHARED", str(tmp_path))
    with pytest.raises(SnapshotError, match="no tmpfs"):
        Cipher(key).write_image(tmp_path, make_record(), lambda _: pytest.fail("it was written"))


def test_what_is_beside_the_folder_needs_no_room_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel that wakes is in memory twice, and in the folder once."""
    there = os.statvfs(memory_folder.SHARED)
    free = there.f_bavail * there.f_frsize
    monkeypatch.setattr(memory_folder, "find_room", lambda _: 2 * free)
    needed = free // 4 * 3
    with memory_folder.memory_folder(needed, [], beside=needed):
        pass
    with (
        pytest.raises(SnapshotError, match="are free"),
        memory_folder.memory_folder(needed, [], beside=2 * needed),
    ):
        pass


def test_what_a_killed_process_leaves_in_memory_is_removed() -> None:
    code = (
        "import os, signal\nfrom gvisor_kernel.host.memory_folder import memory_folder\n"
        "with memory_folder(1, []) as plain:\n"
        "    (plain / 'x').write_text('secret'); print(plain, flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        plain = Path(process.stdout.readline().strip())
        memory_folder.sweep_memory()
        assert (plain / "x").exists()  # while it lives
        process.send_signal(signal.SIGKILL)
    memory_folder.sweep_memory()
    assert not plain.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes what belongs to another user")
def test_names_that_another_user_has_taken_hinder_nobody(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["one", "two", "three", "free", "four"])
    chosen = f"{memory_folder.PREFIX}test-{os.getpid()}-"
    monkeypatch.setattr(memory_folder, "PREFIX", chosen)
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    shared, mine = Path(memory_folder.SHARED), tmp_path / "mine"
    mine.mkdir()
    (mine / "file").touch()
    taken = [Path(f"{shared}/{chosen}{name}") for name in ("one", "two", "three")]
    try:
        for path in taken[:2]:
            path.mkdir()
            path.chmod(0o777)
            (path / "file").touch()
        taken[2].symlink_to(mine)
        for path in taken:
            os.lchown(path, 65533, 65533)
        seal = Cipher(key).write_image(tmp_path, make_record(), write)
        with Cipher(key).opened(tmp_path, seal) as plain:
            assert plain.name == f"{chosen}four"
            assert read(plain) == CONTENT
        assert (mine / "file").exists()
        assert all((path / "file").exists() for path in taken)
        assert {path.name for path in shared.glob(f"{chosen}*")} == {path.name for path in taken}
    finally:
        for path in taken:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)


def test_room_is_that_of_the_tightest_cgroup(tmp_path: Path) -> None:
    group = tmp_path / "above" / "own"
    group.mkdir(parents=True)
    for folder, files, most in (
        (group, ("memory.max", "memory.current"), "max"),
        (group.parent, ("memory.limit_in_bytes", "memory.usage_in_bytes"), "5000"),
    ):
        (folder / files[0]).write_text(f"{most}\n")
        (folder / files[1]).write_text("4000\n")
        (folder / "memory.stat").write_text("active_file 100\ninactive_file 200\nother 7\n")
    assert cgroups.find_room([group]) == 1300
    assert cgroups.find_room([]) > 5000
    with cgroups.raised_limit([group.parent, group], 500):
        assert cgroups.find_room([group]) == 1800
    assert (group.parent / "memory.limit_in_bytes").read_text() == "5000"
