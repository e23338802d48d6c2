"""The client of a sandbox on a node: the process here that passes its stdio, srun or ssh.

It has the sandbox's link and stderr as pipes, and is ended in steps: its stdin ends, then a signal,
then the engine's own command for the job.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.runtimes.clients import run
from gvisor_kernel.runtimes.nodes.orders import Here
from gvisor_kernel.runtimes.nodes.reports import Reports
from gvisor_kernel.runtimes.stdio import StderrLog, make_pipes

GENTLE_SECONDS = 15.0
"""Seconds for a client to end after its stdin has ended: the helper removes its sandbox first."""
SIGNAL_SECONDS = 10.0
LAST_SECONDS = 5.0
"""Seconds to wait for the last words of a client that has ended."""


class Client:
    """A started client. Its owner closes the link's ends in ``ends``, and ``exit_fd``: an eventfd
    that is set once everything was read that the client and its helper have said, or the sandbox
    has ended and waits to be fetched."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], stderr_log: Path
    ) -> None:
        """Start ``argv``. ``stderr_log``: the file for what is neither link nor fact.

        :raises LaunchError: when there is no such program
        :raises OSError: when there are not enough descriptors
        """
        with ExitStack() as undo:

            def held(fd: int) -> int:
                undo.callback(os.close, fd)
                return fd

            ends = make_pipes()
            undo.callback(ends.close_host)
            undo.callback(ends.close_guest)
            self.exit_fd = held(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            # Another process, such as the master of the connection, may hold the client's stderr
            # for longer than this start or its sandbox lasts. By then ``exit_fd`` may be another
            # file, and what is told is told to this copy.
            ended = held(os.dup(self.exit_fd))
            # Held open until everything is read that the client has said: only then does the link
            # end.
            last = held(os.dup(ends.guest[1]))
            words, words_in = map(held, os.pipe2(os.O_CLOEXEC))
            self._process = _start(argv, ends.guest, environment)
            self._pidfd = os.pidfd_open(self._process.pid)
            undo.pop_all()
        ends.close_guest()
        self.pid = self._process.pid
        self.ends = ends
        self.environment = environment
        self._ending = threading.Lock()  # no timeout: held for a few steps that do not wait
        self._link_ended = False
        told = ExitStack()  # closed once, by the thread that reads
        told.callback(os.close, last)
        told.callback(os.close, ended)
        told.callback(os.eventfd_write, ended, 1)

        def on_words(line: str) -> None:
            with suppress(OSError):
                os.write(words_in, line.encode() + b"\n")

        def on_end() -> None:
            os.close(words_in)
            self._process.poll()
            told.close()

        self._stderr = StderrLog(words, stderr_log)
        self.reports = Reports(ends.stderr, on_words, on_end, told.close, os.dup(self._pidfd))

    @property
    def status(self) -> int:
        """Its exit status, as in ``subprocess``; 0 while it runs."""
        return self._process.poll() or 0

    @property
    def job(self) -> str:
        """The job of the helper, as it says; empty if there is none."""
        here = self.reports.find(Here)
        return "" if here is None else here.job

    def send(self, data: bytes, seconds: float) -> bool:
        """Write ``data`` to its stdin; return whether all was taken in time."""
        view = memoryview(data)
        deadline = time.monotonic() + seconds
        with suppress(OSError):
            while view:
                if not _wait(self.ends.link_in, select.POLLOUT, deadline - time.monotonic()):
                    return False
                view = view[os.write(self.ends.link_in, view) :]
        return not view

    def say(self, word: bytes) -> bool:
        """Write a short word for the helper, which the link's owner does not; return whether all of
        it was taken. Any thread."""
        with self._ending, suppress(OSError):
            return not self._link_ended and os.write(self.ends.link_in, word) == len(word)
        return False

    def has_ended(self, seconds: float = 0) -> bool:
        """Return whether it ends within ``seconds``."""
        return _wait(self._pidfd, select.POLLIN, seconds)

    def signal(self, signum: int = signal.SIGTERM) -> None:
        """Ask it to end, without waiting. Never raises."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signum)

    def end_link(self) -> None:
        """Let its stdin end. The descriptor stays its owner's to close."""
        with self._ending, suppress(OSError):
            self._link_ended = True
            # by path: the kernel's own file systems, /proc, /sys and /dev
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.ends.link_in, inheritable=False)
            os.close(null)

    def end(self, end_argv: Sequence[str], seconds: float) -> None:
        """Wait for its end, and enforce it, by ``end_argv`` if a signal does not; then for at most
        ``seconds`` for what it has said. Its stdin has ended. Blocks, never raises."""
        if not self.has_ended(GENTLE_SECONDS):
            self.signal()
            if not self.has_ended(SIGNAL_SECONDS):
                run(end_argv, self.environment)
                if not self.has_ended(SIGNAL_SECONDS):
                    self.signal(signal.SIGKILL)
        self._process.wait()  # no timeout: it has ended, or got SIGKILL
        self.reports.join(seconds)

    def release(self, seconds: float) -> None:
        """Close what its owner does not, and wait for the log of its stderr. Never raises."""
        with suppress(OSError):
            os.close(self._pidfd)
        self._stderr.wait(seconds)

    def abandon(self, end_argv: Sequence[str], seconds: float = LAST_SECONDS) -> None:
        """Do as ``end`` after a start that failed, and close everything."""
        self.signal()
        os.close(self.ends.link_in)
        self.end(end_argv, seconds)
        for fd in (self.ends.link_out, self.exit_fd, self._pidfd):
            os.close(fd)


def _start(
    argv: Sequence[str], stdio: tuple[int, int, int], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = stdio
    try:
        return subprocess.Popen(
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


def _wait(fd: int, event: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(max(0.0, seconds) * 1000))
