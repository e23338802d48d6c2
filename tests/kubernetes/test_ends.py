"""All ways in which a kernel in a pod ends, and starts that are refused."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import GvisorKernelError, IsolationError, LaunchError
from gvisor_kernel.runtimes.kubernetes import pod_sandbox, pump
from gvisor_kernel.runtimes.kubernetes.cluster import RequestRejected
from gvisor_kernel.runtimes.kubernetes.runtime import KubernetesRuntime
from gvisor_kernel.runtimes.state.records import find_sandboxes

from ..docker.helpers import OUTPUTS, sandbox_of
from ..jupyter.helpers import execute, wait_until
from ..sweeps import needs_all
from .conftest import Start, read_death
from .fake_cluster import FakeCluster, FakePod
from .owner import kill_owner, run_owner

# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "words"),
    [
        pytest.param("evict", "evicted the pod: The node was low on resource", marks=needs_all),
        pytest.param("kill_for_memory", "its limit is 1 GiB", marks=needs_all),
        pytest.param("replace", "the pod was deleted", marks=needs_all),
        ("delete", "the pod was deleted"),
    ],
)
def test_the_cell_says_why_its_pod_has_ended(
    start: Start, cluster: FakeCluster, way: str, words: str
) -> None:
    with start() as kernel:
        ends: dict[str, Callable[[FakePod], None]] = {
            "evict": cluster.evict,
            "kill_for_memory": cluster.kill_for_memory,
            "delete": cluster.delete,
            "replace": cluster.replace,
        }
        assert words in read_death(kernel, lambda: ends[way](cluster.only_pod()))


@needs_all
def test_the_cell_says_when_the_cluster_cannot_be_reached(
    start: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "PATIENCE_SECONDS", 0.5)
    with start() as kernel:
        try:
            words = read_death(kernel, cluster.stop)
        finally:
            cluster.start()
        assert "connection to the pod was lost, and could not be made again" in words


def test_the_command_kill_ends_a_pod_after_its_outputs_are_fetched(
    start: Start, folder: Path, cluster: FakeCluster
) -> None:
    with start() as kernel:
        manager, client = kernel
        execute(client, f"open('{OUTPUTS}/kept', 'w').write('x')")
        name = sandbox_of(manager).directory.name
        words = read_death(kernel, lambda: main(["kill", name]))
        assert "the pod was deleted" in words
        assert (folder / "outputs" / "kept").read_text() == "x"


@needs_all
@pytest.mark.timeout(400)
def test_a_pod_that_nobody_speaks_to_ends_by_itself(folder: Path, cluster: FakeCluster) -> None:
    """The server is killed, and what it leaves behind reaches no cluster."""
    owner, directory = run_owner(folder)
    pod = cluster.only_pod()
    cluster.stop()
    try:
        kill_owner(owner)
        wait_until(pod.over.is_set, "the pod to end", seconds=300)
        assert directory.exists()
    finally:
        cluster.start()
    KubernetesRuntime().sweep()
    assert not directory.exists()
    assert not cluster.pods


def test_a_killed_server_leaves_outputs_and_nothing_else(
    folder: Path, cluster: FakeCluster
) -> None:
    owner, directory = run_owner(folder)
    assert cluster.pods
    kill_owner(owner)
    wait_until(lambda: not directory.exists(), "the sandbox to be removed")
    assert not cluster.pods
    assert (folder / "outputs" / "kept").read_text() == "x"


def test_an_end_that_comes_late_is_told_to_nobody_else(
    start: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump waits for an API server that does not answer, when its sandbox is closed."""
    asked, answered = threading.Event(), threading.Event()

    def find_end() -> None:
        asked.set()
        assert answered.wait(60)

    monkeypatch.setattr(pod_sandbox, "THREAD_SECONDS", 0.1)
    with start() as (manager, _):
        sandbox = sandbox_of(manager)
        sandbox.pump._find_end = find_end
        cluster.cut()
        assert asked.wait(60)
        sandbox.close()
        stranger = os.eventfd(0, os.EFD_NONBLOCK)
        taken = fcntl.fcntl(stranger, fcntl.F_DUPFD_CLOEXEC, sandbox.exit_fd)
        answered.set()
        sandbox.pump._thread.join(60)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(stranger)
        os.close(stranger)
        os.close(taken)
        assert taken == sandbox.exit_fd


# -- refused starts --------------------------------------------------------------------------------


def add_sidecar(pod: dict[str, object]) -> None:
    spec = pod["spec"]
    assert isinstance(spec, dict)
    spec["containers"].append({"name": "proxy", "image": "proxy"})


def test_a_pod_with_a_sidecar_is_refused(start: Start, cluster: FakeCluster) -> None:
    cluster.mutate = add_sidecar
    try:
        with pytest.raises(IsolationError, match="its containers are"), start():
            pass
    finally:
        cluster.mutate = lambda pod: None


def test_a_pod_with_a_network_is_refused(start: Start, cluster: FakeCluster) -> None:
    cluster.network = "host"
    try:
        with pytest.raises(IsolationError, match="it has a network"), start():
            pass
    finally:
        cluster.network = "none"


def test_a_start_that_cannot_succeed_says_why(start: Start, cluster: FakeCluster) -> None:
    cluster.waiting = {"reason": "ErrImagePull", "message": "no such image"}
    try:
        with pytest.raises(LaunchError, match="ErrImagePull: no such image"), start():
            pass
    finally:
        cluster.waiting = None
    cluster.denied = {("create", "pods/attach")}
    try:
        with pytest.raises(LaunchError, match=r"lets nobody attach to the pod.*403"), start():
            pass
    finally:
        cluster.denied = set()
    cluster.waiting = {"reason": "ContainerCreating", "message": "its volume is not there"}
    try:
        with pytest.raises(LaunchError, match="its volume is not there"), start(start_timeout=1):
            pass
    finally:
        cluster.waiting = None
    cluster.stop()
    try:
        with pytest.raises(GvisorKernelError, match="does not answer"), start():
            pass
    finally:
        cluster.start()


def test_a_start_that_is_forbidden_leaves_no_record(start: Start, cluster: FakeCluster) -> None:
    """A cluster without rights also refuses to say that there is no pod. Not everything that is
    forbidden is a matter of rights."""
    cluster.denied = {("create", "pods"), ("get", "pods")}
    try:
        with pytest.raises(RequestRejected, match="403") as caught, start():
            pass
        assert not find_sandboxes()
    finally:
        cluster.denied = set()
    assert "which rights are missing" in caught.value.hint
    with (
        pytest.raises(RequestRejected, match='RuntimeClass "kata" not found') as caught,
        start(kubernetes={"runtime_class": "kata"}),
    ):
        pass
    assert "rights" not in caught.value.hint


def test_a_claim_that_no_kernel_can_write_to_is_refused(start: Start) -> None:
    """Both folders are of one claim, of which a pod can have only one volume."""
    claims = {"outputs_claim": "data/new/outputs", "uploads_claim": "data/new"}
    with pytest.raises(LaunchError) as caught, start(kubernetes=claims):
        pass
    assert "uid 1000 may not write to" in str(caught.value)


@needs_all
def test_a_pod_without_a_state_directory_is_swept(start: Start, cluster: FakeCluster) -> None:
    """Only its labels show to whom it belongs."""
    with start() as (manager, _):
        directory = sandbox_of(manager).directory
        kept = directory.with_name("moved-away")
        shutil.move(directory, kept)
        try:
            assert KubernetesRuntime().sweep()
        finally:
            shutil.move(kept, directory)
        assert not cluster.pods
