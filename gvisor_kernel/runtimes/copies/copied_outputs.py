"""Outputs that are copied: of a sandbox whose engine shows it no folder of this machine.

Which folder they are copied to, what has been copied already, and what is left to be copied when a
sandbox has ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gvisor_kernel.archive.archive_error import ArchiveError
from gvisor_kernel.config.settings import DEFAULTS
from gvisor_kernel.config.validators import may_be_writable
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.host.folders import Identity, Opened, find_identity, open_path, reopen
from gvisor_kernel.host.owners import make_folder, restore_access
from gvisor_kernel.runtimes.copies.contents import RECENT_SECONDS, read_list, write_list
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy
from gvisor_kernel.runtimes.mounts.written_folders import note_written, read_written
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record

log = logging.getLogger(__name__)

COPIED = "outputs.json"
"""The file of a sandbox's directory that lists what was copied."""


def sync_outputs(
    copy: Callable[[Path, Record], OutputsCopy],
    directory: Path,
    record: Record,
    folder: str | None = None,
) -> tuple[int, int]:
    """Copy the outputs of a sandbox as they are now; return how many were copied and left out.

    ``copy`` gets them from the engine, and calls ``take_outputs``. They go into ``folder`` from now
    on, if that is given.

    :raises SandboxError: when not everything could be copied, or not to ``folder``
    :raises StateError: when the record cannot be written
    """
    if folder is not None:
        record = redirect_outputs(directory, record, folder)
    try:
        done = copy(directory, record)
    except (ArchiveError, OSError) as error:
        raise SandboxError(
            f"Not all outputs of {record.container_id} could be copied: {error}.",
            f"check {record.outputs}, and what the kernel has written. To copy to another folder:"
            f" gvisor-kernel sync --to FOLDER {record.container_id}",
        ) from error
    return done.written, done.left_out


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
            written.ensure_access(found)
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


def record_end(directory: Path) -> None:
    """Write into the record that the sandbox has ended, and only its outputs must be copied."""
    record = records.read_record(directory)
    if record is not None and not record.ended:
        records.note_facts(directory, record, ended=True)


def take_outputs(
    archive: Iterator[bytes],
    directory: Path,
    record: Record,
    seconds: float | None = None,
    count_unsent: Callable[[], int] = lambda: 0,
) -> OutputsCopy:
    """Copy what has changed in an archive of the outputs to their folder.

    ``count_unsent``: asked after the archive how many files are not in it.

    :raises ArchiveError: when the archive is malformed, or has too many entries
    :raises OSError: when a file or the folder cannot be written; TimeoutError after ``seconds``
    """
    with reopen_outputs(record) as outputs:
        restore_access(outputs)
        copied = read_list(directory / COPIED)
        copy = OutputsCopy(outputs, copied, seconds)
        latest = time.time() - RECENT_SECONDS
        try:
            copy.take(archive)
        finally:  # if it took too long, the next try continues from here
            seen = {name: fact for name, fact in copy.seen.items() if fact[1] < latest}
            with suppress(OSError):
                write_list(directory / COPIED, {**copied, **seen})
    copy.left_out += count_unsent()
    if copy.left_out:
        log.warning(
            "%d of the outputs of %s were not copied: special or unreadable files, or names that"
            " are not allowed",
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
