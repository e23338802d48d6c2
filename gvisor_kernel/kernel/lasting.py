"""Kernels of programs that are saved and outlive these, until another program takes them over.

Who may do so is in the record (``Record.keeper``); ``saved_kernel`` takes over, as for a server.
All functions block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvisor_kernel.config.settings import SETTINGS, write_spec
from gvisor_kernel.errors import SandboxError, SnapshotError
from gvisor_kernel.kernel.plan import read_plan
from gvisor_kernel.kernel.saved_budget import KEEP_SECONDS
from gvisor_kernel.kernel.saved_kernel import CLAIM_SECONDS, GRANTING, OURS, read_saved
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.saved import IMAGE, SAVED, is_saved
from gvisor_kernel.runtimes.state.sweep import finish_saving
from gvisor_kernel.snapshots.snapshot import measure

ASKED = {*GRANTING, *OURS, "mounts", "egress"} & SETTINGS.keys()
"""Settings that whoever takes a kernel over has to grant again; the others are those of its
start."""


@dataclass(frozen=True)
class LastingSandbox:
    """A sandbox of a program that has ended, or has left it. ``id`` is for ``Sandbox.attach``.

    ``folder``: in which that program ran. ``outputs``: a folder of the host. ``saved``,
    ``kept_until``: Unix times; it is removed then, or earlier for want of room. ``size``: bytes on
    the disk.
    """

    id: str
    language: str
    folder: str
    outputs: str | None
    saved: float
    size: int
    kept_until: float


@dataclass(frozen=True)
class Found:
    """A saved kernel that may be taken over. ``settings``: with which it was started."""

    directory: Path
    record: Record
    language: str
    settings: dict[str, Any]


def list_lasting() -> tuple[LastingSandbox, ...]:
    """Return what programs have left, the oldest first. Waits for those that are being saved.

    :raises StateError: when the state directory cannot be used
    """
    found = []
    for directory, _ in _find_left():
        with suppress(OSError):  # it was removed meanwhile, or another process has it
            record = _settle(directory)
            if is_saved(directory, record) and records.is_orphan(record):
                size = measure(directory / SAVED / IMAGE)
                until = record.saved + KEEP_SECONDS
                facts = record.folder, record.outputs, record.saved, size, until
                found.append(LastingSandbox(record.container_id, _name_language(record), *facts))
    return tuple(sorted(found, key=lambda it: it.saved))


def _find_left() -> Iterator[tuple[Path, Record]]:
    for directory, record in records.find_sandboxes():
        if record.keeper == "program" and records.is_orphan(record):
            yield directory, record


def _settle(directory: Path) -> Record:
    """Return the record of a kernel whose owner has died, when nobody saves it any more.

    :raises OSError: when it was removed, or another process has it for CLAIM_SECONDS
    """
    with records.claimed(directory, CLAIM_SECONDS):
        finish_saving(directory)
        record = records.read_record(directory)
    if record is None:
        raise FileNotFoundError(directory)
    return record


def _name_language(record: Record) -> str:
    return record.kernel_name.removeprefix("gvisor-")


def find_lasting(id: str) -> Found:
    """Return the saved kernel that a program has left, by the id of its sandbox.

    Waits while it is being saved.

    :raises SandboxError: when there is none of this id, or it is not there for programs
    :raises StateError: when the state directory cannot be used
    """
    for directory, record in records.find_sandboxes():
        if id not in (record.identity, record.container_id):
            continue
        _check(id, record)
        try:
            record = _settle(directory)
        except FileNotFoundError:
            break
        except OSError as error:
            raise SandboxError(
                f"The sandbox {id!r} is being saved: {error.strerror}.", "try it again later."
            ) from error
        _check(id, record)
        return _read(directory, record)
    raise SandboxError(
        f"There is no sandbox {id!r}.",
        "list those that can be taken over with Sandbox.saved(). One that is to outlive its program"
        " is made with lasting=True.",
    )


def _check(id: str, record: Record) -> None:
    if not records.is_orphan(record):
        raise SandboxError(
            f"The sandbox {id!r} belongs to the process {record.owner.pid} of the machine"
            f" {record.machine.host}, which has not ended.",
            "call leave() there, or end that process.",
        )
    if record.keeper == "nobody":
        raise SandboxError(
            f"The sandbox {id!r} has ended with its program.",
            "make those that are to outlive it with lasting=True.",
        )
    if record.keeper == "server":
        raise SandboxError(
            f"The sandbox {id!r} is that of a notebook in {record.folder}.",
            "start the Jupyter server of this folder, which takes it over.",
        )


def _read(directory: Path, record: Record) -> Found:
    try:
        saved = read_saved(directory / SAVED, directory, record.identity)
    except SnapshotError as error:
        raise SandboxError(error.fact, error.hint) from error
    if saved is None or not is_saved(directory, record):
        raise SandboxError(
            f"What was saved of the sandbox {record.container_id!r} cannot be read.",
            f"use the release that saved it, or give it up: `gvisor-kernel kill"
            f" {record.container_id}`.",
        )
    spec = read_plan(saved.note.plan, b"").spec
    written = write_spec(spec)
    settings = {it: written[it] for it in ASKED if it != "own"} | {"hibernate_key": saved.key}
    return Found(directory, record, _name_language(record), settings)
