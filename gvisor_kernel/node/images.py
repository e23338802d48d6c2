"""Saves a kernel of this node for the host, which keeps its image.

On a node an image is a copy (``files.py``) of the process that has made or received it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gvisor_kernel.errors import GvisorKernelError, SnapshotError
from gvisor_kernel.host import processes
from gvisor_kernel.host.private_directories import read_file
from gvisor_kernel.kernel.needs import (
    MAX_NEEDS,
    Needs,
    check_needs,
    find_needs,
    write_needs,
)
from gvisor_kernel.node.files import (
    DONE,
    DONE_SECONDS,
    WORD_SECONDS,
    Copy,
    copies_root,
    make_copy,
    read_word,
    send_outputs,
    write_out,
)
from gvisor_kernel.node.start import SENT, SOURCES
from gvisor_kernel.runtimes.nodes.orders import Failed, Files, Sent, write_fact
from gvisor_kernel.runtimes.runsc.orphan import write_image
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import find_packages
from gvisor_kernel.runtimes.state.saved import MAX_NOTE, WAKE_SECONDS
from gvisor_kernel.runtimes.state.shown_files import find_shown_files
from gvisor_kernel.typed_json import read_json


def fits() -> int:
    """Tell the host whether a kernel could go on here whose needs it sends; return 0."""
    try:
        line = sys.stdin.buffer.readline(MAX_NEEDS)  # no timeout: ends with the connection
        check_needs(read_json(line, Needs, MAX_NEEDS))
        write_out([write_fact(Files(found=True))])
    except (SnapshotError, ValueError) as error:
        fact = error if isinstance(error, SnapshotError) else SnapshotError(str(error))
        write_out([write_fact(Failed("SnapshotError", fact.fact, fact.hint))])
    return 0


def save() -> int:
    """Save the kernel of a sandbox of this node for the host, and send it; return the exit status.

    The kernel goes on. While it is sent, which may take seconds, it is stopped: what it did then
    it would do again.
    """
    try:
        _, _, name = read_word(WORD_SECONDS).partition(" ")
        found = dict(records.find_sandboxes())
        directory = next((path for path in found if path.name == name), None)
        sentry = None if directory is None else found[directory].processes.get("sentry")
        if directory is None or sentry is None or not processes.is_alive(sentry):
            write_out([write_fact(Files(found=False))])
            return 0
        copy = Copy(copies_root() / f"save{name}")
        make_copy(copy)
        try:
            record = found[directory]
            write_image(directory, record, WAKE_SECONDS, copy.outputs)
            with stopped(sentry.pid):
                sources = json.loads(read_file(directory / SOURCES, MAX_NOTE))
                files = find_shown_files(sentry.pid, sources)
                needs = find_needs(record.program, files, find_packages(files, sources))
                write_needs(copy.outputs, needs)
                write_out([write_fact(Files(found=True))])
                write_out([write_fact(Sent(send_outputs(copy)))])
                if read_word(DONE_SECONDS) == DONE:
                    (directory / SENT).touch(0o600)  # by path: below a private store of this user
        finally:
            copy.remove()
    except (GvisorKernelError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process meanwhile. It goes on, too, if this one is killed."""
    fd = os.pidfd_open(pid)
    ends, held = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            os.close(held)
            select.select([ends], [], [])  # no timeout: until the other process ends
            signal.pidfd_send_signal(fd, signal.SIGCONT)
        finally:
            os._exit(0)
    try:
        os.close(ends)
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        yield
    finally:
        with suppress(OSError):
            signal.pidfd_send_signal(fd, signal.SIGCONT)
        os.close(held)
        os.close(fd)
        os.wait()
