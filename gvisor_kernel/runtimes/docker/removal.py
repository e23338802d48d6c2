"""Ending and removing what a sandbox has in a Docker engine: for close, ``kill``, the sweep.

First its outputs are copied out. What cannot be done now, as when the engine does not answer, is
left, with the record, for the next time.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.archive.refusal import Refused
from gvisor_kernel.config.settings import DEFAULTS
from gvisor_kernel.config.validators import is_writable_allowed
from gvisor_kernel.errors import SandboxError, StateError
from gvisor_kernel.host.folders import (
    Identity,
    Opened,
    find_identity,
    make_folder,
    open_path,
    reopen,
)
from gvisor_kernel.runtimes.docker.engine import Engine, EngineGone, NotThere, connect
from gvisor_kernel.runtimes.docker.files import RECENT_SECONDS, read_list, write_list
from gvisor_kernel.runtimes.docker.outputs import Landing
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.container import LABEL, Names
from gvisor_kernel.spec.layout import OUTPUTS

log = logging.getLogger(__name__)

COPY_SECONDS = 120.0
"""How long the end of a sandbox may take to copy its outputs."""
STILL_SECONDS = 10.0
"""How long a container may take to end that was killed."""
SILENT_SECONDS = 10.0
"""An engine that was waited for in vain is not asked again so soon, whatever it has of ours."""
QUICKLY = 0.5
"""Seconds. To hear that nobody is there costs nothing, and may be done again."""
COPIED = "outputs.json"

_silent: dict[str, float] = {}


def reach(address: str | None) -> Engine:
    """The engine, unless it did not answer just now. Raises RuntimeMissing."""
    key = address or ""
    since = time.monotonic() - _silent.get(key, float("-inf"))
    if since < SILENT_SECONDS:
        raise EngineGone(f"The Docker engine at {key} did not answer {since:.0f} s ago.")
    asked = time.monotonic()
    try:
        return connect(address)
    except EngineGone:
        if time.monotonic() - asked > QUICKLY:
            _silent[key] = time.monotonic()
        raise


def end_container(record: Record) -> None:
    """End the sandbox, and leave the rest to its owner. Raises SandboxError."""
    engine = connect(record.engine)
    try:
        engine.kill(Names(record.container_id).container)
    finally:
        engine.close()


def redirect_outputs(directory: Path, record: Record, folder: str) -> Record:
    """Let a sandbox's outputs go to ``folder`` from here on, which exists; the record of that.

    For a person whose folder of outputs was moved. Raises SandboxError, StateError.
    """
    hint = "name a folder that exists, that is no home, and that is none of the system."
    try:
        written = read_written(DEFAULTS)
        with open_path(str(Path(folder).absolute()), written.has) as found:
            if not found.is_folder or not is_writable_allowed(found.path):
                raise SandboxError(f"Outputs are not copied to {found.path}.", hint)
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
        raise SandboxError(f"{folder} cannot be opened: {error.strerror}.", hint) from error
    return new


def sync_outputs(directory: Path, record: Record) -> tuple[int, int]:
    """Copy the outputs of a sandbox as they are now: how many were copied, how many left out.

    Raises GvisorKernelError.
    """
    engine = connect(record.engine)
    try:
        landing = copy_outputs(engine, directory, record)
    except (Refused, OSError) as error:
        raise SandboxError(
            f"Not all outputs of {record.container_id} could be copied: {error}.",
            f"see what is wrong with {record.outputs}, or with what the kernel wrote. To another"
            f" folder: gvisor-kernel sync --to FOLDER {record.container_id}",
        ) from error
    finally:
        engine.close()
    return landing.written, landing.left_out


def remove_parts(directory: Path, record: Record, seconds: float) -> bool:
    """End a sandbox and remove all that it has in its engine. Never raises; False: not all.

    ``seconds``: how long its outputs may take to be copied.
    """
    _note_end(directory)
    try:
        engine = reach(record.engine)
    except SandboxError as error:
        log.warning("%s is left in its engine: %s", record.identity, error.fact)
        return False
    names = Names(record.container_id)
    try:
        engine.kill(names.container)
        with suppress(NotThere):
            engine.wait(names.container, STILL_SECONDS)
        if not save_outputs(engine, directory, record, seconds):
            return False
        remove_names(engine, names)
        return True
    except SandboxError as error:
        log.warning("%s is left in its engine: %s", record.identity, error.fact)
        return False
    finally:
        engine.close()


def _note_end(directory: Path) -> None:
    """Write into the record that the sandbox has ended, and is only waited for its outputs."""
    with suppress(OSError, StateError), records.locked():
        record = records.read_record(directory)
        if record is not None and not record.ended:
            records.write_record(directory, replace(record, ended=True))


def remove_names(engine: Engine, names: Names) -> None:
    """Raises SandboxError."""
    for container in (names.container, names.store):
        engine.remove(container)
    for volume in (names.files, names.outputs):
        engine.remove_volume(volume)


def save_outputs(engine: Engine, directory: Path, record: Record, seconds: float) -> bool:
    """Copy out; whether all is done that can be done. Raises SandboxError for the engine's part.

    False: the host's disk is full, for one, and it is to be tried again.
    """
    if record.outputs is None or not record.ready:
        return True
    try:
        copy_outputs(engine, directory, record, seconds)
    except NotThere:
        return True
    except Refused as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
        return True
    except (OSError, TimeoutError) as error:
        log.warning(
            "The outputs of %s are not copied yet: %s. Try again: gvisor-kernel sync %s; or copy"
            " them to another folder: gvisor-kernel sync --to FOLDER %s",
            *(record.identity, error, record.container_id, record.container_id),
        )
        return False
    return True


def copy_outputs(
    engine: Engine, directory: Path, record: Record, seconds: float | None = None
) -> Landing:
    """Copy what changed to the folder of outputs. Raises SandboxError, Refused, OSError."""
    with open_outputs_again(record) as outputs:
        copied = read_list(directory / COPIED)
        landing = Landing(outputs, copied, seconds)
        latest = time.time() - RECENT_SECONDS
        try:
            landing.take(engine.get(Names(record.container_id).container, f"{OUTPUTS}/."))
        finally:  # where it took too long, the next try goes on from here
            seen = {name: fact for name, fact in landing.seen.items() if fact[1] < latest}
            with suppress(OSError):
                write_list(directory / COPIED, {**copied, **seen})
    if landing.left_out:
        log.warning(
            "%d of the outputs of %s were left out: odd names, or neither files, folders nor links",
            *(landing.left_out, record.identity),
        )
    return landing


def open_outputs_again(record: Record) -> Opened:
    """The folder that the sandbox was started with, made anew where it is gone.

    A kernel, or another user, may have put a link or another folder in its place: nothing is
    copied there. Raises OSError.
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
    """Remove what has our labels and no state directory any more; the identities.

    Raises SandboxError, StateError.
    """
    mine = {"state": records.state_id()}
    containers = engine.find_containers(mine)
    volumes = engine.find_volumes(mine)
    known = {path.name for path in records.sandbox_directories()}
    removed = {}
    for thing in (*containers, *volumes):
        labels = thing.get("Labels") or {}
        container_id = str(labels.get(f"{LABEL}sandbox", ""))
        # Its directory is made before it is, and goes after it.
        if container_id and container_id not in known and container_id not in removed:
            remove_names(engine, Names(container_id))
            removed[container_id] = str(labels.get(f"{LABEL}identity", container_id))
    return list(removed.values())
