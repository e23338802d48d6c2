"""A kernel that is saved in its sandbox's directory. All functions block.

``runtimes/state/saved`` has the places. Such a sandbox keeps its record, its log, its transcript
and its names on the host. When a kernel is saved, and when it goes on, is decided in
``hibernation``. What was saved outlives its process: another one of the same user may take it over,
once its owner has ended.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.settings import DEFAULT_RUNTIME, SandboxSpec
from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import GvisorKernelError, RuntimeMissing, SnapshotError, StateError
from gvisor_kernel.host.private_directories import replace_file
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, write_plan
from gvisor_kernel.kernel.restore import find_branch_code
from gvisor_kernel.link.events import BRANCH, VERSION, WAKE
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest, Sandbox, SavedSandbox
from gvisor_kernel.runtimes.state import lifeline, records
from gvisor_kernel.runtimes.state.kept_packages import (
    Packages,
    Substitutes,
    find_packages,
    find_substitutes,
    note_shown,
)
from gvisor_kernel.runtimes.state.saved import IMAGE, MAX_NOTE, NOTE, SAVED, is_saved, write_saved
from gvisor_kernel.runtimes.state.sealed import PLAIN, Cipher, Seal, read_note
from gvisor_kernel.runtimes.state.shown_files import find_sources
from gvisor_kernel.runtimes.state.sweep import (
    finish_saving,
    has_run,
    remove_sandbox,
)
from gvisor_kernel.shown_text import describe_size, printable_name
from gvisor_kernel.snapshots.snapshot import measure
from gvisor_kernel.typed_json import read_json, write_json

log = logging.getLogger(__name__)

# by path: below the state directory, whose parents only this user can change

SAVE_SECONDS = 120.0
"""Seconds that the kernel's memory may take to be written. A gigabyte takes one or two."""
FIXED = "20260401"
"""The first day on which a gVisor was built that forgets closed sockets in what it saves."""
IDLE_SECONDS = 1800.0
"""Seconds without anything to do after which a kernel hibernates, unless a setting says more."""
MIN_LEFT = 256 * 1024 * 1024
"""Bytes of the disk that stay free."""
CLAIM_SECONDS = 60.0
"""Seconds that a start waits while another process saves the kernel."""
GRANTING = ("runtime", "uploads", "outputs", "skills", "profile", "transcripts")
"""Settings by which a kernel sees files of the host, or is recorded. Limits, and what was copied
into its memory, are not taken from it."""
OURS = ("start_timeout", "apply", "hibernate_idle_timeout", "hibernate_key", "own")
"""Settings of what this process does for a kernel."""


@dataclass(frozen=True)
class SavedFile:
    """kernel.json. ``key`` signs the kernel's messages inside, and is secret. ``plan``: of
    ``write_plan``, without variables of the server. ``saved``: Unix time. ``link``: the version
    that PID 1 speaks. ``files``: of ``shown_files``, which are found in ``sources``. ``known``:
    see ``SnapshotRun``. ``packages``: of ``kept_packages``. ``held``: of the outputs, see
    ``SavedSandbox.find_held``; so is ``opened``, of the rest. ``branch``: its name, if it is one
    that has not gone on yet, and ``reseeds``: it gets new random numbers."""

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
    opened: tuple[str, ...] = ()
    branch: str = ""
    reseeds: bool = False
    seal: Seal = PLAIN


@dataclass(frozen=True)
class SavedKernel:
    """A kernel that was saved as the folder ``place``, below ``directory``, that of its sandbox.
    ``size``: bytes on disk. ``key``: the setting ``hibernate_key`` by which it was saved."""

    directory: Path
    place: Path
    identity: str
    run: SnapshotRun
    size: int
    note: SavedFile
    key: str
    shown: Mapping[str, str] = field(default_factory=dict)
    """``Substitutes.paths``, once it is to go on."""
    spec: SandboxSpec | None = None
    """The settings with which it goes on elsewhere."""
    withdrawn: tuple[str, ...] = ()
    """What it was started with and may have no more; see ``compare``."""

    @property
    def mode(self) -> str:
        """The mode of its ``Resume``."""
        return BRANCH if self.note.branch else WAKE

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
        note = self.note
        if note.link != VERSION:
            raise SnapshotError(
                f"It was saved by another release of gvisor-kernel, with version {note.link} of the"
                f" link; this one speaks {VERSION}.",
                "install the release that saved it, or restart the kernel to begin anew.",
            )
        return find_substitutes(self.place, note.saved, note.files, note.packages, note.sources)

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
                if self.note.files.get(path, stamp) != stamp:
                    raise SnapshotError(f"{path} was changed while the kernel was to go on.")

    def name_gone(self, error: SnapshotError) -> SnapshotError:
        """Return why it was not restored, which runsc has not said: a file that is gone; or
        ``error`` where all are there, or others are shown in their places."""
        missing = (path for path in self.note.opened if not os.path.lexists(path))
        gone = next((it for it in missing if not any(is_within(it, at) for at in self.shown)), None)
        if gone is None:
            return error
        return SnapshotError(
            f"The kernel has {printable_name(gone)} open, and it is gone.", "put it back."
        )

    @property
    def files(self) -> Path:
        """The image, as it is on the disk."""
        return self.place / IMAGE

    def restore(
        self,
        start: Callable[[SandboxSpec, LaunchRequest, Path], Sandbox],
        spec: SandboxSpec,
        request: LaunchRequest,
        files: Path,
    ) -> Sandbox:
        """Call ``start``, of a runtime, with the image as that has written it. Blocks.

        :raises SnapshotError: when it cannot be decrypted; it stays saved
        """
        if not self.note.seal.salt:
            return start(spec, request, files)
        # If this process is killed, somebody has to remove what is decrypted.
        lifeline.hold(records.this_process(), spec.runtime)
        try:
            with Cipher(self.key).opened(files, self.note.seal) as plain:
                return start(spec, request, plain)
        finally:
            lifeline.release()

    def compare(self, plan: KernelPlan) -> SavedKernel:
        """Return this kernel, which does not go on if ``plan`` grants less than it has."""
        own, now = read_plan(self.note.plan, b"").spec, plan.spec
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
        own = read_plan(self.note.plan, b"")
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
        sandbox.note_saved(saved.note.saved, plan.keeper)
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
) -> SavedKernel:
    """Save the kernel of ``sandbox``, which goes on, as the folder ``place`` of a private one.

    ``beside``: texts of further files in the folder, by name.

    :raises SnapshotError: when that fails; nothing is left of it then
    """
    directory = sandbox.directory
    record = records.read_record(directory)
    if record is None:
        raise SnapshotError(f"The record in {directory} cannot be read.")
    _check_debugger(record.runsc, run)
    used, free = sandbox.memory_used() or 0, shutil.disk_usage(directory).free
    if free < used + MIN_LEFT:
        raise SnapshotError(
            f"The kernel has {describe_size(used)} of memory, and the disk of {directory.parent}"
            f" has {describe_size(free)} left.",
            "free disk space there, or set XDG_STATE_HOME to another place.",
        )
    note, cipher = _make_note(sandbox, plan, run, time.time()), Cipher(plan.spec.hibernate_key)
    checkpoint = partial(sandbox.checkpoint, seconds=SAVE_SECONDS)

    def describe(seal: Seal) -> dict[str, str]:
        nonlocal note
        # now that runsc has given up what nobody has open
        files = sandbox.find_shown_files()
        packages = find_packages(files, note.sources)
        held, written, opened = sandbox.find_held()
        note = replace(note, files=files, packages=packages, seal=seal)
        note = replace(note, held=(held, written), opened=opened)
        return {NOTE: cipher.write_note(_write_note(note), directory.name), **beside}

    try:
        write_saved(place, lambda it: cipher.write_image(it, record, checkpoint), describe)
    except OSError as error:
        raise SnapshotError(
            f"The kernel cannot be saved in {directory}: {error.strerror}.",
            "check whether the disk is full or read-only.",
        ) from error
    return _describe(place, directory, sandbox.identity, note, plan.spec.hibernate_key)


def refuse_runtime(name: str) -> SnapshotError:
    """Return the error for whoever wants a kernel of a runtime saved that saves none."""
    return SnapshotError(
        f"A kernel of the runtime {name} cannot be saved.",
        f"set runtime={DEFAULT_RUNTIME} for kernels whose state is to last.",
    )


def _check_debugger(runsc: str, run: SnapshotRun) -> None:
    """Check that what would be saved by this release of ``runsc`` can go on.

    gVisor before April 2026 reports, after a restore, a socket that was restored before and closed
    since then. ZeroMQ's thread, which has freed what the report names, crashes by it.

    :raises SnapshotError: when it could not
    """
    date = _find_date(runsc)
    if run.known.get("left_debugger") and "" < date < FIXED:
        raise SnapshotError(
            "The debugger was on while the kernel hibernated, and is off now: with gVisor"
            f" {date} it would not go on from what is saved.",
            "restart the kernel; or install a current gVisor with: gvisor-kernel runsc install",
        )


def goes_on_always(spec: SandboxSpec) -> bool:
    """Return whether gVisor restores each kernel as often as it hibernates: one that does not must
    not hibernate unless somebody wants it. Takes milliseconds.
    """
    try:
        return _find_date(get_runtime(spec.runtime).find_version(spec.runsc)) >= FIXED
    except RuntimeMissing:
        return False


def find_idle_seconds(spec: SandboxSpec) -> float:
    """Return the seconds after which a kernel with nothing to do hibernates; 0 for never."""
    if spec.hibernate_idle_timeout is None:
        return IDLE_SECONDS if goes_on_always(spec) else 0.0
    return spec.hibernate_idle_timeout


def _find_date(version: str) -> str:
    found = re.search(r"20\d{6}", version)
    return found[0] if found else ""


def note_start(sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun) -> None:
    """Write what another process needs to let this kernel go on, if this one is killed.

    Never raises: without it the kernel ends with this process.
    """
    path = sandbox.directory / NOTE
    record = records.read_record(sandbox.directory)
    with suppress(OSError, StateError):
        if record is not None and record.keeper != plan.keeper:
            records.change_record(sandbox.directory, record, keeper=plan.keeper)
        try:
            text = _write_note(_make_note(sandbox, plan, run, 0.0))
            cipher = Cipher(plan.spec.hibernate_key)
            replace_file(path, cipher.write_note(text, sandbox.directory.name))
        except SnapshotError:
            path.unlink(missing_ok=True)  # it could be that of another key, or of none


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

    :raises SnapshotError: when it could not be read later
    """
    text = write_json(note)
    try:
        read_json(text, SavedFile, MAX_NOTE)
    except ValueError as error:
        raise SnapshotError(
            f"The description of the kernel could not be read again: {error}.",
            "restart the kernel; it may have too many comms or libraries.",
        ) from error
    return text


def _describe(
    place: Path, directory: Path, identity: str, note: SavedFile, key: str
) -> SavedKernel:
    code, always = "", False
    if note.branch:
        code, always = find_branch_code(note.known, reseeds=note.reseeds)
    run = SnapshotRun(note.run, note.key, code, always, known=note.known)
    return SavedKernel(directory, place, identity, run, measure(place / IMAGE), note, key)


def find_saved(kernel_id: str, directory: Path | None = None) -> SavedKernel | None:
    """Return the saved kernel of this id whose process has ended, and make it this process's.

    Waits while another process saves it, and saves it if nobody has done that yet. Blocks.

    ``directory``: that of its sandbox, where it is known.

    :raises StateError: when the state directory cannot be used; or when there is such a kernel, and
        it is not saved yet, or cannot be read
    """
    known = [(directory, records.read_record(directory))] if directory is not None else []
    for directory, found in known or records.find_sandboxes():
        if found is None or found.kernel_id != kernel_id or not records.is_orphan(found):
            continue
        try:
            with records.claimed(directory, CLAIM_SECONDS):
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
        try:
            saved = read_saved(directory / SAVED, directory, record.identity)
        except SnapshotError as error:
            raise StateError(error.fact, error.hint) from error
        if saved is None:
            raise StateError(
                f"What was saved of this kernel in {directory / SAVED} cannot be read.",
                f"use the release that saved it, or give it up: `gvisor-kernel kill"
                f" {record.container_id}`.",
            )
        owner, machine = records.this_process(), records.this_machine()
        records.write_record(directory, replace(record, owner=owner, machine=machine))
        return saved


def read_saved(place: Path, directory: Path, identity: str) -> SavedKernel | None:
    """Return the kernel that ``save_as`` has saved, None if it cannot be read.

    ``directory``, ``identity``: of its sandbox.

    :raises SnapshotError: when it cannot be decrypted
    """
    with suppress(OSError, ValueError, StateError):
        text, key = read_note(place / NOTE, directory.name)
        return _describe(place, directory, identity, read_json(text, SavedFile, MAX_NOTE), key)
    return None


def explain(error: GvisorKernelError) -> str:
    """Return what a person reads in the cell for which a saved kernel did not go on."""
    hint = f" What to do: {error.hint.rstrip('.')}." if error.hint else ""
    return (
        f"The state of this kernel is saved, and it could not go on: {error.fact}{hint} It stays"
        " saved: run the cell again when that is mended, or restart the kernel to begin anew."
    )
