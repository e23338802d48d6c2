"""A running sandbox in a pod: its link, a check of it, why it ended, and its removal."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gvisor_kernel.errors import IsolationError, SandboxError
from gvisor_kernel.link.carrier import Carrier
from gvisor_kernel.runtimes.base import KernelView
from gvisor_kernel.runtimes.kubernetes.attach import Stream
from gvisor_kernel.runtimes.kubernetes.cluster import Cluster
from gvisor_kernel.runtimes.kubernetes.pod import CONTAINER
from gvisor_kernel.runtimes.kubernetes.pod_faults import find_faults
from gvisor_kernel.runtimes.kubernetes.pod_state import Ending, explain_end, find_phase, is_pod
from gvisor_kernel.runtimes.kubernetes.pump import Pump
from gvisor_kernel.runtimes.kubernetes.removal import find_pod
from gvisor_kernel.runtimes.kubernetes.settings import Kubernetes
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.pipes import Ends
from gvisor_kernel.runtimes.state.recorded_sandbox import RecordedSandbox
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.stderr_log import StderrLog


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


log = logging.getLogger(__name__)

THREAD_SECONDS = 10.0
"""Seconds to wait for the thread that moves the link, and for that of stderr."""
ATTACH_SECONDS = 5.0


class PodSandbox(RecordedSandbox):
    """Returned by ``KubernetesRuntime.start``. It ends when its pod does, or cannot be reached."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        pod: str,
        asked: Mapping[str, Any],
        settings: Kubernetes,
        stream: Stream,
        carrier: Carrier,
        ends: Ends,
        stderr: StderrLog,
        record: Record,
        places: Places,
        view: KernelView,
    ) -> None:
        """Take over the cluster, the connection and the pipes."""
        super().__init__(record, places.directory, places.log, view, (ends.link_in, ends.link_out))
        self.exit_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The pump may outlive ``close``, in a request that nobody answers. By then ``exit_fd`` may
        # be another file, so its thread has a copy.
        self._told_fd = os.dup(self.exit_fd)
        self.pod = pod
        self.asked = asked
        self.cluster = cluster
        self._settings = settings
        self._stderr = stderr
        self._used = 0
        self._ending: Ending | None = None
        self.pump = Pump(
            stream=stream,
            carrier=carrier,
            pipes=ends.guest,
            limit=record.memory_limit,
            attach=self._attach,
            find_end=self._find_end,
            ended=self._on_end,
            on_memory=self._note_memory,
        )

    # -- in the pump's thread ----------------------------------------------------------------------

    def _attach(self) -> Stream:
        return self.cluster.attach(self.pod, CONTAINER, ATTACH_SECONDS)

    def _find_end(self) -> Ending | None:
        """Ask the cluster why the pod has ended; None while it may live, or nobody answers."""
        try:
            found = find_pod(self.cluster, self.pod)
        except SandboxError as error:
            log.debug("%s", error)
            return None
        if found is not None and not is_pod(found, self.asked["metadata"].get("uid")):
            found = None
        if found is not None and find_phase(found) != "ended":
            return None
        return explain_end(found)

    def _note_memory(self, used: int) -> None:
        self._used = used

    def _on_end(self, ending: Ending | None) -> None:
        self._ending = ending
        self._ended = True
        os.eventfd_write(self._told_fd, 1)
        os.close(self._told_fd)

    # -- facts -----------------------------------------------------------------------------------

    def poll(self) -> int | None:
        return 0 if self._ended else None

    def memory_used(self) -> int | None:
        return None if self._ended or self._closed else self._used

    def memory_kills(self) -> int:
        return 1 if self._ending is not None and self._ending.memory else 0

    def stderr_tail(self) -> str:
        if self._ended:
            self._stderr.catch_up()
        return self._stderr.tail()

    def find_cause(self) -> str:
        return self._ending.cause if self._ending is not None else ""

    # -- actions ---------------------------------------------------------------------------------

    def kill(self) -> None:
        """Let PID 1 end all other processes. The pod goes with ``close``; its outputs are first."""
        self.pump.stop()

    def verify(self, said: Mapping[str, str] | None = None) -> None:
        faults = find_inside_faults(said)
        faults += find_outside_faults(self.cluster, self.pod, self.asked, self._settings)
        if faults:
            self.kill()
            raise IsolationError(
                f"The pod is not the sandbox that was asked for: {'; '.join(faults)}.",
                "check the cluster's RuntimeClass and admission webhooks, and what docs/kubernetes"
                " says of pods without a network: gvisor-kernel doctor --runtime kubernetes",
                self.stderr_tail(),
            )
        self.node = self._find_node()
        self._update_record(ready=True, node=self.node)

    def _find_node(self) -> str | None:
        with suppress(SandboxError):
            found = find_pod(self.cluster, self.pod)
            name = ((found or {}).get("spec") or {}).get("nodeName")
            return name[:253] if isinstance(name, str) and name.isprintable() else None
        return None

    def _stop(self) -> None:
        self.pump.close(THREAD_SECONDS)

    def _release(self) -> None:
        self._stderr.wait(THREAD_SECONDS)
        self.cluster.close()
