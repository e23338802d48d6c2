"""Checks that a pod is what was asked for: by what the guest says, and by what the cluster says.

A NetworkPolicy promises nothing here: not every cluster has what enforces it. So a pod with an
interface or a route is refused, whatever policies there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gvisor_kernel.config.kubernetes import Kubernetes
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.runtimes.kubernetes.cluster import Cluster
from gvisor_kernel.runtimes.kubernetes.pod_state import explain_end, find_phase
from gvisor_kernel.spec.pod_faults import find_faults


def find_inside_faults(said: Mapping[str, str] | None) -> list[str]:
    """Return what is wrong by the facts of the guest's HELLO; empty if nothing is."""
    facts = said or {}
    faults = []
    if "gVisor" not in facts.get("dmesg", ""):
        faults.append("its kernel's log does not name gVisor")
    network = facts.get("network")
    if network is None:
        faults.append("it does not say whether it has a network")
    elif network:
        words = "".join(c for c in network if c.isprintable())[:200]
        faults.append(f"it has a network ({words})")
    return faults


def find_outside_faults(
    cluster: Cluster, name: str, asked: Mapping[str, Any], settings: Kubernetes
) -> list[str]:
    """Return how the pod ``name`` differs from what was ``asked`` for; empty if it does not."""
    try:
        pod = cluster.read_pod(name)
        runtime_class = cluster.read_runtime_class(settings.runtime_class)
    except SandboxError as error:
        return [error.fact.rstrip(".")]
    faults = find_faults(asked, pod)
    handler = str(runtime_class.get("handler", ""))
    if handler not in settings.handlers:
        faults.append(
            f"the handler of the RuntimeClass {settings.runtime_class} is {handler!a}, not"
            f" {' or '.join(settings.handlers)}"
        )
    if find_phase(pod) == "ended":
        faults.append(explain_end(pod).cause)
    elif find_phase(pod) != "running":
        faults.append("it is not running")
    return faults
