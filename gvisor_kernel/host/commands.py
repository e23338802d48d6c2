"""Programs that are asked something and end: within a time, with so much output, wholly.

Whatever such a program does, it is waited for no longer than was said, no more of what it prints
is kept than that, and nothing that it started outlives the question. Programs that stay, as a
sandbox does, are ``starting``'s.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.errors import LaunchError

READ_SIZE = 65536
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Ended:
    """How a program ended: ``status`` as in ``subprocess``, None if it had to be ended.

    ``words``: the last that it wrote to stdout and stderr.
    """

    status: int | None
    words: str


def run(
    *commands: Sequence[str], seconds: float, most: int, cwd: Path, umask: int = -1
) -> list[Ended]:
    """Run ``commands`` at the same time, and keep the last ``most`` bytes of what each prints.

    Blocks for at most ``seconds``. Raises OSError where one cannot be started, and LaunchError as
    ``check_children`` does.
    """
    check_children()
    deadline = time.monotonic() + seconds
    with_pipes: list[_Command] = []
    try:
        for argv in commands:
            with_pipes.append(_Command(argv, most, cwd, umask))
        return [command.wait(deadline) for command in with_pipes]
    finally:
        for command in with_pipes:
            command.end()


def check_children() -> None:
    """Whether this process learns how its children end.

    :raises LaunchError: it ignores SIGCHLD, as what started it did perhaps.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise LaunchError(
            "This process ignores the signal SIGCHLD, so it cannot wait for programs it starts.",
            "set the signal back before kernels are started: "
            "`signal.signal(signal.SIGCHLD, signal.SIG_DFL)`, or start this program from one that "
            "does not ignore it.",
        )


def read_status(pid: int) -> int:
    """The exit status of a child that has ended, as in ``subprocess``. It stays to be waited for.

    As long as it does, its pid is nobody else's, nor is its process group.
    """
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a child that leads its process group and was not waited for, and to the group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Command:
    def __init__(self, argv: Sequence[str], most: int, cwd: Path, umask: int) -> None:
        self._most = most
        self._words = b""
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": PATH},
            cwd=cwd,
            umask=umask,
            start_new_session=True,
        )
        self._exit = os.pidfd_open(self._process.pid)

    def wait(self, deadline: float) -> Ended:
        """Until the program has ended, whoever else still holds its stdout."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        os.set_blocking(output, False)
        poller = select.poll()
        poller.register(output, select.POLLIN)
        poller.register(self._exit, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(left * 1000)}
            if output in ready and not self._read(output):
                poller.unregister(output)
            elif self._exit in ready:  # and nothing is left to be read
                return Ended(read_status(self._process.pid), self._text())
        return Ended(None, self._text())

    def _read(self, output: int) -> bool:
        """Whether more may come."""
        try:
            content = os.read(output, READ_SIZE)
        except BlockingIOError:
            return True
        self._words = (self._words + content)[-self._most :]
        return bool(content)

    def _text(self) -> str:
        return self._words.decode(errors="replace")

    def end(self) -> None:
        end_group(self._process)
        self._process.wait()
        os.close(self._exit)
        assert self._process.stdout is not None
        self._process.stdout.close()
