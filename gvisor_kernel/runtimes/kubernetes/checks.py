"""The check of ``doctor``: a cluster, if a kernelspec uses one or KUBECONFIG names one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.runtimes.checks import Check, State, ok, warning
from gvisor_kernel.runtimes.kubernetes.cluster import (
    Cluster,
    NotFound,
    RequestRejected,
    find_address,
)
from gvisor_kernel.runtimes.kubernetes.settings import NO_CHOICE, Kubernetes, find_settings

NAME = "kubernetes"
RIGHTS = (
    *(("create", "pods"), ("get", "pods"), ("list", "pods"), ("delete", "pods")),
    *(("get", "pods/attach"), ("create", "pods/attach")),
    *(("get", "pods/exec"), ("create", "pods/exec")),
)
"""Rights that the runtime needs in its namespace. A stream over a WebSocket needs both verbs."""
ENFORCE = "pod-security.kubernetes.io/enforce"


def check_clusters(specs: Sequence[SandboxSpec]) -> list[Check]:
    """Check each cluster of ``specs``; without any, the one that KUBECONFIG names, if it is set."""
    wanted: State = "failed" if specs else "warning"
    if not specs and not os.environ.get("KUBECONFIG"):
        return []
    found = dict.fromkeys(map(find_settings, specs)) or [NO_CHOICE]
    return [check for settings in found for check in check_one(settings, wanted)]


def check_one(settings: Kubernetes, wanted: State) -> list[Check]:
    """Check the cluster of ``settings``: access, namespace, rights, RuntimeClass, Pod Security.

    ``wanted``: the state of a check that fails.
    """
    try:
        with closing(Cluster(find_address(settings))) as cluster:
            version = cluster.read_version()
            return [
                ok(f"{cluster.host} answers, release {version}", name=NAME),
                _check_rights(cluster, wanted),
                _check_runtime_class(cluster, settings, wanted),
                _check_namespace(cluster, wanted),
            ]
    except SandboxError as error:
        return [Check(NAME, wanted, error.fact.rstrip("."), error.hint)]


def _check_rights(cluster: Cluster, wanted: State) -> Check:
    missing = [f"{verb} {resource}" for verb, resource in RIGHTS if not cluster.may(verb, resource)]
    name = f"{NAME} rights"
    if missing:
        return Check(
            name,
            wanted,
            f"in the namespace {cluster.namespace} this user may not: {', '.join(missing)}",
            "apply deploy/rbac.yaml, and bind its Role to this user or service account",
        )
    return ok(f"this user may run pods in the namespace {cluster.namespace}", name=name)


def _check_runtime_class(cluster: Cluster, settings: Kubernetes, wanted: State) -> Check:
    name = f"{NAME} RuntimeClass"
    try:
        found = cluster.read_runtime_class(settings.runtime_class)
    except NotFound:
        return Check(
            name,
            wanted,
            f"there is no RuntimeClass {settings.runtime_class}",
            "apply deploy/runtimeclass.yaml, or name another one: runtime_class in the setting"
            " kubernetes",
        )
    except RequestRejected as error:
        return Check(
            name,
            wanted,
            error.fact.rstrip("."),
            "apply deploy/rbac.yaml: a pod whose RuntimeClass cannot be read is refused",
        )
    handler = str(found.get("handler", ""))
    if handler not in settings.handlers:
        return Check(
            name,
            wanted,
            f"the handler of {settings.runtime_class} is {ascii(handler)[:100]}, not"
            f" {' or '.join(settings.handlers)}",
            'set runtime_class to that of gVisor; or, if it is gVisor, add its name to "handlers"',
        )
    return ok(f"{settings.runtime_class} has the handler {handler}", name=name)


def _check_namespace(cluster: Cluster, wanted: State) -> Check:
    name = f"{NAME} namespace"
    try:
        found = cluster.read_namespace()
    except NotFound:
        fact = f"there is no namespace {cluster.namespace}"
        return Check(name, wanted, fact, f"kubectl create namespace {cluster.namespace}")
    except RequestRejected as error:
        return warning(error.fact.rstrip("."), "apply deploy/rbac.yaml", name=name)
    labels = (found.get("metadata") or {}).get("labels") or {}
    level = str(labels.get(ENFORCE, ""))
    if level != "restricted":
        return warning(
            f"{cluster.namespace} does not enforce the restricted Pod Security Standard: other"
            " pods there may have more rights than kernels",
            f"kubectl label namespace {cluster.namespace} {ENFORCE}=restricted",
            name=name,
        )
    return ok(f"{cluster.namespace} enforces the restricted Pod Security Standard", name=name)
