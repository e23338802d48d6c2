"""Run programs and functions that may hang, for a bounded time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gvisor_kernel.host import commands
from gvisor_kernel.host.commands import CommandResult
from gvisor_kernel.host.processes import kill_if, read_argv, wait_until_gone

T = TypeVar("T")

MAX_OUTPUT = 1024 * 1024
"""Bytes of a program's output that are kept."""
EXEC_SECONDS = 0.05
"""How long a process that executes a program may have no arguments that can be read."""


def run_command(argv: Sequence[str], seconds: float, mark: str = "") -> CommandResult:
    """Run a program without input. Blocks for about ``seconds`` at most.

    After that time the program is killed with its process group and with every process that has
    ``mark`` in one of its arguments: processes that runsc starts leave the group.

    :raises OSError: when the program cannot be started
    :raises LaunchError: when this process cannot wait for programs; see ``commands.check_children``
    """
    has_ended = False
    try:
        (result,) = commands.run(
            argv, seconds=seconds, max_bytes=MAX_OUTPUT, cwd=None, environment=os.environ
        )
        has_ended = result.status is not None
    finally:
        if not has_ended:  # an interrupt included
            kill_marked(mark)
    if not has_ended:
        return CommandResult(None, "")
    return CommandResult(result.status, result.output.strip())


def kill_marked(mark: str) -> None:
    """Kill every process with ``mark`` in one of its arguments. An empty mark kills nothing."""
    if not mark:
        return

    def is_marked(pid: int) -> bool:
        return pid != os.getpid() and any(mark in word for word in read_argv(pid))

    deadline = time.monotonic() + 2
    passes = 0
    # Repeat: a process that was seen without the mark may be about to exec a program with it, and
    # for a moment after that its arguments are empty.
    while passes < 2:
        killed = [pid for pid in find_processes() if kill_if(pid, is_marked)]
        if killed and not wait_until_gone(killed, deadline):
            return
        passes = 0 if killed else passes + 1
        time.sleep(EXEC_SECONDS)


def find_processes() -> list[int]:
    """Return the pids of all processes that this user can see."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def call_within(seconds: float, function: Callable[[], T]) -> T:
    """Return the result of ``function``, which runs in a thread.

    For calls that may hang in the kernel (a file system that does not answer) and that nothing can
    interrupt. After a timeout the daemon thread goes on.

    :raises TimeoutError: when ``function`` did not return within ``seconds``
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return result[0]
