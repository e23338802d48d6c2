"""Images of saved kernels, on the host: how they come from a node, and go to one.

The host keeps them, beside all others: a node may be gone when its kernel is wanted again, and a
queue gives another one. What a node sends is as hostile as the kernel that it has saved.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gvisor_kernel.errors import ArchiveError, SandboxError, SnapshotError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.copies.outputs import OutputsCopy
from gvisor_kernel.runtimes.nodes.copies import Fetch
from gvisor_kernel.runtimes.nodes.orders import write_chunks
from gvisor_kernel.runtimes.state.saved import flush

COPIED = SnapshotError(
    "The kernel's files were copied to its node, and it could not go on without that copy.",
    'set "files" to "shared" for kernels that hibernate.',
)


def send_image(image: Path) -> Iterator[bytes]:
    """Yield the bytes to send for the folder of an image.

    :raises OSError: when it cannot be read
    """
    with open_path(str(image)) as opened:
        yield from write_chunks(Contents(folders=[(".", opened, "image")]).archive(sys.maxsize))


def fetch_image(
    argv: Sequence[str], environment: Mapping[str, str], name: str, image: Path, seconds: float
) -> None:
    """Let a node save the sandbox that it calls ``name``, into the empty folder ``image``.

    The kernel there goes on, once all of it is on this machine's disk. ``argv``: runs ``save``
    there. ``seconds``: for the node to write it.

    :raises SnapshotError: when that fails
    """
    try:
        with Fetch(argv, environment, silent=seconds) as fetch, open_path(str(image)) as opened:
            if not fetch.ask("save", name):
                raise SandboxError("The node has no such sandbox any more.")
            copy = OutputsCopy(opened, {})
            copy.take(fetch.pieces())
            lacks = copy.left_out + fetch.left_out
            files = list(image.iterdir())
            if lacks or not all(stat.S_ISREG(path.lstat().st_mode) for path in files):
                raise SandboxError("The node has sent something else.")
            for path in files:
                flush(path)
            fetch.confirm()
    except (SandboxError, ArchiveError, OSError) as error:
        words = error.detail.splitlines()[-1:] if isinstance(error, SandboxError) else []
        raise SnapshotError(
            f"The kernel was not saved: {next(iter(words), str(error))}",
            "see whether the disks of the node and of this machine are full.",
        ) from error
