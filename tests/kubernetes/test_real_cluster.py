"""Kernels in a real cluster, if the run's environment names one.

``GK_TEST_KUBECONFIG``: a kubeconfig whose cluster has a RuntimeClass ``gvisor`` without a network.
The rights of ``deploy/rbac.yaml`` are enough.
``GK_TEST_KUBERNETES_IMAGE``: an image there with python3 and ipykernel.

``every_runtime`` of ``tests/jupyter/helpers.py`` then runs further tests there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.runtimes.kubernetes.checks import check_one
from gvisor_kernel.runtimes.kubernetes.cluster import Cluster, find_address
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes
from gvisor_kernel.runtimes.state.records import read_record

from ..docker.helpers import OUTPUTS, ask, sandbox_of
from ..jupyter.helpers import execute, running_kernel, wait_until
from ..world import CLUSTER, WAYS
from .conftest import read_death
from .owner import kill_owner, run_owner

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        "kubernetes" not in WAYS,
        reason="GK_TEST_KUBECONFIG and GK_TEST_KUBERNETES_IMAGE name no cluster with gVisor",
    ),
]
FIND = """
import json, os
found = {
    "csv": open("data.csv").read(),
    "interfaces": [line.split(":")[0].strip() for line in list(open("/proc/net/dev"))[2:]],
    "uid": os.getuid(),
    "token": os.path.exists("/var/run/secrets"),
    "cluster": [name for name in os.environ if name.startswith("KUBERNETES")],
}
for path in ("/dev/termination-log", "/etc/hosts", "/etc/resolv.conf", "/x"):
    try:
        open(path, "a")
        found[path] = "writable"
    except OSError as error:
        found[path] = error.strerror
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The real one. No pod of these tests may be left in it."""
    found = Cluster(find_address(Kubernetes(config=CLUSTER)))
    yield found
    wait_until(
        lambda: not found.find_pods({"app.kubernetes.io/managed-by": "gvisor-kernel"}),
        "all pods to be removed",
    )
    found.close()


def test_a_real_cluster_runs_kernels(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = check_one(Kubernetes(config=CLUSTER), "failed")
    assert {check.state for check in checks} <= {"ok", "warning"}
    (tmp_path / "data.csv").write_text("1,2")
    start = {"cwd": str(tmp_path)}
    with running_kernel(settings=WAYS["kubernetes"], start=start) as kernel:
        manager, client = kernel
        sandbox = sandbox_of(manager)
        record = read_record(sandbox.directory)
        assert record is not None
        assert record.node
        assert execute(client, FIND).status == "ok"
        found: dict[str, Any] = ask(client, "found")
        assert (found["csv"], found["uid"], found["token"]) == ("1,2", 1000, False)
        assert (found["interfaces"], found["cluster"]) == (["lo"], [])
        for path in ("/dev/termination-log", "/etc/hosts", "/etc/resolv.conf", "/x"):
            assert found[path] in ("Read-only file system", "Permission denied"), path
        execute(client, f"open('{OUTPUTS}/synced', 'w').write('x')")
        assert main(["sync", sandbox.directory.name]) == 0
        assert (tmp_path / "outputs" / "synced").read_text() == "x"
        assert execute(client, "for i in range(30): print('x' * 999_999)").text.count("x") == (
            30 * 999_999
        )
        assert sandbox.pump.cuts == 0
        words = read_death(kernel, lambda: cluster.delete_pod(sandbox.pod.name, grace=1))
        assert "the pod was deleted" in words
    with running_kernel(settings=WAYS["kubernetes"], start=start) as (_, client):
        execute(client, f"open('{OUTPUTS}/kept', 'w').write('x')")
    assert (tmp_path / "outputs" / "kept").read_text() == "x"


def test_a_killed_server_leaves_outputs_and_no_pod(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    owner, directory = run_owner(folder, "kubernetes")
    kill_owner(owner)
    wait_until(lambda: not directory.exists(), "the sandbox to be removed")
    assert (folder / "outputs" / "kept").read_text() == "x"


def test_a_start_that_cannot_succeed_says_why(cluster: Cluster, tmp_path: Path) -> None:
    chosen = WAYS["kubernetes"]
    missing = {"image": "localhost/gvisor-kernel-tests/none:1"}
    large = {"kubernetes": {**chosen["kubernetes"], "cpu": "100000"}, "start_timeout": 3}
    for changed, words in ((missing, "(?s)ErrImage.*setting image"), (large, "Unschedulable")):
        with (
            pytest.raises(LaunchError, match=words),
            running_kernel(settings={**chosen, **changed}, start={"cwd": str(tmp_path)}),
        ):
            pass
