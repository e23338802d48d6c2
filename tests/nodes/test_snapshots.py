"""Snapshots on nodes: made there after a cold start, and used by the next one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from gvisor_kernel.kernel import launch, preparation, snapshot_queue
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.snapshots import learned
from gvisor_kernel.snapshots.snapshot_store import Store

from ..jupyter.helpers import execute, kernel_log, wait_until
from ..sweeps import needs_all
from ..world import World
from .conftest import Start, ways

SETTINGS = {"snapshot": "auto", "environment": ["FOR_KERNELS"]}
PRELOADED = "import sys; print('numpy' in sys.modules); import numpy"
RANDOM = "import os, random, uuid; print(os.environ['FOR_KERNELS'], random.random(), uuid.uuid4())"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store of the node. This machine's builder makes no snapshot."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(snapshot_queue, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(snapshot_queue, "BUILD", ("-c", "raise SystemExit(7)"))
    monkeypatch.setattr(SnapshotQueue, "_instance", None)
    yield Store.open()
    SnapshotQueue.instance().stop()


both = ways(ssh=True, slurm=False)


def kind_of(manager: KernelManager) -> str:
    facts = manager.provisioner.describe()
    return str(facts.start.kind)


@both
def test_first_start_is_cold_and_next_is_restored(
    store: Store, start: Start, way: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restored kernel has its own variables, random numbers and folders. It has the modules
    that this machine has sent along, and this machine counts what it imports."""
    (folder / "data.csv").write_text("1,2\n")
    monkeypatch.setenv("FOR_KERNELS", "first")
    monkeypatch.setattr(learned, "PRIOR", ("numpy",))
    compared: list[object] = []
    monkeypatch.setattr(preparation, "find_outdated", lambda plan, made: compared.append(made))
    settings = {**SETTINGS, "preload": "auto"}
    with start(way, **settings) as (manager, client):
        assert kind_of(manager) == "cold"
        assert "the kernel starts without a snapshot: no snapshot fits" in kernel_log(manager)
        assert execute(client, "6 * 7").result == "42"
        wait_until(store.snapshots, "a snapshot", 120)
    (snapshot,) = store.snapshots()
    monkeypatch.setenv("FOR_KERNELS", "second")
    drawn = []
    for _ in range(2):
        with start(way, **settings) as (manager, client):
            assert kind_of(manager) == "snapshot"
            assert execute(client, PRELOADED).text == "True\n"
            assert "the kernel was restored from a snapshot" in kernel_log(manager)
            drawn.append(execute(client, RANDOM).text.split())
            assert execute(client, "print(open('data.csv').read(), end='')").text == "1,2\n"
            assert execute(client, "open('/mnt/user-data/outputs/made', 'w').write('x')").result
    assert (folder / "outputs" / "made").read_text() == "x"
    (first, second) = drawn
    assert first[0] == second[0] == "second"
    assert not set(first[1:]) & set(second[1:])
    assert [found.meta.key for found in store.snapshots()] == [snapshot.meta.key]
    assert compared == [learned.Preloaded(("numpy",), ("numpy",))] * 2
    counts = store.root.parent / "imports"
    wait_until(lambda: '"numpy": 2' in next(counts.glob("*.json")).read_text(), "the reports")


@both
def test_builder_that_ends_with_its_program_has_not_failed(
    store: Store, start: Start, way: str, world: World, request: pytest.FixtureRequest
) -> None:
    """A client's status is the helper's, and Slurm calls a job by it."""
    with start(way, **SETTINGS) as (_, client):
        execute(client, "6 * 7")
        found = world.base.glob
        wait_until(lambda: len(list(found("node/*/*/*/sandboxes/*"))) == 2, "a builder's sandbox")
        queue = SnapshotQueue.instance()
        queue.stop()
        assert queue._process is not None
        assert queue._process.returncode == 0
    assert store.snapshots() == []
    if way == "slurm":
        cluster = request.getfixturevalue("cluster")
        assert "FAILED" not in cluster.ask("squeue", "-h", "--states=all", "-o", "%T")


@needs_all
@both
def test_snapshot_whose_kernel_does_not_answer_is_removed(
    store: Store, start: Start, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel then starts cold in another sandbox."""
    monkeypatch.setenv("FOR_KERNELS", "yes")
    with start(way, **SETTINGS):
        wait_until(store.snapshots, "a snapshot", 120)
    monkeypatch.setattr(launch, "RESUME_SECONDS", 0.0001)
    monkeypatch.setattr(snapshot_queue, "WAIT_SECONDS", 600)
    with start(way, **SETTINGS) as (manager, client):
        assert kind_of(manager) == "cold"
        assert "the kernel starts without a snapshot: The sandbox" in kernel_log(manager)
        assert execute(client, "6 * 7").result == "42"
        assert not store.snapshots()


@needs_all
@both
def test_damaged_snapshot_is_removed(
    store: Store, start: Start, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runsc cannot restore it. The kernel starts cold in the same order."""
    monkeypatch.setenv("FOR_KERNELS", "yes")
    with start(way, **SETTINGS):
        wait_until(store.snapshots, "a snapshot", 120)
    (snapshot,) = store.snapshots()
    for path in snapshot.files.iterdir():
        path.write_bytes(b"not a snapshot")
    monkeypatch.setattr(snapshot_queue, "WAIT_SECONDS", 600)
    with start(way, **SETTINGS) as (manager, client):
        assert kind_of(manager) == "cold"
        assert execute(client, "6 * 7").result == "42"
        assert not store.snapshots()
