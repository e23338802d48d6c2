"""``list``, ``kill``, ``prune``: the sandboxes of this user, whoever started them.

What is known of a sandbox is the record that its owner wrote on the host, and what the host's
kernel says of its processes. Nothing is taken from inside one.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gvisor_kernel.cli.output import (
    describe_age,
    describe_size,
    make_console,
    print_json,
    print_table,
    printable,
)
from gvisor_kernel.config.settings import RUNTIMES
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.processes import is_alive
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.docker.removal import end_container, redirect_outputs, sync_outputs
from gvisor_kernel.runtimes.runsc.memory import HostMemory
from gvisor_kernel.runtimes.state.records import Record, find_sandboxes, is_orphan, this_machine
from gvisor_kernel.runtimes.state.sweep import end_sandbox, remove_sandbox

State = Literal["starting", "running", "spare", "ended", "landing", "orphaned", "elsewhere"]
"""``spare``: restored ahead, stopped, no kernel's yet. ``ended``: its owner lives, and is about to
remove it. ``landing``: likewise, and its outputs are still to be copied out of its engine.
``elsewhere``: another machine, or a container, has it, and shares this state directory."""


@dataclass(frozen=True)
class Listed:
    """A sandbox as ``list`` shows it. ``memory_used`` is None where nothing runs or may be read."""

    directory: Path
    record: Record
    state: State
    memory_used: int | None

    @property
    def id(self) -> str:
        return self.record.container_id


def find_all() -> list[Listed]:
    """Every sandbox of this user, oldest first. Raises StateError."""
    return [
        Listed(directory, record, find_state(record), read_memory(record))
        for directory, record in find_sandboxes()
        # A record is about its own directory; one that says otherwise was not written by us.
        if record.container_id == directory.name
    ]


def find_state(record: Record) -> State:
    if is_orphan(record):
        return "orphaned"
    if record.machine != this_machine():
        return "elsewhere"
    if record.ended:
        return "landing" if record.outputs is not None and record.ready else "ended"
    if record.engine is not None:  # which has it; its owner removes it when it ends
        return "running" if record.ready else "starting"
    if not record.processes:
        return "starting"
    if not any(map(is_alive, record.processes.values())):
        return "ended"
    return "spare" if record.spare else "running"


def read_memory(record: Record) -> int | None:
    """Bytes of the host's memory that a sandbox holds, as its owner counts them."""
    sentry = record.processes.get("sentry")
    if record.machine != this_machine() or sentry is None:
        return None
    memory = HostMemory.find(sentry.pid)
    if memory is None:
        return None
    try:
        memory.gofer = record.processes.get("gofer")
        return memory.read() if is_alive(sentry) else None
    finally:
        memory.close()


def find_one(text: str) -> Listed:
    """The sandbox that ``text`` means: an id, an identity, or the beginning of just one."""
    found = [
        sandbox
        for sandbox in find_all()
        if sandbox.id.startswith(text.lower())
        or sandbox.record.identity.lower().startswith(text.lower())
    ]
    exact = [s for s in found if text.lower() in (s.id, s.record.identity.lower())]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise GvisorKernelError(
            f"{text!r} is the beginning of {len(found)} sandboxes' ids.",
            f"give more of it: {', '.join(sandbox.id for sandbox in found[:4])}",
        )
    raise GvisorKernelError(f"There is no sandbox {text!r}.", "see: gvisor-kernel list")


def cells_of(sandbox: Listed) -> tuple[str, ...]:
    """Of its row in ``list``."""
    record, used = sandbox.record, sandbox.memory_used
    shown = "?" if used is None else describe_size(used)
    return (
        sandbox.id,
        record.kernel_name,
        sandbox.state,
        f"{shown} / {describe_size(record.memory_limit)}",
        describe_age(time.time() - record.created),
        record.folder,
    )


def run_list(arguments: argparse.Namespace) -> int:
    sandboxes = find_all()
    if arguments.json:
        print_json([describe(sandbox) for sandbox in sandboxes])
        return 0
    if not sandboxes:
        print("No sandboxes.")
        return 0
    print_table(("ID", "NAME", "STATE"), ("MEMORY", "AGE"), "FOLDER", map(cells_of, sandboxes))
    return 0


def describe(sandbox: Listed) -> dict[str, object]:
    """A sandbox in ``list --json``. Times are seconds, sizes bytes."""
    record = sandbox.record
    return {
        "id": sandbox.id,
        "identity": record.identity,
        "name": record.kernel_name,
        "kernel_id": record.kernel_id,
        "state": sandbox.state,
        "memory_used": sandbox.memory_used,
        "memory_limit": record.memory_limit,
        "created": record.created,
        "age": max(time.time() - record.created, 0),
        "folder": record.folder,
        "owner_pid": record.owner.pid,
    }


def run_kill(arguments: argparse.Namespace) -> int:
    sandbox = find_one(arguments.id)
    if sandbox.state == "elsewhere":
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} runs on {sandbox.record.machine.host}, or in a container.",
            "run this there.",
        )
    groups = [Path(group) for group in sandbox.record.cgroups]
    # A living owner removes the rest itself, as it does when a sandbox crashes.
    if sandbox.state == "orphaned":
        ended = remove_sandbox(sandbox.directory, sandbox.record)
    elif sandbox.record.engine is not None:
        end_container(sandbox.record)
        ended = True
    else:
        ended = end_sandbox(sandbox.directory, groups)
    if not ended:
        raise GvisorKernelError(
            f"Not everything of the sandbox {sandbox.id} could be ended.",
            f"see what it is: ps -ef | grep {sandbox.id}",
        )
    print(f"Ended {sandbox.record.identity}")
    return 0


def run_prune(arguments: argparse.Namespace) -> int:
    with make_console(stderr=True).status("Removing what is left of sandboxes …"):
        removed = [name for runtime in find_runtimes() for name in get_runtime(runtime).sweep()]
    for identity in removed:
        print(f"Removed {printable(identity)}")
    left = [sandbox.id for sandbox in find_all() if sandbox.state == "orphaned"]
    if left:
        raise GvisorKernelError(
            f"Not everything of {', '.join(left)} could be removed.",
            "run this again as the user, root perhaps, whose processes and cgroups they are; with"
            " a Docker engine, when it answers.",
        )
    if not removed:
        print("Nothing to remove.")
    return 0


def find_runtimes() -> list[str]:
    """Those that may have left something: the optional one if there is an engine to ask."""
    used = {sandbox.record.runtime for sandbox in find_all()}
    if os.environ.get("DOCKER_HOST"):
        used.add("docker")
    return [name for name in RUNTIMES if name in used or name != "docker"]


def run_sync(arguments: argparse.Namespace) -> int:
    sandbox = find_one(arguments.id)
    record = sandbox.record
    if record.outputs is None:
        raise GvisorKernelError(
            f"The sandbox {sandbox.id} keeps no outputs.",
            "start it with the setting outputs; its folder on the host must be writable.",
        )
    if record.engine is None:
        print(f"Nothing to copy: it writes into {printable(record.outputs)} itself")
        return 0
    if arguments.to is not None:
        record = redirect_outputs(sandbox.directory, record, arguments.to)
    written, left_out = sync_outputs(sandbox.directory, record)
    more = f"; {left_out} were left out" if left_out else ""
    print(f"Copied {written} changed files into {printable(str(record.outputs))}{more}")
    return 0
