"""Checks that a container is what was asked for, by what the engine and this host report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.host.processes import SANDBOX_NAME, read_argv
from gvisor_kernel.runtimes.docker.engine import Engine
from gvisor_kernel.spec.container import RUNTIME, find_faults, is_gvisor


def find_outside_faults(engine: Engine, container: str, asked: Mapping[str, Any]) -> list[str]:
    """Return how ``container`` differs from what was ``asked`` for; empty if it does not."""
    try:
        made = engine.inspect(container)
        runtimes = engine.info().get("Runtimes") or {}
    except SandboxError as error:
        return [error.fact.rstrip(".")]
    faults = find_faults(asked, made)
    if not is_gvisor(runtimes.get(RUNTIME) or {}):
        faults.append(f"the engine's runtime {RUNTIME} is another program")
    state = made.get("State") or {}
    if not state.get("Running"):
        faults.append("it is not running")
    pid = state.get("Pid")
    if isinstance(pid, int) and _is_here(pid, container):
        argv = read_argv(pid)
        if argv and argv[0] != SANDBOX_NAME:
            faults.append(f"its process on this host is not {SANDBOX_NAME}")
    return faults


def _is_here(pid: int, container: str) -> bool:
    """Return whether ``pid`` is a process of this machine, and the container's."""
    with suppress(OSError):
        return container in Path(f"/proc/{pid}/cgroup").read_text()
    return False
