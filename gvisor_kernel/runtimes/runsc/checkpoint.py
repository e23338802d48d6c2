"""Saves a running sandbox of runsc as a snapshot."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host import commands
from gvisor_kernel.runtimes.runsc.command_line import Runsc, checkpoint_argv
from gvisor_kernel.runtimes.runsc.starting import is_readable

END_SECONDS = 5.0
"""How long the sentry may take to end after runsc has said that the snapshot is written."""
WORDS_BYTES = 2000
"""Bytes of runsc's output that are kept for an error."""


def save_snapshot(
    runsc: Runsc, root: Path, container_id: str, exit_fd: int, directory: Path, seconds: float
) -> None:
    """Save the sandbox ``container_id``, whose runsc state is in ``root``; see
    ``Sandbox.checkpoint``.

    ``exit_fd`` is the pidfd of its sentry, which ends when the snapshot is written.

    :raises SnapshotError: when it could not be written within ``seconds``
    """
    argv = checkpoint_argv(
        runsc,
        root=str(root),
        container_id=container_id,
        snapshot=str(directory),
        direct=can_write_directly(directory),
    )
    try:
        (done,) = commands.run(
            argv, seconds=seconds, max_bytes=WORDS_BYTES, cwd=root.parent, umask=0o077
        )
    except OSError as error:
        raise SnapshotError(f"Could not run {argv[0]}: {error.strerror}.") from error
    if done.status is None:
        raise SnapshotError(f"The snapshot was not written within {seconds:g} s.")
    if done.status != 0:
        raise SnapshotError(
            f"The snapshot could not be written: runsc ended with status {done.status}.",
            "kernels start without a snapshot, more slowly; check whether the disk is full.",
            done.output,
        )
    if not is_readable(exit_fd, END_SECONDS):
        raise SnapshotError("The sandbox did not end after its snapshot was written.")


def can_write_directly(directory: Path) -> bool:
    """Return whether the file system of ``directory`` supports O_DIRECT."""
    probe = directory / "probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink()
    return True
