"""The list of outputs, where a sandbox says whatever it likes about its folders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from gvisor_kernel.api.files import Entry, FileFailed
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.mcp import resources
from gvisor_kernel.mcp.resources import MAX_DEPTH, MAX_FOLDERS, SHOWN_OUTPUTS

pytestmark = pytest.mark.once

Listing = Callable[[str], Coroutine[Any, Any, list[Entry]]]


def make_entries(folder: str, kind: str, *names: str) -> list[Entry]:
    return [Entry(name, f"{folder}/{name}", kind, 1, 0.0) for name in names]


def list_outputs(listing: Listing) -> tuple[list[str], str]:
    """Return the names that are listed for a session whose sandbox lists a folder so."""

    async def do(work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    async def scenario() -> tuple[list[str], str]:
        files = SimpleNamespace(list=listing)
        session: Any = SimpleNamespace(
            name="python", do=do, check_alive=lambda: None, sandbox=SimpleNamespace(files=files)
        )
        found, missing = await resources.list_outputs(session)
        return [resource.name for resource in found], missing

    return asyncio.run(scenario())


def test_folders_in_folders_are_listed() -> None:
    async def listing(folder: str) -> list[Entry]:
        files = make_entries(folder, "file", "file")
        return files if folder.endswith("a") else [*files, *make_entries(folder, "folder", "a")]

    assert list_outputs(listing) == (["python: file", "python: a/file"], "")


@pytest.mark.parametrize("width", [1, 2, 1000])
def test_folders_without_an_end_end_the_list(width: int, caplog: pytest.LogCaptureFixture) -> None:
    """In each one there are more. That the list is cut is logged, and said to the client."""
    asked: list[str] = []

    async def listing(folder: str) -> list[Entry]:
        asked.append(folder)
        return make_entries(folder, "folder", *map(str, range(width)))

    names, missing = list_outputs(listing)
    assert not names
    assert len(asked) == (MAX_DEPTH if width == 1 else MAX_FOLDERS)
    assert "more than 200 folders" in missing
    assert missing in caplog.text


def test_a_sandbox_that_does_not_answer_ends_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listing(folder: str) -> list[Entry]:
        if folder.endswith("a"):
            await asyncio.Event().wait()
        return [*make_entries(folder, "file", "file"), *make_entries(folder, "folder", "a")]

    monkeypatch.setattr(resources, "LIST_SECONDS", 0.05)
    names, missing = list_outputs(listing)
    assert names == ["python: file"]
    assert "took more than" in missing


def test_many_files_end_the_list() -> None:
    async def listing(folder: str) -> list[Entry]:
        return make_entries(folder, "file", *map(str, range(SHOWN_OUTPUTS + 1)))

    names, missing = list_outputs(listing)
    assert len(names) == SHOWN_OUTPUTS
    assert missing == "there are more than 200"


def test_a_folder_that_fails_does_not_hide_others() -> None:
    async def listing(folder: str) -> list[Entry]:
        if folder.endswith("a"):
            raise FileFailed("no")
        if folder.endswith("b"):
            return make_entries(folder, "file", "file")
        return make_entries(folder, "folder", "a", "b")

    assert list_outputs(listing) == (["python: b/file"], "a folder could not be listed")


def test_a_kernel_that_ends_ends_the_list() -> None:
    async def listing(folder: str) -> list[Entry]:
        if folder.endswith("a"):
            raise SandboxError("The kernel has ended.")
        return [*make_entries(folder, "file", "file"), *make_entries(folder, "folder", "a")]

    assert list_outputs(listing) == (["python: file"], "")
