"""Find and kill the parts of this process's only sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.host import processes
from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.runtimes.state.sweep import root_argument

INSIDE = {
    "PID 1": ("kill", "{}", "KILL"),
    "kernel": (
        *("exec", "{}", "/bin/sh", "-c"),
        "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done",
    ),
}
"""Commands of runsc that kill processes inside; {} is the sandbox's id."""
INSIDE_SECONDS = 5.0
"""Timeout, because ``runsc exec`` may wait for ever in a sandbox that is ending."""


def find_sandbox() -> Path | None:
    """Return the directory of the newest sandbox."""
    directories = records.sandbox_directories()
    return directories[-1] if directories else None


def find(part: str) -> list[int]:
    """Return the pids of a part: "sentry", "gofer", "runsc" (the command) or "lifeline"."""
    if part == "lifeline":
        process = lifeline._process
        return [] if process is None or process.poll() is not None else [process.pid]
    directory = find_sandbox()
    if directory is None:
        return []
    names = {"sentry": SANDBOX_NAME, "gofer": GOFER_NAME}
    found = []
    for pid in processes.find_with_argument(root_argument(directory)):
        name = processes.read_argv(pid)[:1]
        if name == [names[part]] if part in names else name not in ([n] for n in names.values()):
            found.append(pid)
    return found


def living() -> list[str]:
    """Return the parts that are alive now."""
    found = [part for part in ("runsc", "sentry", "gofer", "lifeline") if find(part)]
    if "sentry" in found and "runsc" not in found:
        found += list(INSIDE)
    return found


def kill(part: str) -> None:
    """Send SIGKILL to each process of ``part``, if it has any."""
    if part in INSIDE:
        _run_inside(INSIDE[part])
        return
    for pid in find(part):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _run_inside(command: Sequence[str]) -> None:
    directory = find_sandbox()
    if directory is None:
        return
    argv = [find_runsc().path, f"--root={directory / 'runsc'}"]
    argv += [directory.name if word == "{}" else word for word in command]
    if os.geteuid() != 0:
        argv = ["unshare", "-Ur", *argv]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=INSIDE_SECONDS,
            check=False,
        )
