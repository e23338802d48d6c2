"""Ends a sandbox in a Docker engine and removes what it has there: for close, ``kill``, the sweep.

Its outputs are copied out first. What cannot be done now, as when the engine does not answer, is
left for the next try, together with the record.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.config.settings import DEFAULTS
from gvisor_kernel.config.validators import may_be_writable
from gvisor_kernel.errors import SandboxError, StateError
from gvisor_kernel.host.folders import (
    Identity,
    Opened,
    find_identity,
    open_path,
    reopen,
)
from gvisor_kernel.host.owners import make_folder
from gvisor_kernel.runtimes.docker.engine import Engine, EngineNotAnswering, EngineNotFound, connect
from gvisor_kernel.runtimes.docker.files import RECENT_SECONDS, read_list, write_list
from gvisor_kernel.runtimes.docker.outputs import OutputsCopy
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.container import LABEL, Names
from gvisor_kernel.spec.layout import OUTPUTS

log = logging.getLogger(__name__)

COPY_SECONDS = 120.0
"""How long the copy of outputs may take at the end of a sandbox."""
STILL_SECONDS = 10.0
"""How long a container may take to end after it was killed."""
SILENT_SECONDS = 10.0
"""How long an engine that has not answered is not asked again."""
QUICKLY = 0.5
"""Seconds. An engine that fails faster (nothing listens) costs nothing, and is asked again."""
COPIED = "outputs.json"

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


def redirect_outputs(directory: Path, record: Record, folder: str) -> Record:
    """Let a sandbox's outputs be copied to ``folder`` from now on; return the changed record.

    For users who have moved the folder of outputs. ``folder`` has to exist.

    :raises SandboxError: when outputs must not be copied there
    :raises StateError: when the record cannot be written
    """
    hint = "name an existing folder that is neither a home nor part of the system."
    try:
        written = read_written(DEFAULTS)
        with open_path(str(Path(folder).absolute()), written.has) as found:
            if not found.is_folder or not may_be_writable(found.path):
                raise SandboxError(f"Outputs must not be copied to {found.path}.", hint)
            new = replace(
                record,
                outputs=found.path,
                outputs_file=found.identity,
                outputs_parent=find_identity(str(Path(found.path).parent)),
                made_outputs=False,
            )
            with records.locked():
                note_written([found])
                records.write_record(directory, new)
    except OSError as error:
        raise SandboxError(f"Could not open {folder}: {error.strerror}.", hint) from error
    return new


def sync_outputs(directory: Path, record: Record) -> tuple[int, int]:
    """Copy the outputs of a sandbox as they are now; return how many were copied and left out.

    :raises SandboxError: when not everything could be copied
    :raises RuntimeMissing: when the engine cannot be used
    """
    engine = connect(record.engine)
    try:
        copy = copy_outputs(engine, directory, record)
    except (Refused, OSError) as error:
        raise SandboxError(
            f"Not all outputs of {record.container_id} could be copied: {error}.",
            f"check {record.outputs}, and what the kernel has written. To copy to another folder:"
            f" gvisor-kernel sync --to FOLDER {record.container_id}",
        ) from error
    finally:
        engine.close()
    return copy.written, copy.left_out


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


def record_end(directory: Path) -> None:
    """Write into the record that the sandbox has ended, and only its outputs must be copied."""
    with suppress(OSError, StateError), records.locked():
        record = records.read_record(directory)
        if record is not None and not record.ended:
            records.write_record(directory, replace(record, ended=True))


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
    except Refused as error:
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
    :raises Refused, OSError: see ``take_outputs``
    """
    archive = engine.get(Names(record.container_id).container, f"{OUTPUTS}/.")
    return take_outputs(archive, directory, record, seconds)


def take_outputs(
    archive: Iterator[bytes], directory: Path, record: Record, seconds: float | None = None
) -> OutputsCopy:
    """Copy what has changed in an archive of the outputs to their folder.

    :raises Refused: when the archive is malformed, or has too many entries
    :raises OSError: when a file or the folder cannot be written; TimeoutError after ``seconds``
    """
    with reopen_outputs(record) as outputs:
        copied = read_list(directory / COPIED)
        copy = OutputsCopy(outputs, copied, seconds)
        latest = time.time() - RECENT_SECONDS
        try:
            copy.take(archive)
        finally:  # if it took too long, the next try continues from here
            seen = {name: fact for name, fact in copy.seen.items() if fact[1] < latest}
            with suppress(OSError):
                write_list(directory / COPIED, {**copied, **seen})
    if copy.left_out:
        log.warning(
            "%d of the outputs of %s were not copied: special files, or names that are not allowed",
            *(copy.left_out, record.identity),
        )
    return copy


def reopen_outputs(record: Record) -> Opened:
    """Open the folder that the sandbox was started with; make it again if it was removed.

    A kernel, or another user, may have put a link or another folder in its place: nothing is copied
    there.

    :raises OSError: when the folder is another one now, or cannot be opened
    """
    assert record.outputs is not None
    assert record.outputs_file is not None
    same_boot = records.is_of_this_boot(record)
    try:
        return reopen(record.outputs, Identity(*record.outputs_file), same_boot=same_boot)
    except FileNotFoundError:
        parent, name = os.path.split(record.outputs)
        assert record.outputs_parent is not None
        with reopen(parent, Identity(*record.outputs_parent), same_boot=same_boot) as above:
            return make_folder(above, name)


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
