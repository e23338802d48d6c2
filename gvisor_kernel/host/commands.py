"""Runs short-lived programs with a limit of time and of output.

Whatever such a program does: this waits no longer than the limit, keeps no more output than the
limit, and kills the program's process group at the end. Long-lived programs such as sandboxes are
started by ``runtimes/runsc/starting.py``.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gvisor_kernel.errors import LaunchError

READ_SIZE = 65536
KILLED_SECONDS = 2.0
"""Seconds that a program is waited for after it was killed."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class CommandResult:
    """``status``: as in ``subprocess``; None if the program was killed at the time limit.

    ``output``: the end of its output to stdout and stderr. ``errors``: of that to stderr, if it was
    wanted apart.
    """

    status: int | None
    output: str
    errors: str = ""


def run(
    *commands: Sequence[str],
    seconds: float,
    max_bytes: int,
    cwd: Path | None,
    umask: int = -1,
    environment: Mapping[str, str] = MappingProxyType({"PATH": PATH}),
    apart: bool = False,
) -> list[CommandResult]:
    """Run ``commands`` at the same time. Blocks for at most ``seconds``.

    ``max_bytes``: how many bytes of each program's output are kept, from its end. ``cwd``: None
    for this process's own, which may be gone. ``apart``: keep stderr by itself.

    :raises OSError: when one of them cannot be started
    :raises LaunchError: as ``check_children``
    """
    check_children()
    deadline = time.monotonic() + seconds
    started: list[_Command] = []
    try:
        for argv in commands:
            started.append(_Command(argv, max_bytes, cwd, umask, environment, apart))
        return [command.wait(deadline) for command in started]
    finally:
        for command in started:
            command.close()


def check_children() -> None:
    """Check that this process learns how its children end.

    :raises LaunchError: it ignores SIGCHLD, as what started it did perhaps.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise LaunchError(
            "This process ignores the signal SIGCHLD, so it cannot wait for programs it starts.",
            "set the signal back before kernels are started: "
            "`signal.signal(signal.SIGCHLD, signal.SIG_DFL)`, or start this program from one that "
            "does not ignore it.",
        )


def read_exit_status(pid: int) -> int:
    """Return the exit status of a child that has ended, as in ``subprocess``, without reaping it.

    Until the child is reaped, its pid and its process group cannot be reused.
    """
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # no timeout: the process has ended
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to the process group of a child that leads it and was not yet reaped."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Command:
    def __init__(
        self,
        argv: Sequence[str],
        max_bytes: int,
        cwd: Path | None,
        umask: int,
        environment: Mapping[str, str],
        apart: bool,
    ) -> None:
        self._max_bytes = max_bytes
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            env=dict(environment),
            cwd=cwd,
            umask=umask,
            start_new_session=True,
        )
        self._exit = os.pidfd_open(self._process.pid)
        streams = (self._process.stdout, self._process.stderr)
        self._streams = [stream for stream in streams if stream is not None]
        self._words = {stream.fileno(): bytearray() for stream in self._streams}
        for fd in self._words:
            os.set_blocking(fd, False)

    def wait(self, deadline: float) -> CommandResult:
        """Wait until the program has ended, even if another process still has its stdout open."""
        poller = select.poll()
        for fd in (*self._words, self._exit):
            poller.register(fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(left * 1000)}
            for output in self._words.keys() & ready:
                if not self._read(output):
                    poller.unregister(output)
            if ready == {self._exit}:  # and all output was read
                return self._result(read_exit_status(self._process.pid))
        # It may have ended in time, while this process was stopped.
        has_ended = any(fd == self._exit for fd, _ in poller.poll(0))
        return self._result(read_exit_status(self._process.pid) if has_ended else None)

    def _read(self, output: int) -> bool:
        """Read available output. False at its end."""
        try:
            content = os.read(output, READ_SIZE)  # no timeout: it is ready, or does not block
        except BlockingIOError:
            return True
        words = self._words[output]
        words += content
        del words[: -self._max_bytes]
        return bool(content)

    def _result(self, status: int | None) -> CommandResult:
        texts = [words.decode(errors="replace") for words in self._words.values()]
        return CommandResult(status, *texts)

    def close(self) -> None:
        kill_group(self._process)
        # It has ended by now, or hangs in a system call: that is not waited for.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILLED_SECONDS)
        os.close(self._exit)
        for stream in self._streams:
            stream.close()
