"""Files by copy, on the host: what is sent to a node before a start, and how outputs come back.

They come back by a short command of their own, which any process of the user can run: for ``sync``,
at the end, and after the server or the connection is gone. What a node sends is as hostile as the
kernel that has written it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gvisor_kernel.archive.archive_error import ArchiveError
from gvisor_kernel.config.mounts import check_read_only
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import SandboxError, StateError
from gvisor_kernel.host.folders import Opened
from gvisor_kernel.runtimes.copies import copied_outputs
from gvisor_kernel.runtimes.copies.contents import Contents, list_files, write_list
from gvisor_kernel.runtimes.copies.copied_outputs import COPIED, record_end, take_outputs
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy
from gvisor_kernel.runtimes.copies.sent_files import add_inputs
from gvisor_kernel.runtimes.mounts.covers import find_jupyter_covers, identify
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.nodes.fetch import SILENT_SECONDS, Fetch
from gvisor_kernel.runtimes.nodes.settings import find_slurm, find_ssh
from gvisor_kernel.runtimes.nodes.variables import client_variables
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.spec.layout import mount_part

log = logging.getLogger(__name__)

MAX_PATH = 4096
COPY_SECONDS = 120.0
"""Seconds that the copy of outputs may take at the end of a sandbox."""


def copies_files(spec: SandboxSpec) -> bool:
    """Return whether files are copied to the node and back."""
    return "copy" in (find_slurm(spec).files, find_ssh(spec).files)


# -- before the start ------------------------------------------------------------------------------


def pack_files(begun: Beginning) -> tuple[SandboxSpec, Contents]:
    """Return what is sent to a node, and the settings with paths in it.

    :raises LaunchError: when a folder is too large
    :raises SettingError: when a mount cannot be copied
    :raises OSError: when a folder cannot be read, or the list of outputs not be written
    """
    spec, inputs, outputs = begun.spec, begun.inputs, begun.outputs
    jupyters = find_jupyter_covers(())
    contents = Contents(covered=identify(jupyters))
    check_read_only(spec.mounts, "files are copied to the node, and are not written back")
    add_inputs(contents, inputs, jupyters)
    contents.measure(spec.disk_limit)
    if outputs.folder is not None:
        _add_outputs(contents, outputs.folder, begun.places, spec.disk_limit)
    asked = replace(
        spec,
        uploads=None if inputs.uploads is None else "uploads",
        outputs=None if outputs.folder is None else "outputs",
        skills="skills" if inputs.skills else None,
        mounts=tuple(replace(mount, source=mount_part(i)) for i, mount in enumerate(spec.mounts)),
    )
    return asked, contents


def _add_outputs(contents: Contents, outputs: Opened, places: Places, limit: int) -> None:
    part = ("outputs", outputs, "outputs")
    Contents(folders=[part]).measure(limit)
    write_list(places.directory / COPIED, list_files(outputs))
    contents.folders.append(part)


def note_copy(directory: Path, record: Record, ready: Mapping[str, Any], sent: Contents) -> None:
    """Note in the record where a node says that its copy is, and tell how many files it lacks.
    Never raises."""
    path, left_out = ready.get("copy"), ready.get("left_out")
    if isinstance(path, str) and path.isprintable():
        change_record(directory, record, copy=path[:MAX_PATH])
    lacks = sent.left_out + (left_out if isinstance(left_out, int) and left_out > 0 else 0)
    if lacks:
        log.warning(
            "%d files of %s were not copied to the node: special or unreadable files, or names that"
            " are not allowed",
            *(lacks, record.folder),
        )


# -- back to the host ------------------------------------------------------------------------------


def copy_outputs(
    directory: Path,
    record: Record,
    argv: Sequence[str],
    *,
    last: bool,
    seconds: float | None = None,
) -> OutputsCopy | None:
    """Copy what has changed to the folder of outputs; return None if the node has no copy.

    ``last``: the sandbox is ended if it still runs, and the node removes its copy then.

    :raises SandboxError: when the node does not send them
    :raises ArchiveError, OSError: see ``take_outputs``
    """
    # The copy's own limit is reached first: then the next try continues from there.
    limit = None if seconds is None else seconds + SILENT_SECONDS
    with Fetch(argv, client_variables(record.runtime, os.environ), limit) as fetch:
        if not fetch.ask("last" if last else "now", record.container_id):
            return None
        try:
            copy = take_outputs(fetch.pieces(), directory, record, seconds, lambda: fetch.left_out)
        except ArchiveError:
            if last:  # it would be refused again
                fetch.confirm()
            raise
        if last:
            fetch.confirm()
        return copy


def save_outputs(
    directory: Path, record: Record, seconds: float | None, *, in_job: bool = False
) -> bool:
    """Fetch the outputs for the last time; return False if that is to be tried again. Never raises.

    ``in_job``: the job of the sandbox still runs.
    """
    record_end(directory)
    argv = record.step_argv if in_job and record.step_argv else record.fetch_argv
    seconds = COPY_SECONDS if seconds is None else seconds
    try:
        found = copy_outputs(directory, record, argv, last=True, seconds=seconds)
        if found is None and record.copy:
            log.warning(
                "The outputs of %s since the last `gvisor-kernel sync` are lost: %s has no copy of"
                " them any more",
                *(record.identity, record.node),
            )
    except ArchiveError as error:
        log.warning("Not all outputs of %s could be copied: %s", record.identity, error)
    except (OSError, SandboxError) as error:
        log.warning(
            "The outputs of %s are still on %s (%s): %s. It keeps them for a week. To try again:"
            " gvisor-kernel sync %s. To copy them to another folder: gvisor-kernel sync --to"
            " FOLDER %s",
            *(record.identity, record.node, record.copy or "in its state folder"),
            *(_describe(error), record.container_id, record.container_id),
        )
        return False
    change_record(directory, record, fetch_argv=(), step_argv=())
    return True


def sync_outputs(directory: Path, record: Record, folder: str | None = None) -> tuple[int, int]:
    """Copy the outputs as they are now; see ``copied_outputs.sync_outputs``.

    :raises SandboxError: when not everything could be copied
    :raises StateError: when the record cannot be written
    """

    def copy(directory: Path, record: Record) -> OutputsCopy:
        argv = record.fetch_argv if record.ended or not record.step_argv else record.step_argv
        found = copy_outputs(directory, record, argv, last=False)
        if found is None:
            raise SandboxError(
                f"{record.node} has no copy of the outputs of {record.container_id}."
            )
        return found

    return copied_outputs.sync_outputs(copy, directory, record, folder)


def change_record(directory: Path, record: Record, **facts: Any) -> Record:
    """Change ``facts`` of a record, and return it. Never raises."""
    with suppress(OSError, StateError), records.locked():
        record = replace(records.read_record(directory) or record, **facts)
        records.write_record(directory, record)
    return record


def _describe(error: Exception) -> str:
    if not isinstance(error, SandboxError):
        return str(error)
    last = error.detail.splitlines()[-1:]
    return " ".join([error.fact.rstrip("."), *(f"({line[:200]})" for line in last)])
