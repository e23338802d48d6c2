"""Ends a sandbox in a cluster and removes its pod: for close, ``kill``, the sweep.

Its outputs are fetched first, while PID 1 still waits for that. What cannot be done now, as when
the API server does not answer, is left for the next try, together with the record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import ArchiveError, SandboxError
from gvisor_kernel.runtimes.copies.outputs import (
    OutputsCopy,
    record_end,
    sync_copied_outputs,
    take_outputs,
)
from gvisor_kernel.runtimes.kubernetes.cluster import (
    Address,
    Cluster,
    ClusterNotAnswering,
    NotFound,
)
from gvisor_kernel.runtimes.kubernetes.collection import end_processes, fetch_outputs
from gvisor_kernel.runtimes.kubernetes.pod import IDENTITY, SANDBOX, STATE, pod_name
from gvisor_kernel.runtimes.kubernetes.pod_state import explain_end, find_phase
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record

log = logging.getLogger(__name__)

COPY_SECONDS = 60.0
"""Seconds that the copy of outputs may take at the end of a sandbox: PID 1 waits twice as long."""
SILENT_SECONDS = 10.0
"""Seconds that an API server that has not answered is not asked again."""
QUICKLY = 0.5
"""Seconds. One that fails faster (nothing listens) costs nothing, and is asked again."""

_silent: dict[str, float] = {}


def reach(address: str | None) -> Cluster:
    """Return the cluster, unless it has not answered just now.

    :raises SandboxError: when it cannot be used
    """
    since = time.monotonic() - _silent.get(address or "", float("-inf"))
    if since < SILENT_SECONDS:
        raise ClusterNotAnswering(f"The API server did not answer {since:.0f} s ago.")
    return Cluster(Address.read(address))


def end_pod(directory: Path, record: Record) -> None:
    """Fetch the outputs of a sandbox and end it; its owner removes the rest.

    :raises SandboxError: when the cluster does not end it
    """
    cluster = Cluster(Address.read(record.engine))
    try:
        if record.outputs is not None and record.ready:
            try:
                copy_outputs(cluster, directory, record, last=False, seconds=COPY_SECONDS)
            except (ArchiveError, OSError, SandboxError) as error:
                log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
        cluster.delete_pod(pod_name(record.container_id))
    finally:
        cluster.close()


def remove_from_cluster(directory: Path, record: Record, seconds: float | None) -> bool:
    """End a sandbox and remove its pod; return whether nothing is left. Never raises.

    ``seconds``: how long the copy of its outputs may take; None: COPY_SECONDS.
    """
    if record.unmade:
        return True
    record_end(directory)
    name = pod_name(record.container_id)
    try:
        cluster = reach(record.engine)
    except SandboxError as error:
        log.warning("Could not remove %s from its cluster: %s", record.identity, error.fact)
        return False
    asked = time.monotonic()
    try:
        pod = find_pod(cluster, name)
        if pod is None:
            _tell_loss(record, None)
            return True
        if not _save_outputs(cluster, directory, record, pod, seconds):
            return False
        cluster.delete_pod(name)
        return True
    except ClusterNotAnswering as error:
        if time.monotonic() - asked > QUICKLY:
            _silent[record.engine or ""] = time.monotonic()
        log.warning("Could not remove %s from its cluster: %s", record.identity, error.fact)
        return False
    except SandboxError as error:
        log.warning("Could not remove %s from its cluster: %s", record.identity, error.fact)
        return False
    finally:
        cluster.close()


def find_pod(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """Return a pod, None if there is none any more.

    :raises SandboxError: when the cluster does not say
    """
    try:
        return cluster.read_pod(name)
    except NotFound:
        return None


def sync_outputs(directory: Path, record: Record, folder: str | None = None) -> tuple[int, int]:
    """Copy the outputs of a sandbox as they are now; see ``sync_copied_outputs``.

    :raises SandboxError: when not everything could be copied
    :raises StateError: when the record cannot be written
    """

    def copy(directory: Path, record: Record) -> OutputsCopy:
        cluster = Cluster(Address.read(record.engine))
        try:
            return copy_outputs(cluster, directory, record, last=False)
        finally:
            cluster.close()

    return sync_copied_outputs(copy, directory, record, folder)


def copy_outputs(
    cluster: Cluster, directory: Path, record: Record, *, last: bool, seconds: float | None = None
) -> OutputsCopy:
    """Copy what has changed to the folder of outputs. ``last``: end the kernel's processes first.

    :raises SandboxError: when the pod does not send them
    :raises ArchiveError, OSError: see ``take_outputs``
    """
    pod = pod_name(record.container_id)
    if last:
        end_processes(cluster, pod)
        try:
            return take_outputs(fetch_outputs(cluster, pod), directory, record, seconds)
        except SandboxError as error:  # PID 1 has ended that program with the kernel's others
            log.debug("The outputs are fetched again: %s", error)
    return take_outputs(fetch_outputs(cluster, pod), directory, record, seconds)


def _save_outputs(
    cluster: Cluster,
    directory: Path,
    record: Record,
    pod: Mapping[str, Any],
    seconds: float | None,
) -> bool:
    """Fetch the outputs; return False if that is to be tried again, as when the disk is full."""
    if record.outputs is None or not record.ready:
        return True
    if find_phase(pod) != "running":
        _tell_loss(record, pod)
        return True
    try:
        copy_outputs(
            *(cluster, directory, record),
            last=True,
            seconds=COPY_SECONDS if seconds is None else seconds,
        )
    except (ArchiveError, SandboxError) as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
        return True
    except (OSError, TimeoutError) as error:
        log.warning(
            "Could not copy the outputs of %s yet: %s. The pod keeps them for two minutes. To try"
            " again: gvisor-kernel sync %s. To copy them to another folder: gvisor-kernel sync --to"
            " FOLDER %s",
            *(record.identity, error, record.container_id, record.container_id),
        )
        return False
    return True


def _tell_loss(record: Record, pod: Mapping[str, Any] | None) -> None:
    if record.outputs is not None and record.ready:
        log.warning(
            "What %s has written to its outputs since they were last copied is lost: %s. A volume"
            " keeps them: outputs_claim in the setting kubernetes.",
            *(record.identity, explain_end(pod).cause),
        )


def sweep_cluster(cluster: Cluster) -> list[str]:
    """Remove this user's pods that have no state directory any more; return their identities.

    :raises SandboxError: when the cluster does not answer
    :raises StateError: when the state directory cannot be read
    """
    pods = cluster.find_pods({STATE: records.state_id()})
    known = {path.name for path in records.sandbox_directories()}
    removed = {}
    for pod in pods:
        metadata = pod.get("metadata") or {}
        container_id = str((metadata.get("labels") or {}).get(SANDBOX, ""))
        name = pod_name(container_id)
        # The state directory is made before the pod, and removed after it. Labels may be copied.
        if container_id and container_id not in known and metadata.get("name") == name:
            cluster.delete_pod(name)
            notes = metadata.get("annotations") or {}
            removed[container_id] = str(notes.get(IDENTITY, container_id))
    return list(removed.values())
