"""A running sandbox in a pod: its link, a check of it, why it ended, and its removal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.link.carrier import Carrier
from gvisor_kernel.runtimes.base import KernelView
from gvisor_kernel.runtimes.engine_sandbox import THREAD_SECONDS, EngineSandbox
from gvisor_kernel.runtimes.kubernetes.attach import Stream
from gvisor_kernel.runtimes.kubernetes.cluster import Cluster
from gvisor_kernel.runtimes.kubernetes.pod import CONTAINER
from gvisor_kernel.runtimes.kubernetes.pod_faults import find_faults
from gvisor_kernel.runtimes.kubernetes.pod_state import Ending, explain_end, find_phase, is_pod
from gvisor_kernel.runtimes.kubernetes.pump import Pump
from gvisor_kernel.runtimes.kubernetes.removal import find_pod
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes, find_settings
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.stdio import Ends, StderrLog

log = logging.getLogger(__name__)

ATTACH_SECONDS = 5.0


@dataclass(frozen=True)
class Pod:
    """A pod that a cluster has made, as it was ``asked`` for."""

    cluster: Cluster
    name: str
    asked: Mapping[str, Any]

    def attach(self) -> Stream:
        """:raises StreamCut: when the API server does not let us"""
        return self.cluster.attach(self.name, CONTAINER, ATTACH_SECONDS)


def find_outside_faults(pod: Pod, settings: Kubernetes) -> list[str]:
    """Return how a pod differs from what was asked for; empty if it does not."""
    try:
        made = pod.cluster.read_pod(pod.name)
        runtime_class = pod.cluster.read_runtime_class(settings.runtime_class)
    except SandboxError as error:
        return [error.fact.rstrip(".")]
    faults = find_faults(pod.asked, made)
    handler = str(runtime_class.get("handler", ""))
    if handler not in settings.handlers:
        faults.append(
            f"the handler of the RuntimeClass {settings.runtime_class} is {handler!a}, not"
            f" {' or '.join(settings.handlers)}"
        )
    if find_phase(made) == "ended":
        faults.append(explain_end(made).cause)
    elif find_phase(made) != "running":
        faults.append("it is not running")
    return faults


class PodSandbox(EngineSandbox):
    """Returned by ``KubernetesRuntime.start``. It ends when its pod does, or cannot be reached."""

    kind = "pod"
    advice = (
        "check the cluster's RuntimeClass and admission webhooks, and what docs/kubernetes says of"
        " pods without a network: gvisor-kernel doctor --runtime kubernetes"
    )

    def __init__(
        self,
        begun: Beginning,
        ends: Ends,
        view: KernelView,
        stderr: StderrLog,
        pod: Pod,
        stream: Stream,
        carrier: Carrier,
    ) -> None:
        """Take over the pod's cluster, the connection to it and the pipes."""
        super().__init__(begun, ends, view, stderr)
        self.pod = pod
        self._settings = find_settings(begun.spec)
        self._used = 0
        self._ending: Ending | None = None
        self.pump = Pump(
            stream=stream,
            carrier=carrier,
            pipes=ends.guest,
            limit=begun.record.memory_limit,
            attach=pod.attach,
            find_end=self._find_end,
            ended=self._on_end,
            on_memory=self._note_memory,
        )

    # -- in the pump's thread ----------------------------------------------------------------------

    def _find_end(self) -> Ending | None:
        """Ask the cluster why the pod has ended; None while it may live, or nobody answers."""
        try:
            found = find_pod(self.pod.cluster, self.pod.name)
        except SandboxError as error:
            log.debug("%s", error)
            return None
        if found is not None and not is_pod(found, self.pod.asked["metadata"].get("uid")):
            found = None
        if found is not None and find_phase(found) != "ended":
            return None
        return explain_end(found)

    def _note_memory(self, used: int) -> None:
        self._used = used

    def _on_end(self, ending: Ending | None) -> None:
        self._ending = ending
        self.tell_end()

    # -- facts -----------------------------------------------------------------------------------

    def measure(self) -> int:
        return self._used

    def memory_kills(self) -> int:
        return 1 if self._ending is not None and self._ending.memory else 0

    def find_cause(self) -> str:
        return self._ending.cause if self._ending is not None else ""

    # -- actions ---------------------------------------------------------------------------------

    def kill(self) -> None:
        """Let PID 1 end all other processes. The pod goes with ``close``; its outputs are first."""
        self.pump.stop()

    def find_inside_faults(self, said: Mapping[str, str]) -> list[str]:
        faults = super().find_inside_faults(said)
        network = said.get("network")
        if network is None:
            faults.append("it does not say whether it has a network")
        elif network:
            words = "".join(c for c in network if c.isprintable())[:200]
            faults.append(f"it has a network ({words})")
        return faults

    def find_faults(self) -> list[str]:
        faults = find_outside_faults(self.pod, self._settings)
        if not faults:
            self.node = self._find_node()
        return faults

    def _find_node(self) -> str | None:
        with suppress(SandboxError):
            found = find_pod(self.pod.cluster, self.pod.name)
            name = ((found or {}).get("spec") or {}).get("nodeName")
            return name[:253] if isinstance(name, str) and name.isprintable() else None
        return None

    def _stop(self) -> None:
        self.pump.close(THREAD_SECONDS)

    def _release(self) -> None:
        super()._release()
        self.pod.cluster.close()
