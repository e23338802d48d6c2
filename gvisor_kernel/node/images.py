"""Saves a kernel of this node for the host, which keeps its image.

On a node an image is a copy (``files.py``) of the process that has made or received it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gvisor_kernel.errors import GvisorKernelError, SnapshotError
from gvisor_kernel.host import processes
from gvisor_kernel.host.private_directories import read_file, write_file
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
from gvisor_kernel.node.serve import NOTICES
from gvisor_kernel.node.start import SENT, SOURCES
from gvisor_kernel.runtimes.nodes.orders import Failed, Files, Sent, write_fact
from gvisor_kernel.runtimes.runsc.needs import MAX_NEEDS, check_needs, read_needs
from gvisor_kernel.runtimes.runsc.runsc_sandbox import save_sandbox
from gvisor_kernel.runtimes.runsc.runtime import RunscRuntime
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.kept_packages import find_packages
from gvisor_kernel.runtimes.state.saved import MAX_NOTE, NEEDS, WAKE_SECONDS
from gvisor_kernel.runtimes.state.shown_files import find_shown_files
from gvisor_kernel.strict_json import parse_json


def fits() -> int:
    """Tell the host whether a kernel could go on here whose needs it sends; return 0."""
    try:
        line = sys.stdin.buffer.readline(MAX_NEEDS)  # no timeout: it ends with the connection
        check_needs(read_needs(line))
        write_out([write_fact(Files(found=True))])
    except SnapshotError as error:
        write_out([write_fact(Failed("SnapshotError", error.fact, error.hint))])
    return 0


def save() -> int:
    """Save the kernel of a sandbox of this node for the host, and send it; return the exit status.

    The kernel goes on. While it is sent, which may take seconds, it is stopped: what it did then
    it would do again.
    """
    # Slurm's notice is for the helper of the kernel.
    signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
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
            save_sandbox(found[directory].program, directory, copy.outputs, WAKE_SECONDS)
            with stopped(sentry.pid):
                sources = parse_json(read_file(directory / SOURCES, MAX_NOTE), MAX_NOTE)
                files = find_shown_files(sentry.pid, sources)
                needs = RunscRuntime().find_needs(directory, files, find_packages(files, sources))
                write_file(copy.outputs / NEEDS, needs)
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
    argv = ["/bin/sh", "-c", 'read -r _; kill -CONT "$0"', str(pid)]
    to, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=to, stdout=null, stderr=null, start_new_session=True):
        os.kill(pid, signal.SIGSTOP)
        yield
