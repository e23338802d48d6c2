"""What ``doctor`` says of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from gvisor_kernel.cli.main import main
from gvisor_kernel.runtimes.checks import Check
from gvisor_kernel.runtimes.kubernetes.checks import check_clusters, check_one
from gvisor_kernel.runtimes.kubernetes.cluster import Address, find_address
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes

from .fake_cluster import FakeCluster


def find(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_cluster_that_has_everything_is_fine(cluster: FakeCluster) -> None:
    checks = check_clusters([])
    assert [check.state for check in checks] == ["ok"] * 4, checks
    assert "v1.35.0-fake" in checks[0].fact


def test_missing_rights_are_named(cluster: FakeCluster) -> None:
    cluster.denied = {("get", "pods/attach"), ("delete", "pods")}
    try:
        check = find(check_one(Kubernetes(), "failed"), "kubernetes rights")
    finally:
        cluster.denied = set()
    assert check.state == "failed"
    assert "delete pods, get pods/attach" in check.fact
    assert "deploy/rbac.yaml" in check.fix


def test_another_runtime_class_is_noticed(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = find(check_one(Kubernetes(runtime_class="runc"), "failed"), "kubernetes RuntimeClass")
    assert "there is no RuntimeClass runc" in missing.fact
    monkeypatch.setattr(cluster, "handler", "runc")
    other = find(check_one(Kubernetes(), "failed"), "kubernetes RuntimeClass")
    assert "the handler of gvisor is 'runc'" in other.fact
    assert find(check_one(Kubernetes(handlers=("runc",)), "failed"), other.name).state == "ok"


def test_a_namespace_without_pod_security_is_noticed(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "labels", {})
    check = find(check_one(Kubernetes(), "failed"), "kubernetes namespace")
    assert check.state == "warning"
    assert "kubectl label namespace kernels" in check.fix


def test_a_cluster_that_does_not_answer_is_noticed(cluster: FakeCluster) -> None:
    cluster.stop()
    try:
        (check,) = check_one(Kubernetes(), "failed")
    finally:
        cluster.start()
    assert check.state == "failed"
    assert "does not answer" in check.fact


def test_a_kubeconfig_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("clusters: [")
    (check,) = check_one(Kubernetes(config=str(config)), "failed")
    assert check.state == "failed"
    assert "No cluster is configured" in check.fact
    assert str(config) in check.fact


def test_an_address_holds_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "one:~/two:/three")
    found = find_address(Kubernetes())
    assert found.config == f"{Path.cwd()}/one:~/two:/three"
    assert Address.read(found.write()) == found


@pytest.mark.parametrize("text", [None, "", "7", "null", "[1]", "{}"])
def test_an_address_that_is_none_is_the_usual_one(text: str | None) -> None:
    assert Address.read(text) == Address("", "", "")


def test_no_cluster_is_asked_for_if_none_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert check_clusters([]) == []


def test_the_command_checks_the_usual_cluster(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--runtime", "kubernetes"]) == 0
    printed = capsys.readouterr().out
    assert "kubernetes RuntimeClass: gvisor has the handler runsc" in printed
    assert "runsc:" not in printed.replace("RuntimeClass", "")
    cluster.denied = {("create", "pods")}
    try:
        assert main(["doctor", "--runtime", "kubernetes"]) == 1
    finally:
        cluster.denied = set()
    assert "may not: create pods" in capsys.readouterr().out
