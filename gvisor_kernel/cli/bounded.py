"""Programs and functions that may hang, with an end that is certain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gvisor_kernel.host.processes import kill_if, read_argv, wait_until_gone

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its status (None: it did not end in time), and all that it wrote."""

    status: int | None
    output: str


def run_command(argv: Sequence[str], seconds: float, mark: str = "") -> Outcome:
    """Run a program without input, for at most ``seconds``; raises OSError if it cannot start.

    After the time is up it is killed with its process group, and with every process that has
    ``mark`` among its arguments: what a sandbox program starts leaves the group.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return Outcome(process.returncode, output.decode(errors="replace").strip())
    except subprocess.TimeoutExpired:
        return Outcome(None, "")
    finally:
        if process.returncode is None:
            kill_all(process.pid, mark)
        if process.stdout:
            process.stdout.close()
        # It is gone by now, or in the kernel where nothing can end it: do not wait for that.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)


def kill_all(group: int, mark: str) -> None:
    """Kill a process group, and every process with ``mark`` in one of its arguments."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    if not mark:
        return

    def is_marked(pid: int) -> bool:
        return pid != os.getpid() and any(mark in word for word in read_argv(pid))

    deadline = time.monotonic() + 2
    # More than once: a process may be about to become one with the mark.
    while killed := [pid for pid in find_processes() if kill_if(pid, is_marked)]:
        if not wait_until_gone(killed, deadline):
            return


def find_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def call_within(seconds: float, function: Callable[[], T]) -> T:
    """The result of ``function``, or TimeoutError; it then goes on in a thread that nobody awaits.

    For what may hang in the kernel (a file system that does not answer), where no other end
    can be forced.
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
