"""Starts sandboxes of the runtime under test, and closes them whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes.base import LaunchRequest, Sandbox
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.spec.identity import Identity, new_identity

from .standin import Conversation, standin_argv

Start = Callable[..., Conversation]

AS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(
    not AS_ROOT, reason="only root can start sandboxes for other users' folders"
)


STARTED: set[str] = set()
"""The container ids of the sandboxes that this process has started."""


@pytest.fixture(scope="session", autouse=True)
def record_container_ids() -> Iterator[None]:
    def make_identity(*arguments: Any) -> Identity:
        identity = new_identity(*arguments)
        STARTED.add(identity.container_id)
        return identity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gvisor_kernel.runtimes.runsc.runtime.new_identity", make_identity)
        yield


def make_request(folder: Path, **changes: str) -> LaunchRequest:
    return LaunchRequest(
        kernel_name="gvisor-python",
        kernel_id="11111111-2222-3333-4444-555555555555",
        folder=folder,
        python=changes.get("python", sys.executable),
        environment={"SECRET": "s3cret", "WANTED": "w"},
    )


@contextmanager
def overlay(base: Path) -> Iterator[Path]:
    """Mount a file system without idmapped mounts, so that root lends outputs there. Root only."""
    for name in ("lower", "upper", "work", "mounted"):
        (base / name).mkdir()
    layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", layers, "overlay", base / "mounted"], check=True
    )
    try:
        yield base / "mounted"
    finally:
        subprocess.run(["umount", base / "mounted"], check=True)


@pytest.fixture(scope="module")
def runtime() -> RunscRuntime:
    return RunscRuntime(init_argv=standin_argv(sys.executable))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The notebook's folder."""
    path = tmp_path / "notebook"
    path.mkdir()
    return path


@pytest.fixture
def start(runtime: RunscRuntime, folder: Path) -> Iterator[Start]:
    """Start a sandbox with these settings, in ``folder`` unless another folder is given."""
    sandboxes: list[Sandbox] = []

    def start_one(where: Path | None = None, **settings: object) -> Conversation:
        spec = SandboxSpec(**settings)  # type: ignore[arg-type]
        sandbox = runtime.start(spec, make_request(where or folder))
        sandboxes.append(sandbox)
        return Conversation(sandbox)

    yield start_one
    for sandbox in sandboxes:
        sandbox.close()


@pytest.fixture(scope="module")
def shared(
    runtime: RunscRuntime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Conversation]:
    """One sandbox with default settings, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "data.csv").write_text("a,b\n")
    (folder / "private.txt").write_text("mine")
    (folder / "private.txt").chmod(0o600)
    sandbox = runtime.start(SandboxSpec(environment=("WANTED",)), make_request(folder))
    try:
        yield Conversation(sandbox)
    finally:
        sandbox.close()
