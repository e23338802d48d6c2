"""The specification of a sandbox as a pod of a Kubernetes cluster.

The pod follows the restricted Pod Security Standard: an ordinary user, no capability, a read-only
root. No Service, no port, no token, no name server. All files come over the pod's stdin into the
sandbox's memory (``guest/pod.py``); the node may be any machine, so no path of this one is used.

The pod's volumes are in memory, too. ``points`` is empty: it makes the directories on which PID 1
mounts, since the root of the pod is read-only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import MIB
from gvisor_kernel.runtimes.kubernetes.settings import find_settings
from gvisor_kernel.spec import etc
from gvisor_kernel.spec.environment import INIT_ENVIRONMENT
from gvisor_kernel.spec.layout import (
    CONTAINER_INFO,
    GUEST,
    HOME,
    OUTPUTS,
    TRANSCRIPTS,
    UPLOADS,
    WORKSPACE,
    list_parts,
    scratch_mounts,
)
from gvisor_kernel.spec.limits import MEMORY_BACKSTOP, OPEN_FILES

PREFIX = "gvisor-kernel.org/"
STATE, SANDBOX, OWNER = f"{PREFIX}state", f"{PREFIX}sandbox", f"{PREFIX}owner"
IDENTITY, INFO = f"{PREFIX}identity", f"{PREFIX}info"
MANAGED = "app.kubernetes.io/managed-by"
CONTAINER = "kernel"
PYTHON = "python3"
"""Found by the image's own PATH."""
USER = etc.UID
"""The uid and gid of all processes of a pod, as the node sees them."""
LINGER_SECONDS = 120.0
"""How long PID 1 waits after its host has gone, so that outputs can still be fetched."""
GUEST_SPARE = 64 * MIB
"""Bytes for the guest's own code beside the files that are copied."""
POINT_SIZE = 65536

BOOT = """\
import json, os, select, sys
del sys.path[:1]
def read(size):
    data = b""
    while len(data) < size:
        if not select.select([0], [], [], 60)[0]:
            sys.exit("The pod ends: nobody has spoken to it for 60 s.")
        more = os.read(0, min(size - len(data), 65536))
        if not more:
            sys.exit("The pod ends: its stdin was closed.")
        data += more
    return data
while True:
    line = b""
    while not line.endswith(b"\\n"):
        line = line[-200:] + read(1)
    words = line.split()
    if words[:1] == [b"hello"] and len(words) == 2:
        facts = json.dumps({"environ": dict(os.environ), "python": sys.version})
        os.write(1, b"here " + words[1] + b" " + facts.encode() + b"\\n")
    elif words[:1] == [b"code"] and len(words) == 2:
        code = {"__name__": "gvisor_kernel_pod"}
        exec(compile(read(int(words[1])), "pod", "exec"), code)
        code["run"](read)
"""
"""The program of PID 1. It says nothing before it is spoken to: what is printed before somebody is
attached is lost. Half a line of an attach that failed is no word, and the next one begins anew."""

TERMINATION_LOG = "/dev/termination-log"
"""A file on the node's disk, which every container of a pod gets and every user may write. No limit
counts it. PID 1 shows an empty one in its place."""
_REPLACED = {**{name: f"/etc/{name}" for name in etc.REPLACED}, "termination-log": TERMINATION_LOG}
"""Files of the pod in whose place others are shown, by their names in the archive."""
_BASES = ("/mnt/skills", "/mnt/user-data")
"""Directories that hold mount points. PID 1 mounts an empty file system of its own on the first."""


def pod_name(container_id: str) -> str:
    """Return the name of a sandbox's pod. It is never reused."""
    return f"gvisor-kernel-{container_id}"


@dataclass(frozen=True)
class PodNames:
    """The owner of a pod: a state directory, a sandbox in it, a process."""

    state: str
    container_id: str
    identity: str
    owner: str

    @property
    def pod(self) -> str:
        return pod_name(self.container_id)


def find_points(spec: SandboxSpec) -> list[str]:
    """Return the directories that must exist in the pod before PID 1 mounts anything."""
    tops = [mount.target for mount in scratch_mounts(spec)]
    points = [GUEST, WORKSPACE, TRANSCRIPTS, _BASES[0], HOME, *(m.target for m in spec.mounts)]
    if not find_settings(spec).uploads_claim:
        points.append(UPLOADS)
    wanted = dict.fromkeys([*tops, *points])
    return [path for path in wanted if not any(path.startswith(f"{other}/") for other in tops)]


def make_pod(
    spec: SandboxSpec,
    names: PodNames,
    *,
    info: str,
    owner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the pod. ``info``: the content of /container_info.json. ``owner``: an ownerReference
    to the server's own pod, with which this one ends."""
    cluster = find_settings(spec)
    volumes: list[dict[str, Any]] = [
        _memory("points", POINT_SIZE),
        {
            "name": "info",
            "downwardAPI": {
                "items": [
                    {
                        "path": "container_info.json",
                        "fieldRef": {"fieldPath": f"metadata.annotations['{INFO}']"},
                    }
                ]
            },
        },
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "points", "mountPath": path} for path in find_points(spec)
    ]
    mounts.append(
        {
            "name": "info",
            "mountPath": CONTAINER_INFO,
            "subPath": "container_info.json",
            "readOnly": True,
        }
    )
    outputs_claim = cluster.outputs_claim if spec.outputs is not None else ""
    uploads_claim = cluster.uploads_claim if spec.uploads is not None else ""
    for name, target, claim, read_only in (
        ("outputs", OUTPUTS, outputs_claim, False),
        ("uploads", UPLOADS, uploads_claim, True),
    ):
        if claim:
            volume, mount = _claim(name, target, claim, read_only)
            same = _find_claim(volumes, volume["persistentVolumeClaim"]["claimName"])
            if same is None:
                volumes.append(volume)
            else:
                mount["name"] = same
            mounts.append(mount)
    if not outputs_claim:
        volumes.append(_memory("outputs", spec.disk_limit))
        mounts.append({"name": "outputs", "mountPath": OUTPUTS})
    resources = {
        "memory": str(spec.memory_limit + MEMORY_BACKSTOP),
        "cpu": cluster.cpu,
        "ephemeral-storage": cluster.log_limit,
    }
    metadata: dict[str, Any] = {
        "name": names.pod,
        "labels": {
            **dict(cluster.labels),
            MANAGED: "gvisor-kernel",
            STATE: names.state,
            SANDBOX: names.container_id,
            OWNER: names.owner,
        },
        "annotations": {IDENTITY: names.identity, INFO: info},
    }
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    pod: dict[str, Any] = {
        "runtimeClassName": cluster.runtime_class,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostname": etc.HOSTNAME,
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": spec.image,
                "command": [PYTHON, "-Xfrozen_modules=off", "-c", BOOT],
                "workingDir": "/",
                "env": [{"name": "LANG", "value": "C.UTF-8"}],
                "stdin": True,
                "stdinOnce": False,
                "tty": False,
                "terminationMessagePath": TERMINATION_LOG,
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "privileged": False,
                    "readOnlyRootFilesystem": True,
                    "runAsNonRoot": True,
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if cluster.pull:
        pod["containers"][0]["imagePullPolicy"] = cluster.pull
    if cluster.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    if cluster.priority_class:
        pod["priorityClassName"] = cluster.priority_class
    if cluster.node_selector:
        pod["nodeSelector"] = dict(cluster.node_selector)
    if cluster.tolerations:
        pod["tolerations"] = [json.loads(entry) for entry in cluster.tolerations]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}


def _memory(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}}


def _find_claim(volumes: Iterable[Mapping[str, Any]], claim: str) -> str | None:
    """Return the name of the volume that a claim has already: kubelet waits without end for a pod
    that has two volumes of one claim."""
    return next(
        (
            str(volume["name"])
            for volume in volumes
            if volume.get("persistentVolumeClaim", {}).get("claimName") == claim
        ),
        None,
    )


def _claim(
    name: str, target: str, claim: str, read_only: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    claim_name, _, folder = claim.partition("/")
    source = {"claimName": claim_name, "readOnly": read_only}
    mount: dict[str, Any] = {"name": name, "mountPath": target, "readOnly": read_only}
    if folder:
        mount["subPath"] = folder
    return {"name": name, "persistentVolumeClaim": source}, mount


def etc_files(container_id: str) -> dict[str, str]:
    """Return the content of the files that replace the pod's, by name."""
    return {**etc.replaced_files(container_id), "termination-log": ""}


def guest_config(
    spec: SandboxSpec,
    *,
    secret: bytes,
    ahead: Iterable[str],
    environment: Mapping[str, str],
    lingers: bool,
) -> dict[str, Any]:
    """Return what ``guest/pod.py`` is told. ``environment``: PID 1's; the usual one if empty."""
    scratch = [(mount.target, mount.size, mount.mode) for mount in scratch_mounts(spec)]
    scratch.append((_BASES[0], POINT_SIZE, 0o755))
    # The guest's code is where it begins, and container_info.json a volume of the pod.
    other = {GUEST, CONTAINER_INFO}
    if find_settings(spec).uploads_claim and spec.uploads is not None:
        other.add(UPLOADS)
    parts = {part: target for part, target in list_parts(spec).items() if target not in other}
    parts |= {f"etc/{name}": path for name, path in _REPLACED.items()}
    return {
        "guest": GUEST,
        "outputs": OUTPUTS,
        "secret": secret.hex(),
        "size": spec.disk_limit + GUEST_SPARE,
        "scratch": scratch,
        "parts": parts,
        "pids": spec.pids_limit,
        "files": OPEN_FILES,
        "environment": dict(environment) or dict(entry.split("=", 1) for entry in INIT_ENVIRONMENT),
        "ahead": list(ahead),
        "linger": LINGER_SECONDS if lingers else 0,
    }
