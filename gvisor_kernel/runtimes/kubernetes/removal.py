"""Ends a sandbox in a cluster and removes its pod: for close, ``kill``, the sweep.

Its outputs are fetched first, while PID 1 still waits for that, by a program in the pod that writes
them as a tar archive. An exec, not the attach: what PID 1 prints, the node writes to its log files,
and counts against the pod's ephemeral storage. Any process with the rights can do it, also after
the server was killed. The kernel may tamper with that program, so the archive is as hostile as the
files in it.

What cannot be done now, as when the API server does not answer, is left for the next try, together
with the record.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import ArchiveError, SandboxError
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy, record_end, take_outputs
from gvisor_kernel.runtimes.engine_removal import Silence, save_outputs
from gvisor_kernel.runtimes.kubernetes.attach import STDOUT, StreamCut, wait_readable
from gvisor_kernel.runtimes.kubernetes.cluster import (
    Address,
    Cluster,
    ClusterNotAnswering,
    NotFound,
)
from gvisor_kernel.runtimes.kubernetes.pod import (
    CONTAINER,
    IDENTITY,
    PYTHON,
    SANDBOX,
    STATE,
    pod_name,
)
from gvisor_kernel.runtimes.kubernetes.pod_state import explain_end, find_phase
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.layout import OUTPUTS
from gvisor_kernel.strict_json import JsonError, parse_json

WORD_SECONDS = 30.0
"""Seconds that the program in the pod may say nothing."""
END_SECONDS = 30.0
"""Seconds that the program may take that ends a kernel's processes, however much it says."""
MAX_WORDS = 2000

PROGRAM = """\
import os, sys, tarfile
root = sys.argv[1]
class Content:
    def __init__(self, file): self.file = file
    def read(self, size): return self.file.read(size) or bytes(size)
out = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT)
def add(path, name):
    try:
        info = out.gettarinfo(path, name)
        if info is None: return
        info.mtime = int(info.mtime)
        if not info.isreg():
            out.addfile(info)
            return
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            out.addfile(info, Content(file))
    except (FileNotFoundError, PermissionError, UnicodeError): pass
for folder, names, files in os.walk(root):
    for name in sorted(names + files):
        path = os.path.join(folder, name)
        add(path, os.path.relpath(path, root))
out.close()
"""
"""A file that shrinks meanwhile is filled up with zeros."""
END_PROGRAM = "import os; os.kill(-1, 9)"
"""Ends all processes but PID 1. That ends all others when the kernel has ended, so also a program
that would go on from here."""


def end_processes(cluster: Cluster, pod: str) -> None:
    """End all processes of a pod but PID 1, as far as that can be done. Blocks for END_SECONDS at
    most: the kernel may write to that program's stdout, and never stop."""
    with suppress(SandboxError):
        for _ in _run(cluster, pod, [PYTHON, "-I", "-c", END_PROGRAM], END_SECONDS):
            pass


def fetch_outputs(cluster: Cluster, pod: str) -> Iterator[bytes]:
    """Yield the archive of what is in the outputs now.

    :raises SandboxError: when the program cannot be run, or does not come to its end
    """
    return _run(cluster, pod, [PYTHON, "-I", "-c", PROGRAM, OUTPUTS])


def _run(cluster: Cluster, pod: str, argv: list[str], seconds: float = math.inf) -> Iterator[bytes]:
    words = b""
    deadline = time.monotonic() + seconds
    try:
        stream = cluster.execute(pod, CONTAINER, argv)
    except StreamCut as error:
        raise SandboxError(f"The outputs of {pod} cannot be fetched: {error}.") from error
    try:
        silent = time.monotonic() + WORD_SECONDS
        while True:
            now = time.monotonic()
            if now > deadline:
                raise StreamCut(f"it has not ended after {seconds:g} s")
            if not wait_readable(stream, min(silent, deadline) - now):
                raise StreamCut(f"nothing came for {min(WORD_SECONDS, seconds):g} s")
            silent = time.monotonic() + WORD_SECONDS
            for channel, piece in stream.read():  # no timeout: it is ready, or does not block
                if channel == STDOUT:
                    yield bytes(piece)
                else:
                    words = (words + bytes(piece))[-MAX_WORDS:]
    except StreamCut as error:
        if not has_succeeded(stream.status):
            told = "".join(
                c for c in words.decode(errors="replace") if c.isprintable() or c == "\n"
            )
            raise SandboxError(
                f"The outputs of {pod} cannot be fetched: {str(error)[:500]}.", "", told
            ) from error
    finally:
        stream.close()


def has_succeeded(status: bytes) -> bool:
    """Return whether the status of an exec says that the program has ended well."""
    try:
        found = parse_json(status, len(status) + 1)
    except JsonError:
        return False
    return isinstance(found, dict) and found.get("status") == "Success"


log = logging.getLogger(__name__)

COPY_SECONDS = 60.0
"""Seconds that the copy of outputs may take at the end of a sandbox: PID 1 waits twice as long."""
_silence = Silence()


def reach(address: str | None) -> Cluster:
    """Return the cluster, unless it has not answered just now.

    :raises SandboxError: when it cannot be used
    """
    since = _silence.find(address)
    if since is not None:
        raise ClusterNotAnswering(f"The API server did not answer {since:.0f} s ago.")
    return Cluster(Address.read(address))


def end_pod(directory: Path, record: Record) -> None:
    """Fetch the outputs of a sandbox and end it; its owner removes the rest.

    :raises SandboxError: when the cluster does not end it
    """
    with closing(Cluster(Address.read(record.engine))) as cluster:
        if record.outputs is not None and record.ready:
            try:
                copy_outputs(cluster, directory, record, last=False, seconds=COPY_SECONDS)
            except (ArchiveError, OSError, SandboxError) as error:
                log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
        cluster.delete_pod(pod_name(record.container_id))


def remove_from_cluster(directory: Path, record: Record, seconds: float | None) -> bool:
    """End a sandbox and remove its pod; return whether nothing is left. Never raises.

    ``seconds``: how long the copy of its outputs may take; None: COPY_SECONDS.
    """
    if record.unmade:
        return True
    record_end(directory)
    name = pod_name(record.container_id)
    try:
        with (
            closing(reach(record.engine)) as cluster,
            _silence.noting(record.engine, ClusterNotAnswering),
        ):
            pod = find_pod(cluster, name)
            if pod is None:
                _tell_loss(record, None)
            elif not _save_outputs(cluster, directory, record, pod, seconds):
                return False
            else:
                cluster.delete_pod(name)
            return True
    except SandboxError as error:
        log.warning("Could not remove %s from its cluster: %s", record.identity, error.fact)
        return False


def find_pod(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """Return a pod, None if there is none any more.

    :raises SandboxError: when the cluster does not say
    """
    try:
        return cluster.read_pod(name)
    except NotFound:
        return None


def copy_now(directory: Path, record: Record) -> OutputsCopy:
    """Copy the outputs of a sandbox as they are now, for ``sync_copied_outputs``."""
    with closing(Cluster(Address.read(record.engine))) as cluster:
        return copy_outputs(cluster, directory, record, last=False)


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
    if find_phase(pod) != "running":
        _tell_loss(record, pod)
        return True
    seconds = COPY_SECONDS if seconds is None else seconds
    try:
        return save_outputs(
            record,
            lambda: copy_outputs(cluster, directory, record, last=True, seconds=seconds),
            " The pod keeps them for two minutes.",
        )
    except SandboxError as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
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
