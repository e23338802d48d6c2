"""A kernel that is saved in its sandbox's directory. All functions block.

    sandboxes/<id>/  saved/    what the runtime wrote
                     saving/   the same, not complete yet

Such a sandbox goes on to have its record, its log and its transcript, and the same names on the
host. When a kernel is saved, and when it goes on, is decided in ``session``.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.state.records import read_record
from gvisor_kernel.runtimes.state.sweep import remove_sandbox
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.snapshots.snapshot import measure

# by path: below the state directory, whose parents only this user can change

SAVE_SECONDS = 120.0
"""Seconds that the kernel's memory may take to be written. A gigabyte takes one or two."""
MIN_LEFT = 256 * 1024 * 1024
"""Bytes of the disk that stay free."""


@dataclass(frozen=True)
class SavedKernel:
    """A kernel in ``directory``, that of its sandbox, which has ended. ``size``: bytes on disk."""

    directory: Path
    size: int
    saved: float

    @property
    def files(self) -> Path:
        """The directory that a runtime restores from."""
        return self.directory / "saved"

    def discard(self) -> None:
        """Remove what was saved; the directory stays. Never raises."""
        shutil.rmtree(self.files, ignore_errors=True)

    def remove(self) -> None:
        """Remove the directory with all that belongs to the sandbox. Never raises."""
        remove_sandbox(self.directory, read_record(self.directory))


def save(sandbox: SavedSandbox) -> SavedKernel:
    """Save the kernel of ``sandbox``, which goes on, in its directory.

    :raises SnapshotError: when that fails; nothing is left of it then
    """
    directory = sandbox.directory
    used, free = sandbox.memory_used() or 0, shutil.disk_usage(directory).free
    if free < used + MIN_LEFT:
        raise SnapshotError(
            f"The kernel has {describe_size(used)} of memory, and the disk of {directory.parent}"
            f" has {describe_size(free)} left.",
            "free disk space there, or set XDG_STATE_HOME to another place.",
        )
    saving = directory / "saving"
    shutil.rmtree(saving, ignore_errors=True)
    try:
        saving.mkdir(mode=0o700)
        sandbox.checkpoint(saving, SAVE_SECONDS, goes_on=True)
        for path in saving.iterdir():
            path.chmod(0o600)
            _flush(path)
        saved = SavedKernel(directory, measure(saving), time.time())
        shutil.rmtree(saved.files, ignore_errors=True)
        saving.rename(saved.files)
        _flush(directory)
    except OSError as error:
        raise SnapshotError(
            f"The kernel cannot be saved in {directory}: {error.strerror}.",
            "check whether the disk is full or read-only.",
        ) from error
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    sandbox.note_saved(saved.saved)
    return saved


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
