"""A folder for every test, and a kernel that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from .helpers import running_kernel


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook's folder of the kernels that a test starts, and the working directory."""
    path = tmp_path / "notebooks"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One kernel for all the tests of a module that leave it as it was."""
    with running_kernel(start={"cwd": str(tmp_path_factory.mktemp("shared"))}) as pair:
        yield pair


@pytest.fixture
def manager(shared: tuple[KernelManager, BlockingKernelClient]) -> KernelManager:
    return shared[0]


@pytest.fixture
def client(shared: tuple[KernelManager, BlockingKernelClient]) -> BlockingKernelClient:
    return shared[1]
