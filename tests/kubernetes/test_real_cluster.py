"""A kernel in a real cluster, if the run's environment names one.

``GK_TEST_KUBECONFIG``: a kubeconfig whose cluster has a RuntimeClass ``gvisor`` without a network.
``GK_TEST_KUBERNETES_IMAGE``: an image there with python3 and ipykernel.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gvisor_kernel.cli.checks.cluster import check_one
from gvisor_kernel.config.kubernetes import Kubernetes
from gvisor_kernel.runtimes.kubernetes.cluster import Cluster, find_address

from ..docker.helpers import OUTPUTS, ask, sandbox_of
from ..jupyter.helpers import execute, running_kernel, wait_for_text, wait_until

CONFIG = os.environ.get("GK_TEST_KUBECONFIG", "")
IMAGE = os.environ.get("GK_TEST_KUBERNETES_IMAGE", "")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not (CONFIG and IMAGE),
        reason="GK_TEST_KUBECONFIG and GK_TEST_KUBERNETES_IMAGE name no cluster with gVisor",
    ),
]


def test_a_real_cluster_runs_kernels(tmp_path: Path) -> None:
    settings = Kubernetes(config=CONFIG)
    assert {check.state for check in check_one(settings, "failed")} <= {"ok", "warning"}
    cluster = Cluster(find_address(settings))
    (tmp_path / "data.csv").write_text("1,2")
    chosen = {
        "runtime": "kubernetes",
        "image": IMAGE,
        "snapshot": "off",
        "memory_limit": "512M",
        "kubernetes": {"config": CONFIG, "cpu": "250m"},
    }
    with running_kernel(settings=chosen, start={"cwd": str(tmp_path)}) as (manager, client):
        sandbox = sandbox_of(manager)
        assert ask(client, "open('data.csv').read()") == "1,2"
        execute(client, f"open('{OUTPUTS}/kept', 'w').write('x')")
        request = client.execute("import time; print('runs', flush=True); time.sleep(1000)")
        assert request
        wait_for_text(client, "runs")
        cluster.delete_pod(sandbox.pod, grace=1)
        message = client.get_iopub_msg(timeout=60)
        while message["msg_type"] != "error":
            message = client.get_iopub_msg(timeout=60)
        assert "the pod was deleted" in message["content"]["evalue"]
    with running_kernel(settings=chosen, start={"cwd": str(tmp_path)}) as (_, client):
        execute(client, f"open('{OUTPUTS}/kept', 'w').write('x')")
    assert (tmp_path / "outputs" / "kept").read_text() == "x"
    wait_until(
        lambda: not cluster.find_pods({"app.kubernetes.io/managed-by": "gvisor-kernel"}),
        "all pods to be removed",
    )
    cluster.close()
