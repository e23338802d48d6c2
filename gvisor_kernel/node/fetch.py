"""The command ``fetch`` of a node: sends the outputs of a sandbox to the host, as an archive.

The host says on stdin which copy it means, and whether it is the last time. The answer is a fact on
stdout, then the archive, and a fact with the number of files that are not in it. After the last
time the copy is removed, once the host has said that it has everything. A kernel may change what is
being read.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from gvisor_kernel.archive.layers import MAX_ENTRIES
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.owners import restore_access
from gvisor_kernel.host.processes import ProcessId, is_alive, open_process
from gvisor_kernel.node.files import ENDED, Copy, find_copy
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.nodes.archive_chunks import write_chunks
from gvisor_kernel.runtimes.nodes.orders import write_fact
from gvisor_kernel.runtimes.state.sweep import sweep_orphans

WORD_SECONDS = 60.0
"""Seconds that the host may take to say what it wants."""
DONE_SECONDS = 1800.0
"""Seconds that it may take to write what it was sent."""
END_SECONDS = 20.0
"""Seconds that a helper may take to end its sandbox."""
MAX_WORD = 100
LAST, NOW, DONE = "last", "now", "done"


def fetch() -> int:
    """Serve one host; return the exit status of this process: 1 if something was not sent."""
    try:
        word, _, name = read_word(WORD_SECONDS).partition(" ")
        copy = find_copy(name)
        if copy is not None and word == LAST:
            end_owner(copy)
        if copy is None or not copy.path.is_dir():
            _write([write_fact("files", found=False)])
            return 0
        _write([write_fact("files", found=True)])
        left_out = send_outputs(copy)
        _write([write_fact("sent", left_out=left_out)])
        if word == LAST and read_word(DONE_SECONDS) == DONE:
            copy.remove()
    except (GvisorKernelError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def read_word(seconds: float) -> str:
    """Return the next line of stdin.

    :raises OSError: when none comes within ``seconds``, or it is too long
    """
    deadline = time.monotonic() + seconds
    line = b""
    fd = sys.stdin.fileno()
    while not line.endswith(b"\n"):
        rest = max(0.0, deadline - time.monotonic())
        if not select.select([fd], [], [], rest)[0]:
            raise TimeoutError("the host has said nothing")
        data = os.read(fd, 1)  # no timeout: it is ready, or does not block
        if not data or len(line) > MAX_WORD:
            raise ConnectionError("the host has gone")
        line += data
    return line.decode(errors="replace").strip()


def send_outputs(copy: Copy) -> int:
    """Write the archive of the outputs as they are now; return how many are not in it.

    :raises GvisorKernelError, OSError: when they cannot be read to the end
    """
    with open_path(str(copy.outputs)) as outputs:
        restore_access(outputs)
        contents = Contents(folders=[(".", outputs, "outputs")])
        # The host refuses one entry more than it takes.
        _write(write_chunks(contents.archive(sys.maxsize, 2 * MAX_ENTRIES)))
        return contents.left_out


def end_owner(copy: Copy) -> None:
    """End the sandbox of a helper that has lost its host, or was killed: then there is no more to
    come.

    :raises StateError: when the state directory cannot be read
    """
    owner = copy.owner()
    if copy.has(ENDED):
        return
    if owner is None:
        sweep_orphans("runsc")
        return
    with open_process(owner.pid) as process:
        if process is not None and is_alive(owner):
            with suppress(OSError):
                signal.pidfd_send_signal(process, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while _runs(copy, owner) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(copy: Copy, owner: ProcessId) -> bool:
    return copy.path.is_dir() and not copy.has(ENDED) and is_alive(owner)


def _write(pieces: Iterator[bytes] | list[bytes]) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
