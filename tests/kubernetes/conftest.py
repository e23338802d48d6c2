"""A cluster for the tests of this folder, and kernels in it.

``test_real_cluster.py`` runs in a real cluster instead, if the environment names one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.runtimes.state.records import find_sandboxes

from ..jupyter.helpers import running_kernel, wait_for_text, wait_until
from .fake_cluster import IMAGE, FakeCluster, is_root

Kernel = tuple[KernelManager, BlockingKernelClient]
Start = Callable[..., AbstractContextManager[Kernel]]

SETTINGS: dict[str, Any] = {
    "runtime": "kubernetes",
    "image": IMAGE,
    "snapshot": "off",
    "memory_limit": "1G",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    """The tests' own cluster. Its pods run as another user, which only root can arrange."""
    if not is_root():
        pytest.skip("the tests' own node starts sandboxes of another user: only root can")
    base = Path(tempfile.mkdtemp(prefix="gk-kubernetes-"))
    base.chmod(0o755)
    made = FakeCluster(base / "cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(made.config))
        yield made
    made.close()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    return path


@pytest.fixture
def start(folder: Path, cluster: FakeCluster) -> Iterator[Start]:
    """Start a kernel in ``folder``; nothing of it may be left in the cluster."""

    @contextmanager
    def start_one(**settings: Any) -> Iterator[Kernel]:
        with running_kernel(
            settings={**SETTINGS, **settings}, start={"cwd": str(folder)}
        ) as kernel:
            yield kernel

    yield start_one
    wait_until(lambda: not cluster.pods, "all pods to be removed")
    wait_until(lambda: not find_sandboxes(), "all records to be removed")


def read_death(kernel: Kernel, act: Callable[[], object]) -> str:
    """Return what a cell that runs says when ``act`` ends its kernel."""
    _, client = kernel
    client.execute("import time; print('runs', flush=True); time.sleep(1000)")
    wait_for_text(client, "runs")
    act()
    message = client.get_iopub_msg(timeout=60)
    while message["msg_type"] != "error":
        message = client.get_iopub_msg(timeout=60)
    return str(message["content"]["evalue"])
