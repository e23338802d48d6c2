"""The files of a kernel's outputs at one of its checkpoints, which a rewind leaves as they are.

They are noted when a state is saved, so that a person sees what is not as it was then.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.artifacts.outputs import Bounds, list_outputs
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.folders import Identity, reopen
from gvisor_kernel.host.private_directories import read_file
from gvisor_kernel.kernel.saved_kernel import SavedKernel
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.typed_json import read_json

OUTPUTS, MAX_OUTPUTS = "outputs.json", 32 * 1024 * 1024
"""The file beside an image, and its bytes."""
BOUNDS = Bounds(listed=10_000, seconds=1.0)
"""The outputs that are noted. Clients' messages wait meanwhile."""
MAX_NAMES = 2 * 1024 * 1024
"""Characters of their paths."""
MAX_TOLD = 1000
"""Files of each kind that a rewind tells."""


@dataclass(frozen=True)
class OutputChanges:
    """The files of outputs that are not as they were at a checkpoint; a rewind leaves them alone.

    Paths below the folder, chosen by the kernel, some of each kind. ``more``: there may be others.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    more: bool = False


@dataclass(frozen=True)
class NotedOutputs:
    """Size and modification time of files; ``more``: there are some that are not noted."""

    files: dict[str, tuple[int, float]]
    more: bool = False


def look_at_outputs(directory: Path) -> NotedOutputs:
    """Return the outputs of the sandbox in ``directory`` as they are. Blocks."""
    record = records.read_record(directory)
    if record is None or record.outputs is None or record.outputs_file is None:
        return NotedOutputs({})
    identity, same_boot = Identity(*record.outputs_file), records.is_of_this_boot(record)
    try:
        with reopen(record.outputs, identity, same_boot=same_boot) as folder:
            found = list_outputs(folder, hidden=True, bounds=BOUNDS)
    except (OSError, GvisorKernelError):
        return NotedOutputs({}, more=True)
    files: dict[str, tuple[int, float]] = {}
    length = 0
    for file in found.files:
        length += len(file.path)
        if length > MAX_NAMES:
            return NotedOutputs(files, more=True)
        files[file.path] = (file.size, file.modified)
    return NotedOutputs(files, found.more)


def compare_outputs(saved: SavedKernel) -> tuple[NotedOutputs, NotedOutputs]:
    """Return the outputs as they were at a checkpoint, and as they are."""
    then = NotedOutputs({}, more=True)
    with suppress(OSError, ValueError):
        then = read_json(read_file(saved.place / OUTPUTS, MAX_OUTPUTS), NotedOutputs, MAX_OUTPUTS)
    return then, look_at_outputs(saved.directory)


def find_changes(then: NotedOutputs, now: NotedOutputs, since: float) -> OutputChanges:
    """Return what differs. Where a side is not known wholly, only what certainly differs.

    ``since``: the time of ``then``.
    """
    added = [
        path
        for path, (_, modified) in now.files.items()
        if path not in then.files and (not then.more or modified > since)
    ]
    changed = [path for path, state in now.files.items() if then.files.get(path, state) != state]
    removed = [] if now.more else [path for path in then.files if path not in now.files]
    a, c, r = (tuple(sorted(paths)[:MAX_TOLD]) for paths in (added, changed, removed))
    more = then.more or now.more or max(map(len, (added, changed, removed))) > MAX_TOLD
    return OutputChanges(a, c, r, more)
