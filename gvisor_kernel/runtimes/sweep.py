"""Removing a sandbox, wholly, by what its record says: for close, for ``kill``, for the sweep."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.errors import StateError
from gvisor_kernel.runtimes import cgroups, processes, state
from gvisor_kernel.runtimes.state import Record

log = logging.getLogger(__name__)

END_SECONDS = 5.0
"""A killed process that is not gone after this is stuck in the host's kernel."""


def root_argument(directory: Path) -> str:
    """What stands in the argument list of every process of the sandbox in ``directory``."""
    return f"--root={directory / 'runsc'}"


def kill_sandbox(directory: Path, groups: Sequence[Path]) -> list[int]:
    """SIGKILL every process of a sandbox; the pids that got it. Does not wait, never raises."""
    killed = list(cgroups.kill_cgroup(groups))
    with suppress(OSError):
        killed += processes.kill_with_argument(root_argument(directory))
    return killed


def end_sandbox(directory: Path, groups: Sequence[Path]) -> bool:
    """Kill and wait until nothing is left that could be killed. Bounded; never raises."""
    deadline = time.monotonic() + END_SECONDS
    while killed := kill_sandbox(directory, groups):
        if not processes.wait_until_gone(killed, deadline):
            log.warning("Processes of %s do not end: %s", directory.name, killed)
            return False
    if not cgroups.remove_cgroup(groups, deadline):
        log.warning("The cgroup of %s cannot be removed", directory.name)
        return False
    return True


def remove_sandbox(directory: Path, record: Record | None) -> bool:
    """End a sandbox and remove all that it had. Never raises; False leaves it to the next sweep."""
    groups = [Path(group) for group in record.cgroups] if record is not None else []
    if not end_sandbox(directory, groups):
        return False
    try:
        with state.locked():
            if record is not None and record.made_outputs and record.outputs is not None:
                _remove_outputs(Path(record.outputs), directory)
            state.remove_directory(directory)
    except StateError as error:
        log.warning("%s", error)
        return False
    return not directory.exists()


def _remove_outputs(outputs: Path, directory: Path) -> None:
    """Remove an outputs folder that we made, unless there is something in it or it is in use."""
    for other, record in state.find_sandboxes():
        if other != directory and record.outputs == str(outputs):
            # Whoever closes last removes it.
            if not record.made_outputs:
                state.write_record(other, replace(record, made_outputs=True))
            return
    with suppress(OSError):
        outputs.rmdir()


def sweep_orphans() -> list[str]:
    """Remove the sandboxes of this user whose owner is gone; their identities. Raises StateError.

    A directory without a record was left by a crash while it was made or removed.
    """
    orphans: list[tuple[Path, Record | None]] = []
    with state.locked():
        for directory in state.sandbox_directories():
            record = state.read_record(directory)
            if record is None or state.is_orphan(record):
                orphans.append((directory, record))
    return [
        record.identity if record is not None else directory.name
        for directory, record in orphans
        if remove_sandbox(directory, record)
    ]
