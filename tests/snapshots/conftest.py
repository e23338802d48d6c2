"""Fixtures: a Python environment that tests may change, kernels of it and their snapshots."""

from __future__ import annotations

import hashlib
import json
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.snapshots.key import SnapshotKey
from gvisor_kernel.snapshots.snapshot import Snapshot
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import SANDBOXED
from ..world import DEFAULT_KERNEL, World

EARLY = """
import random, secrets, ssl, tempfile, uuid
import numpy
random.random(), numpy.random.random(), ssl.RAND_bytes(8), uuid.uuid1(), uuid.getnode()
with tempfile.TemporaryDirectory():
    pass
own = secrets.token_hex(8)
"""
"""A module that uses each random generator when it is imported."""


STORE_LOGGER = "gvisor_kernel.snapshots.snapshot_store"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SANDBOXED:
        here = Path(__file__).parent
        skip = pytest.mark.skip(reason="GK_TEST_KERNEL names a kernel that is not in a sandbox")
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(skip)


def make_python(folder: Path) -> Path:
    """Create an environment with this one's packages, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages_of(folder) / "these.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin" / "python"


def packages_of(folder: Path) -> Path:
    return next(folder.glob("lib/python3*/site-packages"))


def build(*arguments: str) -> str:
    """Run ``snapshot build``; return the beginning of the snapshot's key."""
    command = [sys.executable, "-m", "gvisor_kernel", "snapshot", "build", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(",")


def snapshot_of(kernel: str) -> Snapshot | None:
    """Return the snapshot for kernels of a kernelspec."""
    for snapshot in Store.open().snapshots():
        if snapshot.meta.label["kernel"] == kernel:
            return snapshot
    return None


def copy_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """Copy this run's snapshot into a store of the test, where it may be damaged."""
    snapshot = snapshot_of(DEFAULT_KERNEL)
    assert snapshot is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store.open()
    copy_to(store, snapshot)
    (copy,) = store.snapshots()
    return copy


def copy_to(store: Store, snapshot: Snapshot) -> None:
    """Copy a snapshot by the store's own methods: it refuses files that it has not written."""
    with store.write() as draft:
        for path in snapshot.files.iterdir():
            shutil.copyfile(path, draft.files / path.name)
        store.keep(draft, SnapshotKey(snapshot.meta.parts), snapshot.meta)


def rewrite(snapshot: Snapshot, change: Callable[[dict[str, Any]], None]) -> None:
    """Change meta.json, with a right checksum."""
    path = snapshot.directory / "meta.json"
    content = json.loads(path.read_text().partition("\n")[2])
    change(content)
    text = json.dumps(content)
    path.write_text(hashlib.sha256(text.encode()).hexdigest() + "\n" + text)


@pytest.fixture
def discards(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return a function for the log lines about snapshots that are no longer usable."""
    caplog.set_level("DEBUG", logger=STORE_LOGGER)
    return lambda: "\n".join(r.getMessage() for r in caplog.records if r.name == STORE_LOGGER)


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store.open()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    make_python(folder)
    (packages_of(folder) / "gk_early.py").write_text(EARLY)
    return folder


@pytest.fixture(scope="module")
def kernelspec(environment: Path, world: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a kernelspec of ``environment`` whose kernels start from snapshots."""
    name = f"gvisor-{Path(request.module.__file__).stem}"
    folder = world.add_kernelspec(
        name,
        {
            "argv": [
                *(str(environment / "bin" / "python"), "-P", "-m", "gvisor_kernel", "launch"),
                *("--kernel", name, "-f", "{connection_file}"),
            ],
            "display_name": name,
            "language": "python",
            "interrupt_mode": "signal",
            "metadata": {
                "kernel_provisioner": {
                    "provisioner_name": "gvisor-provisioner",
                    "config": {
                        "snapshot": "auto",
                        "preload": "off",
                        **getattr(request.module, "SETTINGS", {}),
                    },
                }
            },
        },
    )
    yield name
    (folder / "kernel.json").unlink()
    folder.rmdir()
