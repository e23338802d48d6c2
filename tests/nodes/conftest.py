"""Fixtures: kernels on nodes, in a folder of their own, and whatever they leave on the nodes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.runtimes.state import records

from .. import leaks
from ..jupyter.helpers import running_kernel, wait_until
from ..sweeps import needs_all
from ..world import WAYS, World
from .cluster import needs_slurm
from .sshd import needs_sshd

NEEDS = {"ssh": needs_sshd, "slurm": needs_slurm}


def ways(**usual: bool) -> pytest.MarkDecorator:
    """Run a test by each of ``ssh`` and ``slurm`` that is named; by one that is False with
    ``--all`` only."""
    found = [
        pytest.param(name, marks=[*NEEDS[name], *([] if usual[name] else [needs_all])])
        for name in usual
    ]
    return pytest.mark.parametrize("way", found, indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """The runtime, whose servers run."""
    request.getfixturevalue({"ssh": "sshd", "slurm": "cluster"}[request.param])
    return str(request.param)


Kernel = tuple[KernelManager, BlockingKernelClient]
Start = Callable[..., AbstractContextManager[Kernel]]
SANDBOXES = re.compile(r"runsc|gvisor_kernel\.node|srun|ssh -T")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    return path


@pytest.fixture
def start(folder: Path, nodes: Nodes) -> Iterator[Start]:
    """Start a kernel in ``folder``; nothing of it may be left on the server or the nodes."""

    @contextmanager
    def start_one(way: str, **settings: Any) -> Iterator[Kernel]:
        merged = {**WAYS[way], **settings}
        merged[way] = {**WAYS[way][way], **settings.get(way, {})}
        with running_kernel(settings=merged, start={"cwd": str(folder)}) as kernel:
            yield kernel

    yield start_one
    nodes.wait_until_clean()


class Nodes:
    """What sandboxes have on the nodes, which are this machine."""

    def __init__(self, world: World) -> None:
        self._world = world

    def left(self) -> list[str]:
        """Return the directories and processes that sandboxes have on nodes and server."""
        found = [str(path) for path in self._world.base.glob("node/*/*/*/sandboxes/*")]
        found += map(str, self.copies())
        found += [str(path) for path, _ in records.find_sandboxes()]
        return found + sorted(leaks.processes(self._world, SANDBOXES))

    def copies(self) -> list[Path]:
        """Return the copies of files that are on the nodes."""
        return list(self._world.base.glob("node/gvisor-kernel-copies/*/*"))

    def helpers(self) -> list[int]:
        """Return the pids of the helpers that run, which are no clients."""
        folder = re.escape(str(Path(sys.executable).parent))
        return self._pids(rf"({folder}/)?python\S* -P -m gvisor_kernel\.node .*serve$")

    def clients(self, program: str) -> list[int]:
        return self._pids(rf"(/usr/bin/)?{program} ")

    def sentries(self) -> list[int]:
        return self._pids("runsc-sandbox")

    def _pids(self, start: str) -> list[int]:
        lines = leaks.processes(self._world, re.compile(f"^{start}|^/\\S*{start}"))
        return sorted(int(line.split()[1]) for line in lines)

    def wait_until_clean(self) -> None:
        wait_until(lambda: self.left() == [], f"an end of {self.left()}", 60)


@pytest.fixture
def nodes(world: World) -> Nodes:
    return Nodes(world)
