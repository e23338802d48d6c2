"""The process of this machine that passes a sandbox's stdio to a node: srun, or ssh.

It is started with pipes, and ended in steps: its stdin ends, then a signal, then the engine's own
command for the job.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.runtimes.clients import run
from gvisor_kernel.runtimes.stdio import Ends

GENTLE_SECONDS = 15.0
"""Seconds for a client to end after its stdin has ended: the helper removes its sandbox first."""
SIGNAL_SECONDS = 10.0


class Client:
    """A started client. ``exit_fd`` is a pidfd, which its holder closes."""

    def __init__(self, argv: Sequence[str], ends: Ends, environment: Mapping[str, str]) -> None:
        """Start ``argv`` with the guest's ends of ``ends`` as its stdio.

        :raises LaunchError: when there is no such program
        """
        stdin, stdout, stderr = ends.guest
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(f"{argv[0]} could not be started: {error.strerror}.") from error
        self.exit_fd = os.pidfd_open(self.process.pid)

    def send(self, fd: int, data: bytes, seconds: float) -> bool:
        """Write ``data`` to the client's stdin, whose other end is ``fd``; return whether all was
        taken in time."""
        view = memoryview(data)
        deadline = time.monotonic() + seconds
        with suppress(OSError):
            while view:
                if not _wait(fd, select.POLLOUT, deadline - time.monotonic()):
                    return False
                view = view[os.write(fd, view) :]
        return not view

    def has_ended(self, seconds: float = 0) -> bool:
        """Return whether it ends within ``seconds``."""
        return _wait(self.exit_fd, select.POLLIN, seconds)

    def signal(self) -> None:
        """Ask it to end, without waiting. Never raises."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.exit_fd, signal.SIGTERM)

    def end(self, end_argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Wait for its end, and enforce it. Its stdin has been closed. Blocks, never raises."""
        if not _wait(self.exit_fd, select.POLLIN, GENTLE_SECONDS):
            self.signal()
            if not _wait(self.exit_fd, select.POLLIN, SIGNAL_SECONDS):
                run(end_argv, environment)
                if not _wait(self.exit_fd, select.POLLIN, SIGNAL_SECONDS):
                    with suppress(OSError):
                        signal.pidfd_send_signal(self.exit_fd, signal.SIGKILL)
        self.process.wait()  # no timeout: it has ended, or got SIGKILL


def _wait(fd: int, event: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(max(0.0, seconds) * 1000))
