"""A kernel that is saved in its sandbox's directory. All functions block.

``runtimes/state/saved`` has the places. Such a sandbox keeps its record, its log, its transcript
and its names on the host. When a kernel is saved, and when it goes on, is decided in
``hibernation``. What was saved outlives its process: another one of the same user may take it over,
once its owner has ended.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.config.validators import GIB, is_within
from gvisor_kernel.errors import GvisorKernelError, SnapshotError, StateError
from gvisor_kernel.host.private_directories import read_file, replace_file, state_root
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, write_plan
from gvisor_kernel.kernel.restore import find_branch_code
from gvisor_kernel.link.events import BRANCH, VERSION, WAKE
from gvisor_kernel.runtimes.base import Sandbox, SavedSandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.claims import claimed
from gvisor_kernel.runtimes.state.kept_packages import (
    Packages,
    Substitutes,
    begin_to_keep,
    find_packages,
    find_substitutes,
    note_shown,
    sweep_kept,
)
from gvisor_kernel.runtimes.state.saved import IMAGE, MAX_NOTE, NOTE, SAVED, is_saved, write_saved
from gvisor_kernel.runtimes.state.shown_files import Stamps, find_sources
from gvisor_kernel.runtimes.state.sweep import (
    finish_saving,
    has_run,
    remove_orphan,
    remove_sandbox,
)
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.snapshots.snapshot import measure
from gvisor_kernel.typed_json import read_json, write_json

log = logging.getLogger(__name__)

# by path: below the state directory, whose parents only this user can change

SAVE_SECONDS = 120.0
"""Seconds that the kernel's memory may take to be written. A gigabyte takes one or two."""
FIXED = "20260401"
"""The first day on which a gVisor was built that forgets closed sockets in what it saves."""
MIN_LEFT = 256 * 1024 * 1024
"""Bytes of the disk that stay free."""
CLAIM_SECONDS = 60.0
"""Seconds that a start waits while another process saves the kernel."""
KEEP_SECONDS = 30 * 86400.0
"""Seconds that a kernel is kept which no process has taken over."""
MAX_SIZE, DISK_SHARE = 50 * GIB, 0.2
"""Bytes of all saved kernels, and their share of the disk space that would be free without."""
GRANTING = ("runtime", "uploads", "outputs", "skills", "profile", "transcripts")
"""Settings by which a kernel sees files of the host, or is recorded. Limits, and what was copied
into its memory, are not taken from it."""
OURS = ("start_timeout", "apply", "hibernate_idle_timeout", "own")
"""Settings of what this process does for a kernel."""


@dataclass(frozen=True)
class SavedFile:
    """kernel.json. ``key`` signs the kernel's messages inside, and is secret. ``plan``: of
    ``write_plan``, without variables of the server. ``saved``: Unix time. ``link``: the version
    that PID 1 speaks. ``files``: of ``shown_files``, which are found in ``sources``. ``known``:
    see ``SnapshotRun``. ``packages``: of ``kept_packages``. ``held``: of the outputs, see
    ``SavedSandbox.find_held``. ``branch``: its name, if it is one that has not gone on yet, and
    ``reseeds``: it gets new random numbers."""

    run: int
    key: str
    plan: dict[str, Any]
    saved: float
    link: int
    sources: dict[str, str]
    files: dict[str, tuple[int, int, int]]
    known: dict[str, Any] = field(default_factory=dict)
    packages: Packages = field(default_factory=dict)
    held: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    branch: str = ""
    reseeds: bool = False


@dataclass(frozen=True)
class SavedKernel:
    """A kernel that was saved as the folder ``place``, below ``directory``, that of its sandbox.
    ``size``: bytes on disk."""

    directory: Path
    place: Path
    identity: str
    run: SnapshotRun
    plan: Mapping[str, Any]
    size: int
    saved: float
    link: int
    libraries: Stamps
    packages: Packages
    sources: Mapping[str, str]
    mode: str = WAKE
    """Of ``Resume``."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """``Substitutes.paths``, once it is to go on."""
    spec: SandboxSpec | None = None
    """The settings with which it goes on elsewhere."""
    withdrawn: tuple[str, ...] = ()
    """What it was started with and may have no more; see ``compare``."""

    def check(self) -> Substitutes:
        """Return what the kernel goes on with in place of what was changed on this machine.

        :raises SnapshotError: when it cannot go on; it stays saved
        """
        if self.withdrawn:
            raise SnapshotError(
                "The configuration of this server does not grant what the kernel was started with:"
                f" {', '.join(self.withdrawn)}.",
                "put it back and start the server again, or restart the kernel to begin anew.",
            )
        if self.link != VERSION:
            raise SnapshotError(
                f"It was saved by another release of gvisor-kernel, with version {self.link} of the"
                f" link; this one speaks {VERSION}.",
                "install the release that saved it, or restart the kernel to begin anew.",
            )
        return find_substitutes(self.place, self.saved, self.libraries, self.packages, self.sources)

    def show(self, found: Substitutes) -> SavedKernel:
        """Return this kernel as it is to go on, with what ``check`` has found.

        :raises SnapshotError: when the directory cannot be written
        """
        try:
            note_shown(self.directory, found)
        except OSError as error:
            raise SnapshotError(
                f"{self.directory} cannot be written: {error.strerror}.",
                "check whether the disk is full or read-only.",
            ) from error
        return replace(self, shown=found.paths)

    def check_mapped(self, sandbox: Sandbox) -> None:
        """Check that nothing was changed while ``sandbox`` was restored, in which it goes on.

        :raises SnapshotError: when something was; it stays saved
        """
        if isinstance(sandbox, SavedSandbox):
            for path, stamp in sandbox.find_shown_files().items():
                if self.libraries.get(path, stamp) != stamp:
                    raise SnapshotError(f"{path} was changed while the kernel was to go on.")

    def begin_to_keep(self) -> None:
        """Begin to copy what the kernel needs, before packages are upgraded."""
        begin_to_keep(self.place, self.libraries, self.packages, self.sources)

    @property
    def files(self) -> Path:
        """The directory that a runtime restores from."""
        return self.place / IMAGE

    def compare(self, plan: KernelPlan) -> SavedKernel:
        """Return this kernel, which does not go on if ``plan`` grants less than it has."""
        own, now = read_plan(dict(self.plan), b"").spec, plan.spec
        lacks = [
            f"{'' if it.read_only else 'writable '}{it.source} at {it.target} (mounts)"
            for it in own.mounts
            if it not in now.mounts and replace(it, read_only=False) not in now.mounts
        ]
        for name in GRANTING:
            value, granted = getattr(own, name), getattr(now, name)
            is_below = name == "outputs" and value and granted and is_within(value, granted)
            if value and value != granted and not is_below:  # a branch's are below
                lacks.append(name if value is True else f"{value} ({name})")
        return replace(self, withdrawn=tuple(lacks))

    def adapt(self, plan: KernelPlan) -> KernelPlan:
        """Return ``plan``, for a kernel of the same name and folder, as this one was started.

        Keys, addresses, routes and what this process does for it are those of ``plan``.
        """
        own = read_plan(dict(self.plan), b"")
        egress = tuple(name for name in own.spec.egress if name in plan.spec.egress)
        return replace(
            plan,
            spec=replace(own.spec, egress=egress, **{it: getattr(plan.spec, it) for it in OURS}),
            request=replace(own.request, kernel_id=plan.request.kernel_id),
            identity=replace(plan.identity, memory_limit=own.spec.memory_limit),
            argv=own.argv,
            environment=own.environment,
            substituted=own.substituted,
        )

    def discard(self) -> None:
        """Remove what was saved; the directory stays. Never raises."""
        shutil.rmtree(self.place, ignore_errors=True)

    def remove(self) -> None:
        """Remove the directory with all that belongs to the sandbox. Never raises."""
        remove_sandbox(self.directory, records.read_record(self.directory))


def save(sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun) -> SavedKernel:
    """Save the kernel of ``sandbox``, which goes on, so that another process could take it over.

    :raises SnapshotError: when that fails; nothing is left of it then
    """
    saved = save_as(sandbox.directory / SAVED, sandbox, plan, run)
    try:
        sandbox.note_saved(saved.saved)
    except StateError as error:
        saved.discard()
        raise SnapshotError(error.fact, error.hint) from error
    return saved


def save_as(
    place: Path,
    sandbox: SavedSandbox,
    plan: KernelPlan,
    run: SnapshotRun,
    beside: Mapping[str, str] = MappingProxyType({}),
    *,
    flushes: bool = True,
) -> SavedKernel:
    """Save the kernel of ``sandbox``, which goes on, as the folder ``place`` of a private one.

    ``beside``: texts of further files in the folder, by name. ``flushes``: wait until it is on the
    disk.

    :raises SnapshotError: when that fails; nothing is left of it then
    """
    directory = sandbox.directory
    _check_debugger(sandbox, run)
    used, free = sandbox.memory_used() or 0, shutil.disk_usage(directory).free
    if free < used + MIN_LEFT:
        raise SnapshotError(
            f"The kernel has {describe_size(used)} of memory, and the disk of {directory.parent}"
            f" has {describe_size(free)} left.",
            "free disk space there, or set XDG_STATE_HOME to another place.",
        )
    note = _make_note(sandbox, plan, run, time.time())

    def write_image(image: Path) -> None:
        sandbox.checkpoint(image, SAVE_SECONDS, goes_on=True)

    def describe() -> dict[str, str]:
        nonlocal note
        # now that runsc has given up what nobody has open
        files = sandbox.find_shown_files()
        packages = find_packages(files, note.sources)
        note = replace(note, files=files, packages=packages, held=sandbox.find_held())
        return {NOTE: _write_note(note), **beside}

    try:
        write_saved(place, describe, write_image, flushes=flushes)
    except OSError as error:
        raise SnapshotError(
            f"The kernel cannot be saved in {directory}: {error.strerror}.",
            "check whether the disk is full or read-only.",
        ) from error
    return _describe(place, directory, sandbox.identity, note)


def _check_debugger(sandbox: SavedSandbox, run: SnapshotRun) -> None:
    """Check that what would be saved can go on.

    gVisor before April 2026 reports, after a restore, a socket that was restored before and closed
    since then. ZeroMQ's thread, which has freed what the report names, crashes by it.

    :raises SnapshotError: when it could not
    """
    record = records.read_record(sandbox.directory)
    found = re.search(r"20\d{6}", record.runsc if record is not None else "")
    if run.known.get("left_debugger") and found and found[0] < FIXED:
        raise SnapshotError(
            "The debugger was on while the kernel hibernated, and is off now: with gVisor"
            f" {found[0]} it would not go on from what is saved.",
            "restart the kernel; or install a current gVisor with: gvisor-kernel runsc install",
        )


def note_start(sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun) -> None:
    """Write what another process needs to let this kernel go on, if this one is killed.

    Never raises: without it the kernel ends with this process.
    """
    with suppress(OSError, SnapshotError):
        replace_file(sandbox.directory / NOTE, _write_note(_make_note(sandbox, plan, run, 0.0)))


def _make_note(
    sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun, saved: float
) -> SavedFile:
    bare = replace(plan, request=replace(plan.request, environment={}))
    sources = find_sources(sandbox.view.mounts, sandbox.directory)
    return SavedFile(
        run.run, run.key, write_plan(bare), saved, VERSION, sources, {}, dict(run.known)
    )


def _write_note(note: SavedFile) -> str:
    """Return the text of ``note``.

    :raises SnapshotError: when it is too large to be read later
    """
    text = write_json(note)
    if len(text.encode()) > MAX_NOTE:
        raise SnapshotError(
            f"The description of the kernel has {describe_size(len(text))}, and at most"
            f" {describe_size(MAX_NOTE)} are read: it has too many comms or libraries."
        )
    return text


def _describe(place: Path, directory: Path, identity: str, note: SavedFile) -> SavedKernel:
    code, always = "", False
    if note.branch:
        code, always = find_branch_code(note.known, reseeds=note.reseeds)
    run = SnapshotRun(note.run, note.key, code, always, known=note.known)
    return SavedKernel(
        *(directory, place, identity, run, note.plan, measure(place / IMAGE), note.saved),
        *(note.link, dict(note.files), note.packages, note.sources),
        mode=BRANCH if note.branch else WAKE,
    )


def find_saved(kernel_id: str) -> SavedKernel | None:
    """Return the saved kernel of this id whose process has ended, and make it this process's.

    Waits while another process saves it, and saves it if nobody has done that yet. Blocks.

    :raises StateError: when the state directory cannot be used; or when there is such a kernel, and
        it is not saved yet, or cannot be read
    """
    for directory, found in records.find_sandboxes():
        if found.kernel_id != kernel_id or not records.is_orphan(found):
            continue
        try:
            with claimed(directory, CLAIM_SECONDS):
                finish_saving(directory)
                saved = _take_over(directory)
        except FileNotFoundError:
            continue  # it was removed meanwhile
        except OSError as error:
            raise StateError(
                f"The kernel {kernel_id} is being saved in {directory}: {error.strerror}.",
                "start it again when that has ended.",
            ) from error
        if saved is not None:
            return saved
    return None


def _take_over(directory: Path) -> SavedKernel | None:
    """Make a saved kernel this process's, which has claimed it; None if it is none, or another's.

    :raises StateError: when it cannot be taken over
    """
    with records.locked():
        record = records.read_record(directory)
        if record is None or not is_saved(directory, record) or not records.is_orphan(record):
            return None
        if has_run(directory):
            raise StateError(
                f"The sandbox {record.container_id} of the saved kernel has not ended.",
                "run `gvisor-kernel prune`, and start the kernel again.",
            )
        saved = read_saved(directory / SAVED, directory, record.identity)
        if saved is None:
            raise StateError(
                f"What was saved of this kernel in {directory / SAVED} cannot be read.",
                f"use the release that saved it, or give it up: `gvisor-kernel kill"
                f" {record.container_id}`.",
            )
        owner, machine = records.this_process(), records.this_machine()
        records.write_record(directory, replace(record, owner=owner, machine=machine))
        return saved


def check_room(sandbox: SavedSandbox) -> None:
    """Check that there is room for the kernel of ``sandbox`` beside all that are saved.

    :raises SnapshotError: when there is not; a person may save it all the same
    """
    with suppress(StateError, OSError):
        total, room = _measure_all(_find_all())
        size = sandbox.memory_used() or 0
        if total + size > room:
            raise SnapshotError(
                f"Saved kernels have {describe_size(total)}, this one has {describe_size(size)},"
                f" and all may have {describe_size(int(room))}.",
                "give saved kernels up, or let it hibernate by hand.",
            )


def _find_all() -> list[tuple[float, int, Path, records.Record]]:
    """Return time, bytes on disk, directory and record of each saved kernel, the oldest first."""
    return sorted(
        (
            (record.saved, measure(directory / SAVED / IMAGE), directory, record)
            for directory, record in records.find_sandboxes()
            if is_saved(directory, record)
        ),
        key=itemgetter(0),
    )


def _measure_all(found: list[tuple[float, int, Path, records.Record]]) -> tuple[int, float]:
    """Return how many bytes all saved kernels have, and how many they may have."""
    total = sum(size for _, size, _, _ in found)
    return total, min(MAX_SIZE, DISK_SHARE * (total + shutil.disk_usage(state_root()).free))


def remove_old() -> None:
    """Remove what nobody has let go on for KEEP_SECONDS, and the oldest of what is too much.

    Only of processes that have ended. Says in the log what is removed. Never raises.
    """
    with suppress(StateError, OSError):
        found = _find_all()
        total, room = _measure_all(found)
        for saved, size, directory, record in found:
            age = time.time() - saved
            is_kept = age < KEEP_SECONDS and total <= room
            if is_kept or not records.is_orphan(record) or not remove_orphan(directory):
                continue
            log.warning(
                "Removed the saved kernel %s of %s, %.0f days old, %s",
                *(record.container_id, record.folder, age / 86400, describe_size(size)),
            )
            total -= size
    sweep_kept()


def read_saved(place: Path, directory: Path, identity: str) -> SavedKernel | None:
    """Return the kernel that ``save_as`` has saved, None if it cannot be read.

    ``directory``, ``identity``: of its sandbox.
    """
    with suppress(OSError, ValueError, StateError):
        return _describe(place, directory, identity, read_note(place))
    return None


def read_note(place: Path) -> SavedFile:
    """Return what ``save_as`` has written beside the image in ``place``.

    :raises OSError, ValueError: when it cannot be read
    """
    return read_json(read_file(place / NOTE, MAX_NOTE), SavedFile, MAX_NOTE)


def explain(error: GvisorKernelError) -> str:
    """Return what a person reads in the cell for which a saved kernel did not go on."""
    hint = f" What to do: {error.hint}" if error.hint else ""
    return (
        f"The state of this kernel is saved, and it could not go on: {error.fact}{hint} It stays"
        " saved: run the cell again when that is mended, or restart the kernel to begin anew."
    )
