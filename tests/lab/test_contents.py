"""Contents of a closed server while a sandbox moves links into their way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from tornado.web import HTTPError

from gvisor_kernel.lab.contents import FolderContents

TRIES = 300
HIDDEN = "what only the host has"


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Let two names change places all the time, as a kernel can."""
    ended = threading.Event()
    spare = one.with_name("spare")

    def swap() -> None:
        while not ended.is_set():
            with suppress(OSError):
                one.rename(spare)
                other.rename(one)
                spare.rename(other)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.txt").write_text(HIDDEN)
    outputs = tmp_path / "folder/outputs"
    for name in ("real", "target"):
        (outputs / name).mkdir(parents=True)
    (outputs / "real/a.txt").write_text("shown")
    (outputs / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "folder"


async def attack(contents: Any, path: str) -> set[str]:
    """Read, write and move a file; return what was read."""
    found = set()
    for number in range(TRIES):
        with suppress(HTTPError, OSError):
            found.add((await contents.get(path, type="file", format="text"))["content"])
        with suppress(HTTPError, OSError):
            model = {"type": "file", "format": "text", "content": "shown"}
            await contents.save(model, path)
        with suppress(HTTPError, OSError):
            moved = f"outputs/target/{number}"
            await contents.rename_file(path, moved)
            found.add((await contents.get(moved, type="file", format="text"))["content"])
    return found


def test_no_file_is_reached_by_a_link_that_comes_in_the_way(folder: Path) -> None:
    outputs = folder / "outputs"
    contents = FolderContents(root_dir=str(folder))  # type: ignore[no-untyped-call]
    with swapping(outputs / "real", outputs / "link"):
        found = asyncio.run(attack(contents, "outputs/real/a.txt"))
    assert found <= {"shown"}
    outside = folder.parent / "outside"
    assert [file.name for file in outside.iterdir()] == ["a.txt"]
    assert (outside / "a.txt").read_text() == HIDDEN


def test_a_huge_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 3 GiB, which took no space, ended the server at 17 GB of memory."""
    monkeypatch.setattr("gvisor_kernel.lab.contents.MAX_READ", 1000)
    contents: Any = FolderContents(root_dir=str(folder))  # type: ignore[no-untyped-call]
    path = "outputs/real/a.txt"
    os.truncate(folder / path, 1000)
    assert asyncio.run(contents.get(path))["size"] == 1000
    os.truncate(folder / path, 1001)
    for kind in ("file", "notebook"):
        with pytest.raises(HTTPError, match="more than 1,000 bytes"):
            asyncio.run(contents.get(path, type=kind))


def test_the_attack_succeeds_on_jupyters_own_contents(folder: Path) -> None:
    outputs = folder / "outputs"
    contents = AsyncLargeFileManager(root_dir=str(folder))  # type: ignore[no-untyped-call]
    with swapping(outputs / "real", outputs / "link"):
        found = asyncio.run(attack(contents, "outputs/real/a.txt"))
    outside = folder.parent / "outside/a.txt"  # which was moved away, too
    assert HIDDEN in found or not outside.exists() or outside.read_text() != HIDDEN
