"""Ends a sandbox in a Docker engine and removes what it has there: for close, ``kill``, the sweep.

Its outputs are copied out first. What cannot be done now, as when the engine does not answer, is
left for the next try, together with the record.
"""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from pathlib import Path

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy, record_end, take_outputs
from gvisor_kernel.runtimes.docker.connection import EngineNotAnswering
from gvisor_kernel.runtimes.docker.container import LABEL, Names
from gvisor_kernel.runtimes.docker.engine import Engine, EngineNotFound, connect
from gvisor_kernel.runtimes.engine_removal import Silence, save_outputs
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.layout import OUTPUTS

log = logging.getLogger(__name__)

COPY_SECONDS = 120.0
"""Seconds that the copy of outputs may take at the end of a sandbox."""
STILL_SECONDS = 10.0
"""Seconds that a container may take to end after it was killed."""
_silence = Silence()


def reach(address: str | None) -> Engine:
    """Connect to the engine, unless it has not answered just now.

    :raises RuntimeMissing: when it cannot be used
    :raises EngineNotAnswering: when it does not answer
    """
    since = _silence.find(address)
    if since is not None:
        raise EngineNotAnswering(
            f"The Docker engine at {address} did not answer {since:.0f} s ago."
        )
    with _silence.noting(address, EngineNotAnswering):
        return connect(address)


def end_container(record: Record) -> None:
    """End the sandbox; its owner removes the rest.

    :raises SandboxError: when the engine cannot end it
    """
    with closing(connect(record.engine)) as engine:
        engine.kill(Names(record.container_id).container)


def copy_now(directory: Path, record: Record) -> OutputsCopy:
    """Copy the outputs of a sandbox as they are now, for ``sync_copied_outputs``."""
    with closing(connect(record.engine)) as engine:
        return copy_outputs(engine, directory, record)


def remove_from_engine(directory: Path, record: Record, seconds: float | None) -> bool:
    """End a sandbox and remove what it has in its engine; return whether nothing is left.

    ``seconds``: how long the copy of its outputs may take; None: COPY_SECONDS. Never raises.
    """
    seconds = COPY_SECONDS if seconds is None else seconds
    record_end(directory)
    try:
        with closing(reach(record.engine)) as engine:
            names = Names(record.container_id)
            engine.kill(names.container)
            with suppress(EngineNotFound):
                engine.wait(names.container, STILL_SECONDS)
            with suppress(EngineNotFound):
                if not save_outputs(
                    record, lambda: copy_outputs(engine, directory, record, seconds)
                ):
                    return False
            remove_objects(engine, names)
            return True
    except SandboxError as error:
        log.warning("Could not remove %s from its engine: %s", record.identity, error.fact)
        return False


def remove_objects(engine: Engine, names: Names) -> None:
    """Remove the containers and volumes of a sandbox.

    :raises SandboxError: when the engine does not remove one
    """
    for container in (names.container, names.store):
        engine.remove(container)
    for volume in (names.files, names.outputs):
        engine.remove_volume(volume)


def copy_outputs(
    engine: Engine, directory: Path, record: Record, seconds: float | None = None
) -> OutputsCopy:
    """Copy what has changed to the folder of outputs.

    :raises SandboxError: when the engine fails
    :raises ArchiveError, OSError: see ``take_outputs``
    """
    archive = engine.get(Names(record.container_id).container, f"{OUTPUTS}/.")
    return take_outputs(archive, directory, record, seconds)


def sweep_engine(engine: Engine) -> list[str]:
    """Remove what has this user's labels but no state directory any more; return the identities.

    :raises SandboxError: when the engine fails
    :raises StateError: when the state directory cannot be read
    """
    mine = {"state": records.state_id()}
    containers = engine.find_containers(mine)
    volumes = engine.find_volumes(mine)
    known = {path.name for path in records.sandbox_directories()}
    removed = {}
    for thing in (*containers, *volumes):
        labels = thing.get("Labels") or {}
        container_id = str(labels.get(f"{LABEL}sandbox", ""))
        # The state directory is made before the container, and removed after it.
        if container_id and container_id not in known and container_id not in removed:
            remove_objects(engine, Names(container_id))
            removed[container_id] = str(labels.get(f"{LABEL}identity", container_id))
    return list(removed.values())
