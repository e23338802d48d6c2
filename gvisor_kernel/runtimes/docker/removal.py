"""Ends a sandbox in a Docker engine and removes what it has there: for close, ``kill``, the sweep.

Its outputs are copied out first. What cannot be done now, as when the engine does not answer, is
left for the next try, together with the record.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import ArchiveError, SandboxError
from gvisor_kernel.runtimes.copies.outputs import (
    OutputsCopy,
    record_end,
    sync_copied_outputs,
    take_outputs,
)
from gvisor_kernel.runtimes.docker.container import LABEL, Names
from gvisor_kernel.runtimes.docker.engine import Engine, EngineNotFound, connect
from gvisor_kernel.runtimes.docker.troubles import EngineNotAnswering
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.layout import OUTPUTS

log = logging.getLogger(__name__)

COPY_SECONDS = 120.0
"""Seconds that the copy of outputs may take at the end of a sandbox."""
STILL_SECONDS = 10.0
"""Seconds that a container may take to end after it was killed."""
SILENT_SECONDS = 10.0
"""Seconds that an engine that has not answered is not asked again."""
QUICKLY = 0.5
"""Seconds. An engine that fails faster (nothing listens) costs nothing, and is asked again."""

_silent: dict[str, float] = {}


def reach(address: str | None) -> Engine:
    """Connect to the engine, unless it has not answered just now.

    :raises RuntimeMissing: when it cannot be used
    :raises EngineNotAnswering: when it does not answer
    """
    key = address or ""
    since = time.monotonic() - _silent.get(key, float("-inf"))
    if since < SILENT_SECONDS:
        raise EngineNotAnswering(f"The Docker engine at {key} did not answer {since:.0f} s ago.")
    asked = time.monotonic()
    try:
        return connect(address)
    except EngineNotAnswering:
        if time.monotonic() - asked > QUICKLY:
            _silent[key] = time.monotonic()
        raise


def end_container(record: Record) -> None:
    """End the sandbox; its owner removes the rest.

    :raises SandboxError: when the engine cannot end it
    """
    engine = connect(record.engine)
    try:
        engine.kill(Names(record.container_id).container)
    finally:
        engine.close()


def sync_outputs(directory: Path, record: Record, folder: str | None = None) -> tuple[int, int]:
    """Copy the outputs of a sandbox as they are now; see ``sync_copied_outputs``.

    :raises SandboxError: when not everything could be copied
    :raises RuntimeMissing: when the engine cannot be used
    :raises StateError: when the record cannot be written
    """

    def copy(directory: Path, record: Record) -> OutputsCopy:
        engine = connect(record.engine)
        try:
            return copy_outputs(engine, directory, record)
        finally:
            engine.close()

    return sync_copied_outputs(copy, directory, record, folder)


def remove_from_engine(directory: Path, record: Record, seconds: float | None) -> bool:
    """End a sandbox and remove what it has in its engine; return whether nothing is left.

    ``seconds``: how long the copy of its outputs may take; None: COPY_SECONDS. Never raises.
    """
    seconds = COPY_SECONDS if seconds is None else seconds
    record_end(directory)
    try:
        engine = reach(record.engine)
    except SandboxError as error:
        log.warning("Could not remove %s from its engine: %s", record.identity, error.fact)
        return False
    names = Names(record.container_id)
    try:
        engine.kill(names.container)
        with suppress(EngineNotFound):
            engine.wait(names.container, STILL_SECONDS)
        if not save_outputs(engine, directory, record, seconds):
            return False
        remove_objects(engine, names)
        return True
    except SandboxError as error:
        log.warning("Could not remove %s from its engine: %s", record.identity, error.fact)
        return False
    finally:
        engine.close()


def remove_objects(engine: Engine, names: Names) -> None:
    """Remove the containers and volumes of a sandbox.

    :raises SandboxError: when the engine does not remove one
    """
    for container in (names.container, names.store):
        engine.remove(container)
    for volume in (names.files, names.outputs):
        engine.remove_volume(volume)


def save_outputs(engine: Engine, directory: Path, record: Record, seconds: float) -> bool:
    """Copy the outputs out; return False if that is to be tried again, as when the disk is full.

    :raises SandboxError: when the engine fails
    """
    if record.outputs is None or not record.ready:
        return True
    try:
        copy_outputs(engine, directory, record, seconds)
    except EngineNotFound:
        return True
    except ArchiveError as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
        return True
    except (OSError, TimeoutError) as error:
        log.warning(
            "Could not copy the outputs of %s yet: %s. To try again: gvisor-kernel sync %s. To copy"
            " them to another folder: gvisor-kernel sync --to FOLDER %s",
            *(record.identity, error, record.container_id, record.container_id),
        )
        return False
    return True


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
