"""Fixtures: an attacking kernel, a neighbour kernel, and checks after an attack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..jupyter.helpers import SANDBOXED
from ..world import WAYS
from .forging import DIRECT, ZMTP, armed
from .inside import SECRET, Host, Kernel, Neighbour, attacker, running_neighbour
from .lent_link import lend_link


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SANDBOXED:
        here = Path(__file__).parent
        skip = pytest.mark.skip(reason="GK_TEST_KERNEL names a kernel that is not in a sandbox")
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the host with the notebooks of attacker and neighbour, and a secret."""
    ground = tmp_path_factory.mktemp("ground")
    for name in ("notebooks", "neighbour", "private"):
        (ground / name).mkdir()
    (ground / "notebooks" / "data.csv").write_text("1,2\n")
    (ground / "private" / "secret").write_text(SECRET)
    return ground


@pytest.fixture(scope="module")
def attacker_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of the attacking kernel: the test module's SETTINGS, if any."""
    settings: dict[str, Any] = getattr(request.module, "SETTINGS", {})
    return settings


@pytest.fixture(scope="module")
def kernel(ground: Path, attacker_settings: dict[str, Any]) -> Iterator[Kernel]:
    server = os.environ | {"GK_SECRET_TOKEN": SECRET, "KERNEL_USERNAME": "mallory"}
    with attacker(ground / "notebooks", attacker_settings, env=server) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def neighbour(ground: Path) -> Iterator[Neighbour]:
    with running_neighbour(ground / "neighbour") as neighbour:
        yield neighbour


@pytest.fixture
def outputs(kernel: Kernel) -> Iterator[Path]:
    """The folder outputs on the host, emptied after the test."""
    path = kernel.folder / "outputs"
    yield path
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@pytest.fixture
def unharmed(ground: Path, neighbour: Neighbour) -> Iterator[None]:
    """After the attack check that the host's files are unchanged and the neighbour answers."""
    outputs = ground / "notebooks" / "outputs"
    host = Host((ground,), left_out=(outputs,))
    before = host.look()
    yield
    assert host.look() == before
    neighbour.check()


# For attacks on the link: tests/security/forging.py.


@pytest.fixture(scope="module")
def kept_outputs(ground: Path) -> None:
    """Create outputs beforehand, so that no sandbox creates or removes it."""
    (ground / "notebooks" / "outputs").mkdir()


@pytest.fixture(scope="module")
def victim_kernel(ground: Path, kept_outputs: None) -> Iterator[Kernel]:
    with pytest.MonkeyPatch.context() as patch:
        lend_link(patch)
        with attacker(ground / "notebooks") as kernel:
            yield kernel


@pytest.fixture(scope="module")
def survivor_kernel(ground: Path, kept_outputs: None) -> Iterator[Kernel]:
    with attacker(ground / "notebooks") as kernel:
        yield kernel


@pytest.fixture(scope="module")
def relayed_kernel(ground: Path, kept_outputs: None) -> Iterator[Kernel]:
    settings = {**WAYS["relay"], "memory_limit": "256M"}
    with attacker(ground / "notebooks", settings) as kernel:
        yield kernel


@pytest.fixture
def victim(victim_kernel: Kernel) -> Kernel:
    """A kernel for attacks that send as PID 1, or that end its sandbox; each gets a new sandbox."""
    return armed(victim_kernel, DIRECT)


@pytest.fixture
def survivor(survivor_kernel: Kernel) -> Kernel:
    """A kernel for attacks that PID 1 handles: one sandbox for all."""
    return armed(survivor_kernel, DIRECT)


@pytest.fixture
def relayed(relayed_kernel: Kernel) -> Kernel:
    """An attacking kernel that speaks ZMQ to PID 1."""
    return armed(relayed_kernel, ZMTP)
