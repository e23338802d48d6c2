"""All sandboxes of this user, with the state of each.

The facts come from the record that the owner of a sandbox (a Jupyter process) wrote on the host,
and from /proc. Nothing is read from inside a sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gvisor_kernel.config.settings import find_entry
from gvisor_kernel.errors import RuntimeMissing
from gvisor_kernel.host.processes import is_alive, is_stopped
from gvisor_kernel.runtimes.state.records import Record, find_sandboxes, is_orphan, this_machine

State = Literal[
    "starting",
    "running",
    "hibernated",
    "spare",
    "ended",
    "copying",
    "orphaned",
    "elsewhere",
]
"""``hibernated``: its kernel was saved, and goes on at the next request.
``spare``: restored in advance and paused, not used by a kernel yet. ``ended``: the owner is
alive and will remove it. ``copying``: likewise, but its outputs are still to be copied from where
it ran: a Docker engine, a node or a cluster. ``orphaned``: the owner is gone. ``elsewhere``: it
runs on another machine, or in a container, that shares this state directory."""


@dataclass(frozen=True)
class Listed:
    """A sandbox as ``list`` shows it.

    ``memory_used``: bytes; None if nothing runs or the number cannot be read.
    ``paused``: the sandbox of an idle kernel, stopped by the setting ``idle_stop`` until the next
    message.
    """

    directory: Path
    record: Record
    state: State
    memory_used: int | None
    paused: bool

    @property
    def id(self) -> str:
        """The id that ``list`` shows and other commands take."""
        return self.record.container_id


def find_all() -> list[Listed]:
    """Return all sandboxes of this user, oldest first.

    :raises StateError: when the state directory cannot be used
    """
    return [
        make_listed(directory, record)
        for directory, record in find_sandboxes()
        # A record that names another directory was not written by gvisor-kernel.
        if record.container_id == directory.name
    ]


def make_listed(directory: Path, record: Record) -> Listed:
    """Return what ``list`` shows of a sandbox. Reads /proc, which takes milliseconds."""
    state, sentry = find_state(record), record.processes.get("sentry")
    paused = state == "running" and sentry is not None and is_stopped(sentry.pid)
    return Listed(directory, record, state, read_memory(record), paused)


def find_state(record: Record) -> State:
    """Return the state of a sandbox by its record and by which of its processes live."""
    if record.saved:
        return "hibernated"
    if is_orphan(record):
        return "orphaned"
    if record.machine != this_machine():
        return "elsewhere"
    if record.ended:
        return "copying" if record.outputs is not None and record.ready else "ended"
    if not record.processes:  # in a Docker engine they are the engine's
        return "running" if record.ready else "starting"
    if not any(map(is_alive, record.processes.values())):
        return "ended"
    if "client" in record.processes and not record.ready:  # it may wait for resources
        return "starting"
    return "spare" if record.spare else "running"


def read_memory(record: Record) -> int | None:
    """Return the memory of the host, in bytes, that a sandbox uses, counted as its owner does."""
    if record.machine != this_machine():
        return None
    try:
        measure = find_entry(record.runtime).measure
    except RuntimeMissing:
        return None
    return None if measure is None else measure(record)
