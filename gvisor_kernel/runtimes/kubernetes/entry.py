"""The entry of the runtime "kubernetes", and its setting."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from gvisor_kernel.config.settings import RuntimeEntry, SandboxSpec, Setting
from gvisor_kernel.config.validators import PROJECT
from gvisor_kernel.errors import SettingError
from gvisor_kernel.runtimes.kubernetes.settings import NO_CHOICE, Kubernetes, accept_kubernetes

if TYPE_CHECKING:
    from gvisor_kernel.runtimes.kubernetes.runtime import KubernetesRuntime
    from gvisor_kernel.runtimes.state.records import Record


def _make() -> KubernetesRuntime:
    from gvisor_kernel.runtimes.kubernetes.runtime import KubernetesRuntime

    return KubernetesRuntime()


def _remove(directory: Path, record: Record, seconds: float | None) -> bool:
    from gvisor_kernel.runtimes.kubernetes.removal import remove_from_cluster

    return remove_from_cluster(directory, record, seconds)


def _check(spec: SandboxSpec) -> None:
    if spec.runsc:
        accepted = '"": nodes of the cluster have a runsc of their own, as a RuntimeClass'
        raise SettingError("runsc", spec.runsc, accepted)
    if spec.uploads == PROJECT and isinstance(spec.own, Kubernetes) and spec.own.uploads_claim:
        raise SettingError(
            "uploads", spec.uploads, "another value: uploads_claim of kubernetes is what is shown"
        )


ENTRY = RuntimeEntry(
    make=_make,
    setting=Setting(
        NO_CHOICE,
        accept_kubernetes,
        inspect.cleandoc(
            """For the runtime "kubernetes", a mapping: "config" and "context" (a kubeconfig, and a
            context in it; by default the usual ones, or the cluster that the server runs in),
            "namespace", "runtime_class" (gVisor's RuntimeClass, by default "gvisor"), "handlers"
            (what its handler may be called), "cpu" (by default "1"), "log_limit" (for what kernels
            print, by default "4Gi"), "pull" (the imagePullPolicy), "pull_secrets",
            "priority_class", "uploads_claim" and "outputs_claim" (a PersistentVolumeClaim, and a
            folder in it, in place of copies), "labels", "node_selector", "tolerations"."""
        ),
        kind=Kubernetes,
    ),
    images="a registry of the cluster",
    variables=("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"),
    remove=_remove,
    check=_check,
)
