"""Saves a kernel of this node for the host, which keeps its image.

On a node an image is a copy (``files.py``) of the process that has made or received it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import chain

from gvisor_kernel.errors import GvisorKernelError, SnapshotError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.private_directories import write_file
from gvisor_kernel.node.files import Copy, copies_root, make_copy, write_out
from gvisor_kernel.runtimes.base import PausableSandbox, Sandbox, SavedSandbox
from gvisor_kernel.runtimes.copies.contents import Contents
from gvisor_kernel.runtimes.nodes.orders import Failed, Files, Piece, write_fact
from gvisor_kernel.runtimes.runsc.needs import MAX_NEEDS, check_needs, read_needs
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import find_packages
from gvisor_kernel.runtimes.state.saved import NEEDS, WAKE_SECONDS
from gvisor_kernel.runtimes.state.shown_files import find_shown_files, find_sources


def fits() -> int:
    """Tell the host whether a kernel could go on here whose needs it sends; return 0."""
    try:
        line = sys.stdin.buffer.readline(MAX_NEEDS)  # no timeout: it ends with the connection
        check_needs(read_needs(line))
        write_out([write_fact(Files(found=True))])
    except SnapshotError as error:
        write_out([write_fact(Failed("SnapshotError", error.fact, error.hint))])
    return 0


def send_saved(
    sandbox: Sandbox, tell: Callable[[Piece], bool], await_host: Callable[[], object]
) -> None:
    """Save the kernel of a sandbox for the host, and send it by ``tell`` while the host takes it.

    The kernel goes on. Until ``await_host`` returns it is stopped, or it would do things twice.
    """
    assert isinstance(sandbox, SavedSandbox)
    assert isinstance(sandbox, PausableSandbox)
    copy = Copy(copies_root() / f"save{sandbox.directory.name}")
    try:
        record = records.read_record(sandbox.directory)
        sentry = None if record is None else record.processes.get("sentry")
        if sentry is None:
            raise SnapshotError("The sandbox's record cannot be read.")
        make_copy(copy)
        sandbox.checkpoint(copy.outputs, WAKE_SECONDS)
        sandbox.pause()
        sources = find_sources(sandbox.view.mounts, sandbox.directory)
        files = find_shown_files(sentry.pid, sources)
        needs = RunscRuntime().find_needs(sandbox.directory, files, find_packages(files, sources))
        write_file(copy.outputs / NEEDS, needs)
        with open_path(str(copy.outputs)) as opened:
            archive = Contents(folders=[(".", opened, "image")]).archive(sys.maxsize)
            for number, data in enumerate(chain(filter(None, archive), [b""])):
                if not tell(Piece(number, data)):
                    break
    except (GvisorKernelError, OSError) as error:
        tell(Piece(0, error=str(error).partition("\n")[0]))
    finally:
        await_host()
        sandbox.resume()
        copy.remove()
