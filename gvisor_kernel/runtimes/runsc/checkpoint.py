"""Writing the image of a running sandbox of runsc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.host import commands
from gvisor_kernel.runtimes.runsc.command_line import Runsc, checkpoint_argv
from gvisor_kernel.runtimes.runsc.starting import is_readable

END_SECONDS = 5.0
WORDS_BYTES = 2000


def write_image(
    runsc: Runsc, root: Path, container_id: str, exit_fd: int, directory: Path, seconds: float
) -> None:
    """Of the sandbox ``container_id`` below ``root``; see ``Sandbox.checkpoint``.

    ``exit_fd``: the pidfd of its sentry, which ends as the image is written.
    """
    argv = checkpoint_argv(
        runsc,
        root=str(root),
        container_id=container_id,
        image=str(directory),
        direct=can_write_directly(directory),
    )
    try:
        (done,) = commands.run(
            argv, seconds=seconds, most=WORDS_BYTES, cwd=root.parent, umask=0o077
        )
    except OSError as error:
        raise SnapshotError(f"{argv[0]} cannot be run: {error.strerror}.") from error
    if done.status is None:
        raise SnapshotError(f"The image of a kernel was not written within {seconds:g} s.")
    if done.status != 0:
        raise SnapshotError(
            f"The image of a kernel could not be written: runsc ended with status {done.status}.",
            "kernels start without one, more slowly; see whether the disk is full.",
            done.words,
        )
    if not is_readable(exit_fd, END_SECONDS):
        raise SnapshotError("The sandbox went on although its image was written.")


def can_write_directly(directory: Path) -> bool:
    """Whether the file system of ``directory`` takes O_DIRECT, as not all do."""
    probe = directory / "probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink()
    return True
