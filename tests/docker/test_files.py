"""The archive that is copied into a sandbox: made of this machine's folders, without links out."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.copies import contents
from gvisor_kernel.runtimes.copies.contents import Contents, read_list
from gvisor_kernel.runtimes.mounts.covers import find_jupyter_covers, identify

LARGE = 2**30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    return path


def read(contents: Contents, size: int = LARGE) -> dict[str, tarfile.TarInfo]:
    packed = io.BytesIO(b"".join(contents.archive(size)))
    with tarfile.open(fileobj=packed) as archive:
        return {info.name: info for info in archive}


@contextlib.contextmanager
def open_contents(folder: Path) -> Iterator[Contents]:
    with open_path(str(folder)) as opened:
        yield Contents(folders=[("uploads", opened, "uploads")])


def read_folder(folder: Path, size: int = LARGE) -> dict[str, tarfile.TarInfo]:
    with open_contents(folder) as contents:
        return read(contents, size)


def test_archive_entries_belong_to_the_sandbox(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "private").write_text("mine")
    (folder / "sub" / "private").chmod(0o400)
    (folder / "run").write_text("x")
    (folder / "run").chmod(0o4755)
    found = read_folder(folder)
    assert set(found) == {"uploads", "uploads/run", "uploads/sub", "uploads/sub/private"}
    assert {(info.uid, info.gid) for info in found.values()} == {(0, 0)}
    assert found["uploads/sub/private"].mode == 0o600
    assert found["uploads/run"].mode == 0o755
    status = (folder / "run").stat()
    assert abs(found["uploads/run"].mtime - status.st_mtime) < 0.001


def test_archive_has_texts_and_empty_folders() -> None:
    contents = Contents(texts={"etc/hosts": "x\n"}, empty=["skills/public"])
    assert {n: i.isdir() for n, i in read(contents).items()} == {
        "skills": True,
        "skills/public": True,
        "etc": True,
        "etc/hosts": False,
    }


def test_jupyters_own_files_are_not_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie in what is copied, and whatever their name is."""
    for name in ("deep/data/runtime/k.json", "deep/data/notebook_secret", "deep/seen"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("s3cret")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / "deep" / "data"))
    names = ("uploads", "uploads/deep", "uploads/deep/data", "uploads/deep/seen")
    with open_contents(folder) as contents:
        contents.covered = identify(find_jupyter_covers([]))
        assert tuple(sorted(read(contents))) == names


def test_files_with_credentials_of_indexes_are_not_copied(folder: Path) -> None:
    for name in ("env/pip.conf", "env/seen"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("s3cret")
    with open_contents(folder) as contents:
        contents.covered = identify(find_jupyter_covers([str(folder / "env")]))
        assert sorted(read(contents)) == ["uploads", "uploads/env", "uploads/env/seen"]


def test_links_are_not_followed_and_special_files_are_left_out(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("s3cret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "file link").symlink_to(tmp_path / "secret" / "key")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    (folder / os.fsdecode(b"odd\xff")).write_text("x")
    found = read_folder(folder)
    assert set(found) == {"uploads", "uploads/link", "uploads/file link"}
    assert found["uploads/link"].issym()


def test_file_that_shrinks_while_it_is_read_is_padded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries after it keep their place."""
    (folder / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_text("after")
    header = contents._header

    def shrink(name: str, *arguments: object, **more: object) -> bytes:
        if name == "uploads/a":
            os.truncate(folder / "a", 10)
        return header(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(contents, "_header", shrink)
    found = read_folder(folder)
    assert found["uploads/a"].size == 1000
    assert found["uploads/b"].size == 5


def test_error_for_a_large_folder_names_the_setting(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(100_000))
    with open_contents(folder) as contents:
        with pytest.raises(LaunchError) as caught:
            contents.measure(50_000)
        assert str(folder) in str(caught.value)
        assert "uploads" in caught.value.hint
        with pytest.raises(LaunchError):
            b"".join(contents.archive(50_000))
        contents.measure(200_000)


def test_folders_over_the_maximum_depth_are_left_out(folder: Path) -> None:
    at = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        assert len(read_folder(folder)) <= 102
    finally:  # shutil.rmtree does not go so deep
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": [1]}', '{"a": ["x", "y"]}'])
def test_damaged_list_is_read_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert read_list(tmp_path / "list") == {}
