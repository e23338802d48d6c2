"""The pod of a sandbox, and how a cluster may not change it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from gvisor_kernel.config.mounts import ExtraMount
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.runtimes.kubernetes.pod import (
    INFO,
    OWNER,
    STATE,
    TERMINATION_LOG,
    PodNames,
    find_points,
    guest_config,
    make_pod,
)
from gvisor_kernel.runtimes.kubernetes.pod_faults import find_faults, read_quantity
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS

NAMES = PodNames("a" * 32, "01abc", "container_01ABC--python--123", "12-34")
SPEC = SandboxSpec(runtime="kubernetes", image="registry/kernels:1")


def make(cluster: Kubernetes = Kubernetes(), **settings: Any) -> dict[str, Any]:  # noqa: B008
    spec = SandboxSpec(runtime="kubernetes", image="registry/kernels:1", own=cluster, **settings)
    return make_pod(spec, NAMES, info="{}")


def test_the_pod_follows_the_restricted_standard() -> None:
    """All that Pod Security checks at that level, and what it does not look at."""
    spec = make()["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True
    kinds = {next(key for key in volume if key != "name") for volume in spec["volumes"]}
    assert kinds <= {"emptyDir", "downwardAPI", "persistentVolumeClaim"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert (spec["dnsPolicy"], spec["restartPolicy"]) == ("None", "Never")
    assert "ports" not in container
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert all(v["emptyDir"]["medium"] == "Memory" for v in spec["volumes"] if "emptyDir" in v)


def test_settings_reach_the_pod() -> None:
    cluster = Kubernetes(
        cpu="500m",
        labels=(("team", "data"),),
        node_selector=(("disk", "fast"),),
        tolerations=('{"key": "kernels", "operator": "Exists"}',),
        pull="Never",
        pull_secrets=("registry",),
        priority_class="low",
    )
    pod = make(cluster, memory_limit=1 << 30)
    spec = pod["spec"]
    assert pod["metadata"]["labels"]["team"] == "data"
    assert pod["metadata"]["labels"][STATE] == NAMES.state
    assert pod["metadata"]["labels"][OWNER] == NAMES.owner
    assert pod["metadata"]["annotations"][INFO] == "{}"
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == [{"key": "kernels", "operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["priorityClassName"] == "low"
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits["cpu"] == "500m"
    assert int(limits["memory"]) > 1 << 30


def test_volumes_take_the_place_of_copies() -> None:
    cluster = Kubernetes(outputs_claim="data/me/out", uploads_claim="data/me")
    pod = make(cluster)
    mounts = {m["mountPath"]: m for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts[OUTPUTS]["subPath"] == "me/out"
    assert mounts[UPLOADS]["readOnly"] is True
    assert mounts[UPLOADS]["name"] == mounts[OUTPUTS]["name"] == "outputs"
    claims = [v for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    source = {"claimName": "data", "readOnly": False}
    assert claims == [{"name": "outputs", "persistentVolumeClaim": source}]
    two = make(Kubernetes(outputs_claim="data/me/out", uploads_claim="course"))["spec"]["volumes"]
    assert {"claimName": "course", "readOnly": True} in [
        v.get("persistentVolumeClaim") for v in two
    ]
    spec = SandboxSpec(runtime="kubernetes", image="x/y:1", own=cluster)
    config = guest_config(spec, secret=bytes(16), ahead=(), environment={}, lingers=False)
    assert UPLOADS not in config["parts"].values()
    assert config["linger"] == 0


def test_each_mount_has_a_place_in_the_pod() -> None:
    """PID 1 can make no directory in the root, only in what it has mounted."""
    spec = SandboxSpec(
        runtime="kubernetes", image="x/y:1", mounts=(ExtraMount("/data", "/data/set"),)
    )
    config = guest_config(
        spec,
        secret=bytes(16),
        ahead=(),
        environment={},
        lingers=True,
    )
    points = find_points(spec)
    scratch = [target for target, _, _ in config["scratch"]]
    for target in (*scratch, *config["parts"].values(), config["guest"]):
        if target.startswith("/etc/") or target == TERMINATION_LOG:
            continue  # a file of the image, or of the node
        assert any(target == p or target.startswith(f"{p}/") for p in points), target


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a field of a pod, as a webhook does."""

    def apply(pod: dict[str, Any]) -> None:
        found: Any = pod
        *parts, last = path.split(".")
        for part in parts:
            found = found[int(part)] if part.isdecimal() else found.setdefault(part, {})
        if last == "+":
            found.append(value)
        else:
            found[int(last) if last.isdecimal() else last] = value

    return apply


BASE = "spec.containers.0"
WEAKER = {
    "capabilities": {"drop": ["ALL"]},
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}
"""Without a word on privilege escalation, which is then allowed."""
OTHER_SIZE = {"name": "outputs", "emptyDir": {"medium": "Memory"}}
LABELS = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.containers.+", {"name": "proxy"}, "a webhook may have added one"),
        ("spec.initContainers", [{"name": "init"}], "initContainers is"),
        ("spec.ephemeralContainers", [{"name": "debug"}], "ephemeralContainers is"),
        ("spec.runtimeClassName", "runc", "runtimeClassName is 'runc'"),
        ("spec.automountServiceAccountToken", True, "automountServiceAccountToken is True"),
        ("spec.hostNetwork", True, "hostNetwork is True"),
        ("spec.hostPID", True, "hostPID is True"),
        ("spec.shareProcessNamespace", True, "shareProcessNamespace is True"),
        ("spec.dnsPolicy", "ClusterFirst", "dnsPolicy is 'ClusterFirst'"),
        ("spec.securityContext.runAsUser", 0, "securityContext is"),
        (f"{BASE}.image", "other:1", "image is 'other:1'"),
        (f"{BASE}.command", ["sh"], "command is"),
        (f"{BASE}.args", ["x"], "args is"),
        (f"{BASE}.env.+", {"name": "KEY", "value": "v"}, "env is"),
        (f"{BASE}.envFrom", [{"secretRef": {"name": "s"}}], "envFrom is"),
        (f"{BASE}.securityContext.privileged", True, "securityContext is"),
        (f"{BASE}.securityContext.capabilities.add", ["SYS_ADMIN"], "securityContext is"),
        (f"{BASE}.volumeMounts.+", {"name": "t", "mountPath": "/token"}, "a mount at '/token'"),
        ("spec.volumes.+", {"name": "token"}, "other volumes: ['token']"),
        ("spec.volumes.0", {"name": "points", "hostPath": {"path": "/"}}, "volumes: ['points']"),
        ("spec.volumes.0", {"name": "points", "emptyDir": {}}, "other volumes: ['points']"),
        (f"{BASE}.resources.limits.memory", "64Gi", "its limit of memory is"),
        (f"{BASE}.resources.limits", {}, "its limit of memory is"),
        (f"{BASE}.resources.limits.memory", "0", "its limit of memory is '0'"),
        (f"{BASE}.resources.limits.gpu", "1", "other resources: ['gpu']"),
        (f"{BASE}.resources.claims", [{"name": "gpu"}], "other resources: [{'name': 'gpu'}]"),
        ("spec.resourceClaims", [{"name": "gpu"}], "resourceClaims is"),
        (f"{BASE}.securityContext", WEAKER, "securityContext is"),
        (f"{BASE}.workingDir", "/proc", "workingDir is"),
        (f"{BASE}.terminationMessagePath", "/dev/log", "terminationMessagePath is"),
        (f"{BASE}.stdinOnce", True, "stdinOnce is"),
        (f"{BASE}.restartPolicy", "Always", "restartPolicy is"),
        (f"{BASE}.volumeMounts.0.mountPropagation", "Bidirectional", "a mount at"),
        ("spec.enableServiceLinks", True, "enableServiceLinks is True"),
        ("spec.volumes.2", OTHER_SIZE, "other volumes: ['outputs']"),
        ("spec.volumes.1.downwardAPI.items.+", LABELS, "other volumes: ['info']"),
        ("metadata.annotations", {"dev.gvisor.flag.network": "host"}, "annotations for gVisor"),
        ("metadata.annotations", {"cdi.k8s.io/x": "vendor.com/disk=all"}, "or containerd"),
        ("metadata.labels", {}, "it has lost the labels"),
        ("metadata.uid", "other", "it is another pod: 'other'"),
    ],
)
def test_a_changed_pod_is_noticed(path: str, value: Any, words: str) -> None:
    asked = make()
    made = copy.deepcopy(asked)
    change(path, value)(made)
    assert any(words in fault for fault in find_faults(asked, made)), find_faults(asked, made)


def test_a_mount_that_became_writable_is_noticed() -> None:
    asked = make()
    made = copy.deepcopy(asked)
    for mount in made["spec"]["containers"][0]["volumeMounts"]:
        mount.pop("readOnly", None)
    assert "it has a mount at '/container_info.json'" in find_faults(asked, made)


@pytest.mark.parametrize("place", ["volume", "mount"])
def test_uploads_that_can_be_written_are_noticed(place: str) -> None:
    asked = make(Kubernetes(uploads_claim="data/me"))
    made = copy.deepcopy(asked)
    (volume,) = (v for v in made["spec"]["volumes"] if v["name"] == "uploads")
    mounts = made["spec"]["containers"][0]["volumeMounts"]
    (mount,) = (m for m in mounts if m["name"] == "uploads")
    if place == "volume":
        del volume["persistentVolumeClaim"]["readOnly"]
    else:
        del mount["readOnly"]
    assert find_faults(asked, made)


def test_what_a_cluster_adds_to_every_pod_is_no_fault() -> None:
    asked = make(Kubernetes(outputs_claim="data"))
    made = copy.deepcopy(asked)
    made["spec"].update(
        nodeName="n1",
        schedulerName="default-scheduler",
        serviceAccountName="default",
        tolerations=[{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        priority=0,
        preemptionPolicy="PreemptLowerPriority",
        overhead={"memory": "64Mi"},
    )
    made["spec"]["containers"][0].update(
        terminationMessagePolicy="File",
        imagePullPolicy="IfNotPresent",
    )
    made["spec"]["containers"][0]["resources"]["limits"]["memory"] = "4288Mi"
    points, info, outputs = made["spec"]["volumes"]
    points["emptyDir"]["sizeLimit"] = "64Ki"
    info["downwardAPI"]["defaultMode"] = 420
    info["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"] = "v1"
    del outputs["persistentVolumeClaim"]["readOnly"]  # what is false is left out
    assert find_faults(asked, made) == []


@pytest.mark.parametrize("made", [{}, {"spec": None}, {"spec": {"containers": [None]}}])
def test_a_pod_without_sense_is_a_fault(made: dict[str, Any]) -> None:
    assert find_faults(make(), made)


def test_quantities() -> None:
    assert read_quantity("1Gi") == 1 << 30
    assert read_quantity("500m") == 0.5
    assert read_quantity("2") == 2
    assert read_quantity("much") == float("inf")
