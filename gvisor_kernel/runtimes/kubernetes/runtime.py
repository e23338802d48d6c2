"""The runtime ``kubernetes``: a pod of a cluster for each kernel.

Nothing of this machine is mounted into a pod: what it reads is sent over its stdin as it starts,
and its outputs are fetched at its end, and by ``gvisor-kernel sync``; unless both are volumes of
the cluster.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gvisor_kernel
from gvisor_kernel.config.mounts import check_read_only
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.link.carrier import SECRET_SIZE, Carrier
from gvisor_kernel.runtimes.base import LaunchRequest, Runtime, Sandbox
from gvisor_kernel.runtimes.checks import RuntimeCheck
from gvisor_kernel.runtimes.copies.contents import (
    Contents,
    describe_sandbox,
    find_contents,
    list_files,
    write_list,
)
from gvisor_kernel.runtimes.copies.outputs import COPIED, sync_copied_outputs
from gvisor_kernel.runtimes.engine_removal import sweep_engines
from gvisor_kernel.runtimes.kubernetes.cluster import (
    OWN_NAMESPACE,
    Address,
    Cluster,
    ClusterNotAnswering,
    NotFound,
    RequestRejected,
    find_address,
)
from gvisor_kernel.runtimes.kubernetes.pod import (
    CONTAINER,
    PYTHON,
    PodNames,
    etc_files,
    guest_config,
    make_pod,
)
from gvisor_kernel.runtimes.kubernetes.pod_sandbox import ATTACH_SECONDS, Pod, PodSandbox
from gvisor_kernel.runtimes.kubernetes.pod_state import describe_wait, find_obstacle
from gvisor_kernel.runtimes.kubernetes.removal import copy_now, end_pod, find_pod, sweep_cluster
from gvisor_kernel.runtimes.kubernetes.settings import NO_CHOICE, find_settings, without_claims
from gvisor_kernel.runtimes.kubernetes.starting import Look, find_container, send_files
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning, FirstSweep, begin, predict_outputs
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.stdio import StderrLog, make_pipes
from gvisor_kernel.spec.environment import image_environment
from gvisor_kernel.spec.identity import new_identity
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS
from gvisor_kernel.tracing import step

log = logging.getLogger(__name__)

TAKE_SECONDS = 60.0
"""Seconds that a pod may take no byte of what is sent to it."""


@dataclass(frozen=True)
class _Plan(Beginning):
    """The plan of a sandbox, before a pod is made."""

    cluster: Cluster

    @property
    def names(self) -> PodNames:
        owner = self.record.owner
        return PodNames(
            records.state_id(),
            self.identity.container_id,
            str(self.identity),
            f"{owner.pid}-{owner.started}",
        )


class KubernetesRuntime(Runtime):
    """Makes sandboxes as pods of the cluster that the settings name."""

    name = "kubernetes"

    def __init__(self) -> None:
        self._first_sweep: FirstSweep[Address] = FirstSweep(self.name)

    def start(self, spec: SandboxSpec, request: LaunchRequest) -> Sandbox:
        check_read_only(spec.mounts, "the runtime kubernetes copies them, and cannot write back")
        cluster = Cluster(find_address(find_settings(spec)))
        try:
            shown = without_claims(spec)
            outputs = predict_outputs(shown, request)
            self._first_sweep.run(cluster.address, lambda: sweep_cluster(cluster), outputs)
            step("cluster looked at")
            identity = new_identity(request.kernel_name, spec)
            facts = {"runtime": self.name, "engine": cluster.address.write()}
            with begin(spec, request, identity, facts, shown=shown) as begun:
                return _make_sandbox(_Plan(**vars(begun), cluster=cluster))
        except BaseException:
            cluster.close()
            raise

    def find_base(self, spec: SandboxSpec, request: LaunchRequest) -> Base:
        return Base(spec.image, "")  # its Python is known only inside; see ``guest/installed.py``

    def end(self, directory: Path, record: Record) -> bool:
        end_pod(directory, record)
        return True

    def sync_outputs(
        self, directory: Path, record: Record, folder: str | None
    ) -> tuple[int, int] | None:
        return sync_copied_outputs(copy_now, directory, record, folder)

    def find_own_folders(self, spec: SandboxSpec) -> set[str]:
        settings = find_settings(spec)
        claims = {UPLOADS: settings.uploads_claim, OUTPUTS: settings.outputs_claim}
        return {place for place, claim in claims.items() if claim}

    def find_checks(self) -> tuple[RuntimeCheck, ...]:
        from gvisor_kernel.runtimes.kubernetes.checks import check_clusters

        return (RuntimeCheck(self.name, 30, check_clusters),)

    def may_have_left(self) -> bool:
        return bool(os.environ.get("KUBECONFIG"))

    def sweep(self) -> list[str]:
        used = {
            Address.read(record.engine)
            for _, record in records.find_sandboxes()
            if record.runtime == self.name
        }
        places = {*used, *self._first_sweep.places, find_address(NO_CHOICE)}
        return sweep_engines(self.name, places, Cluster, sweep_cluster)


def _make_sandbox(plan: _Plan) -> PodSandbox:
    spec, cluster = plan.spec, plan.cluster
    contents = _find_contents(plan)
    contents.measure(spec.disk_limit)
    keeps = plan.outputs.folder is not None or bool(find_settings(spec).outputs_claim)
    info = describe_sandbox(plan, keeps_outputs=keeps)
    asked = make_pod(spec, plan.names, info=info, owner=_find_owner(cluster))
    try:
        made = cluster.create_pod(asked).get("metadata")
    except (RequestRejected, NotFound):
        with records.locked():
            records.write_record(plan.places.directory, replace(plan.find_record(), unmade=True))
        raise
    asked["metadata"]["uid"] = made.get("uid") if isinstance(made, dict) else None
    step("pod made")
    ends = make_pipes()
    try:
        stderr = StderrLog(ends.stderr, plan.places.stderr_log)
    except BaseException:
        ends.close_guest()
        ends.close_host()
        raise
    try:
        return _connect(plan, asked, contents, ends, stderr)
    except LaunchError as error:
        ends.close_guest()
        ends.close_link()
        stderr.wait(1)
        if error.detail:
            raise
        raise LaunchError(error.fact, error.hint, stderr.tail()) from error
    except BaseException:
        ends.close_guest()
        ends.close_link()
        raise


def _connect(
    plan: _Plan, asked: dict[str, Any], contents: Contents, ends: Any, stderr: StderrLog
) -> PodSandbox:
    """Attach to the pod, send it its files, and hand it over to a PodSandbox."""
    spec, cluster, pod = plan.spec, plan.cluster, plan.names.pod

    def note(words: bytes) -> None:
        with suppress(OSError):
            os.write(ends.guest[2], words[:4096])

    found = find_container(
        lambda: cluster.attach(pod, CONTAINER, ATTACH_SECONDS),
        _look_at(cluster, pod),
        note,
        time.monotonic() + spec.start_timeout,
    )
    step("container answered")
    variables, names = found.facts.environment, spec.environment
    try:
        secret = secrets.token_bytes(SECRET_SIZE)
        config = guest_config(
            spec,
            secret=secret,
            ahead=plan.request.ahead,
            environment=image_environment(found.facts.environment, spec.environment, {})
            if plan.request.ahead
            else {},
            lingers=plan.outputs.folder is not None,
        )
        source = (Path(gvisor_kernel.__file__).parent / "guest" / "pod.py").read_bytes()
        archive = contents.archive(2 * spec.disk_limit)
        send_files(found, source, json.dumps(config).encode(), archive, note, TAKE_SECONDS)
        step("files sent")
    except BaseException:
        found.stream.close()
        raise
    carrier = Carrier(secret, is_host=True)
    environment = image_environment(variables, names, plan.request.environment)
    view = plan.make_view(environment, PYTHON)
    made = Pod(cluster, pod, asked)
    sandbox = PodSandbox(plan, ends, view, stderr, made, found.stream, carrier)
    sandbox.pump.start()
    return sandbox


def _look_at(cluster: Cluster, pod: str) -> Callable[[], Look]:
    """Return a function that says what keeps a pod from running. An API server that does not answer
    for a moment is no reason to give up."""
    told = ""

    def look() -> Look:
        nonlocal told
        try:
            found = find_pod(cluster, pod)
        except ClusterNotAnswering as error:
            return Look(wait=error.fact)
        if found is None:
            return Look("it was deleted")
        wait = describe_wait(found)
        if wait and wait != told:
            told = wait
            log.info("The pod %s waits: %s", pod, wait)
        return Look(find_obstacle(found), wait)

    return look


def _find_owner(cluster: Cluster) -> dict[str, Any] | None:
    """Return an ownerReference to this process's own pod, if it runs in the same namespace: the
    cluster then removes the kernels' pods with it."""
    if not OWN_NAMESPACE.exists() or OWN_NAMESPACE.read_text().strip() != cluster.namespace:
        return None
    pod = find_pod(cluster, socket.gethostname())
    uid = ((pod or {}).get("metadata") or {}).get("uid")
    if not uid:
        return None
    return {"apiVersion": "v1", "kind": "Pod", "name": socket.gethostname(), "uid": str(uid)}


def _find_contents(plan: _Plan) -> Contents:
    """Return everything that is sent to the pod."""
    base, etc = Base(plan.spec.image, ""), etc_files(plan.identity.container_id)
    contents = find_contents(plan, base, etc, plan.held)
    contents.empty.append("guest")
    if plan.outputs.folder is not None:
        write_list(plan.places.directory / COPIED, list_files(plan.outputs.folder))
        contents.folders.append(("outputs", plan.outputs.folder, "outputs"))
    return contents
