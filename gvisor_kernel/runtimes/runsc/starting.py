"""Starts the program that makes a sandbox, and waits until that has ended: process, sentry.

The program ends and leaves the sentry and its gofer behind. They are not children of this process,
so the sentry is held by a pidfd, and its exit status is unknown.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.errors import LaunchError, SnapshotError, StartTimedOut
from gvisor_kernel.host import commands, processes
from gvisor_kernel.host.descriptors import closing_fd, is_ready
from gvisor_kernel.host.processes import SANDBOX_NAME
from gvisor_kernel.runtimes.hints import find_hint
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.state.sweep import root_argument
from gvisor_kernel.runtimes.stdio import Ends, StderrLog

LAST_WORDS_SECONDS = 1.0
"""Seconds to wait for the last lines on stderr of a program that has failed."""


@dataclass(frozen=True)
class Sentry:
    """The sandbox's own process. ``fd`` is a pidfd, which belongs to the holder of this object."""

    pid: int
    fd: int


def spawn(
    argv: Sequence[str], ends: Ends, places: Places, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start ``argv`` with the sandbox's ends of the pipes as its stdio; it inherits
    ``descriptors``.

    :raises LaunchError: when the program or the sandbox's state directory does not exist
    """
    stdin, stdout, stderr = ends.guest
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd=places.directory,
            start_new_session=True,
            pass_fds=descriptors,
        )
    except FileNotFoundError as error:
        raise LaunchError(
            f"{error.filename} does not exist.",  # the program, or the sandbox's own directory
            "it was removed while the kernel started: find out by what, and start the kernel"
            " again.",
        ) from error


def wait_for_sentry(
    process: subprocess.Popen[bytes],
    places: Places,
    stderr: StderrLog,
    seconds: float,
    *,
    restores: bool,
) -> Sentry:
    """Wait until ``process`` has ended, for at most ``seconds``, and return the sentry it has left.

    After an error ``process`` and its process group are gone; the caller removes the rest.

    :raises LaunchError: when the sandbox was not started
    :raises SnapshotError: the same where ``restores``
    """
    kind = SnapshotError if restores else LaunchError
    what = "restored" if restores else "started"
    try:
        if not _wait(process.pid, seconds):
            late = SnapshotError if restores else StartTimedOut
            raise late(
                f"The sandbox was not {what} within {seconds:g} s.",
                "the machine may be busy: raise the setting start_timeout.",
                stderr.tail(),
            )
        status = commands.read_exit_status(process.pid)
        if status == 0:
            sentry = find_sentry(places)
            if sentry is not None:
                return sentry
            reason = "runsc ended and left no sandbox"
        else:
            reason = f"runsc ended with status {status}"
        stderr.wait(LAST_WORDS_SECONDS)
        words = stderr.tail()
        raise kind(f"The sandbox could not be {what}: {reason}.", find_hint(words), words)
    except BaseException:
        commands.kill_group(process)
        raise
    finally:
        process.wait()  # no timeout: the process has ended


def find_sentry(places: Places) -> Sentry | None:
    """Return the process that the pid file names, with a pidfd; None when it has ended."""
    try:
        pid = int(places.pid_file.read_text())
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    argv = processes.read_argv(pid)
    if argv[:1] == [SANDBOX_NAME] and root_argument(places.directory) in argv:
        return Sentry(pid, fd)
    os.close(fd)
    return None


def read_panic(path: Path) -> str:
    """Return the first line of the panic log at ``path``: printable, at most 200 characters.

    Empty where there is none. The runtime writes the file, so it is not trusted: no link is
    followed and nothing is waited for. Never raises.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # by path: below the state directory, whose parents only this user can change; only read, and no
    # link is followed
    with suppress(OSError), os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        for line in file.read(4096).decode(errors="replace").splitlines():
            text = "".join(c for c in line if c.isprintable()).strip()
            if text:
                return text[:200]
    return ""


def _wait(pid: int, seconds: float) -> bool:
    """Return whether the child ``pid`` ends within ``seconds``. (Popen.wait would poll.)"""
    with closing_fd(os.pidfd_open(pid)) as fd:
        return is_ready(fd, seconds)
