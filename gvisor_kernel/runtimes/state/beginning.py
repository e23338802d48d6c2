"""The beginning of a sandbox: its folders, its record, and how it is undone.

It is the same for every runtime, and comes before anything is made there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from gvisor_kernel.config.installed import check_installed
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import real_path
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.host.processes import ProcessId
from gvisor_kernel.runtimes.base import KernelView, LaunchRequest, MountView
from gvisor_kernel.runtimes.hints import find_hint
from gvisor_kernel.runtimes.mounts.folders import Inputs, open_inputs
from gvisor_kernel.runtimes.mounts.outputs import open_outputs
from gvisor_kernel.runtimes.mounts.plan import Outputs, Places
from gvisor_kernel.runtimes.mounts.written_folders import note_written
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.sweep import (
    find_orphans,
    finish_removals,
    remove_in_background,
    remove_sandbox,
    retire_sandbox,
)
from gvisor_kernel.spec.identity import Identity
from gvisor_kernel.spec.layout import OUTPUTS, UPLOADS, WORKSPACE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """A start's request, and what was made for it on this machine. It is handed on as a whole."""

    spec: SandboxSpec
    request: LaunchRequest
    identity: Identity
    inputs: Inputs
    outputs: Outputs
    places: Places
    record: Record
    held: ExitStack
    """Closes the folders of ``inputs`` after the start, and whatever else is entered."""

    def find_record(self) -> Record:
        """Return the record as it is now."""
        return records.read_record(self.places.directory) or self.record

    @property
    def workdir(self) -> str:
        """The kernel's working directory in the sandbox: where the notebook's folder is shown."""
        return f"{WORKSPACE}/{self.inputs.within}" if self.inputs.within else WORKSPACE

    def make_view(self, environment: Mapping[str, str], python: str) -> KernelView:
        """Return what a kernel in this sandbox is given."""
        shown = ((self.inputs.uploads, UPLOADS, True), (self.outputs.folder, OUTPUTS, False))
        return KernelView(
            mounts=tuple(
                MountView(folder.path, target, read_only, folder.identity)
                for folder, target, read_only in shown
                if folder is not None
            ),
            environment=environment,
            python=python,
            workdir=self.workdir,
            transcripts=self.places.transcripts if self.spec.transcripts else None,
        )


def first_record(
    spec: SandboxSpec,
    request: LaunchRequest,
    identity: Identity,
    outputs: Outputs,
    owner: ProcessId,
    **facts: Any,
) -> Record:
    """Return the record of a sandbox that is about to be made, with further fields ``facts``."""
    return Record(
        identity=str(identity),
        container_id=identity.container_id,
        kernel_name=request.kernel_name,
        kernel_id=request.kernel_id,
        folder=str(request.folder),
        created=time.time(),
        memory_limit=spec.memory_limit,
        owner=owner,
        machine=records.this_machine(),
        outputs=outputs.path,
        outputs_file=None if outputs.folder is None else outputs.folder.identity,
        outputs_parent=outputs.parent,
        made_outputs=outputs.made,
        lent_by=outputs.lent_by,
        spare=request.spare,
        environment=None if spec.packages is None else spec.packages.environment,
        **facts,
    )


def note_outputs(inputs: Inputs, outputs: Outputs) -> Outputs:
    """Note the folder of outputs before it is written."""
    if outputs.folder is not None:
        note_written([outputs.folder])
    return outputs


@contextmanager
def begin(
    spec: SandboxSpec,
    request: LaunchRequest,
    identity: Identity,
    facts: Mapping[str, Any],
    *,
    shown: SandboxSpec | None = None,
    prepare: Callable[[Inputs, Outputs], Outputs] = note_outputs,
) -> Iterator[Beginning]:
    """Open the folders, write the record, and yield both. Undo everything after an error.

    ``facts``: further fields of the record, among them ``runtime``. ``shown``: the settings without
    folders that the engine has itself. ``prepare`` is called before the record is written; it notes
    what the sandbox may write.

    :raises LaunchError: when another version of this package is installed by now; also for an
        OSError of the caller's block
    :raises SettingError: when a folder cannot be shown
    :raises StateError: when the state directory cannot be used
    """
    check_installed()
    owner = records.this_process()
    # Input folders are closed before anything is undone: undoing needs descriptors, too.
    with ExitStack() as kept, ExitStack() as held:
        inputs = open_inputs(shown or spec, request, held)
        try:
            with records.locked():
                made = request.saved_in or records.make_directory(identity.container_id)
                places, last = Places(made), None
                if request.saved_in is not None:
                    last = records.read_record(made)
                try:
                    aside = places.directory if request.spare else None
                    outputs = open_outputs(shown or spec, inputs, kept, aside=aside)
                    outputs = prepare(inputs, outputs)
                    record = first_record(spec, request, identity, outputs, owner, **facts)
                    if last is not None:
                        made_outputs = last.made_outputs or record.made_outputs
                        stays = {
                            it: getattr(last, it) for it in ("created", "saved", "branch", "keeper")
                        }
                        record = replace(record, made_outputs=made_outputs, **stays)
                    records.write_record(places.directory, record)
                except BaseException:
                    held.close()
                    if last is None:
                        records.remove_directory(places.directory)
                    raise
            lifeline.hold(owner, record.runtime)
            begun = Beginning(spec, request, identity, inputs, outputs, places, record, held)
            try:
                # by path: below the state directory, whose parents only this user can change
                places.transcripts.mkdir(mode=0o755, exist_ok=last is not None)
                yield begun
            except BaseException:
                held.close()
                remove = remove_sandbox if last is None else retire_sandbox
                remove(places.directory, begun.find_record(), outputs.folder)
                lifeline.release()
                raise
        except OSError as error:
            raise LaunchError(
                f"The sandbox could not be prepared: {error}.", find_hint(str(error))
            ) from error


def predict_outputs(spec: SandboxSpec, request: LaunchRequest) -> str | None:
    """Return the path of outputs that the record of this start will have. Not to be opened."""
    if spec.outputs is None:
        return None
    return real_path(str(request.folder / spec.outputs))


Place = TypeVar("Place", bound=Hashable)


class FirstSweep(Generic[Place]):
    """Removes what dead owners left in an engine, before this process's first start there.

    ``places``: the engines that it was done for.
    """

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        # no timeout: held for the first sweep of a process; each removal has a timeout
        self._lock = threading.Lock()
        self.places: set[Place] = set()

    def run(
        self,
        place: Place,
        sweep_engine: Callable[[], list[str]] = list,
        outputs: str | None = None,
    ) -> None:
        """Sweep the engine ``place`` at its first start, and finish this process's own removals.

        Sandboxes are removed in the background: outputs may have to be copied out first, or their
        machine may not answer. Those whose outputs are copied to the folder ``outputs`` are waited
        for, up to OUTPUTS_SECONDS.
        ``sweep_engine`` removes there what has no directory any more, and returns the identities.
        """
        with self._lock:
            first = place not in self.places
            self.places.add(place)
        try:
            if first:
                for directory, record in find_orphans(self._runtime):
                    if record is None:
                        remove_sandbox(directory, None)
                    else:
                        remove_in_background(directory, record)
                for identity in sweep_engine():
                    log.info("Removed %s, whose owner has died", identity)
        except GvisorKernelError as error:
            log.warning("%s", error)
        finish_removals(outputs)
