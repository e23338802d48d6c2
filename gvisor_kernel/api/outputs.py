"""Files that sandboxes have left in a folder of the host, for a program that shows or serves them.

A sandbox may leave a link to any file of the host there. Neither function follows one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gvisor_kernel.artifacts import outputs
from gvisor_kernel.artifacts.outputs import Listing
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import OutputsError
from gvisor_kernel.host.folders import Opened, open_path
from gvisor_kernel.runtimes.mounts.written_folders import read_written


def list_outputs(folder: str | Path) -> Listing:
    """Return what lies in a folder of outputs: files, and apart from them links and special files.

    :raises OutputsError: when the folder cannot be read
    """
    try:
        with _open(folder) as root:
            return outputs.list_outputs(root, hidden=True)
    except OSError as error:
        raise OutputsError(f"The folder {folder} cannot be read: {error.strerror}.") from error


@contextmanager
def open_output(folder: str | Path, path: str) -> Iterator[IO[bytes]]:
    """Open the regular file at ``path`` in a folder of outputs, for reading.

    ``path`` may come from anybody: it never leads out of the folder.

    :raises OutputsError: when there is none, or a part of the path is a link
    """
    try:
        root = _open(folder)
    except OSError as error:
        raise OutputsError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    with root, outputs.open_output(root, path, hidden=True) as (file, _):
        yield file


def _open(folder: str | Path) -> Opened:
    path = str(Path(folder).expanduser().absolute())
    return open_path(path, read_written(SandboxSpec()).has)
