"""Fixtures: a folder for each test, and a kernel per module, started in each way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from ..world import WAYS
from .helpers import assert_way, running_kernel


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook's folder of the kernels that a test starts, and the working directory."""
    path = tmp_path / "notebooks"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> str:
    """How the kernels of a module start; such as ``pytestmark = every_way``."""
    name = str(getattr(request, "param", ""))
    if name == "restored":
        request.getfixturevalue("shared_snapshot")
    server = {"docker": "dockerd", "ssh": "sshd", "slurm": "cluster"}.get(name)
    if server:
        request.getfixturevalue(server)
    return name


@pytest.fixture(scope="module")
def shared(
    way: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One kernel for all tests of a module that do not change it."""
    start = {"cwd": str(tmp_path_factory.mktemp("shared"))}
    with running_kernel(settings=WAYS.get(way), start=start) as (manager, client):
        if way:
            assert_way(manager, client, way)
        yield manager, client


@pytest.fixture
def manager(shared: tuple[KernelManager, BlockingKernelClient]) -> KernelManager:
    return shared[0]


@pytest.fixture
def client(shared: tuple[KernelManager, BlockingKernelClient]) -> BlockingKernelClient:
    return shared[1]
