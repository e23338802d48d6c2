"""A kernel that is saved in its sandbox's directory. All functions block.

``runtimes/state/saved`` has the places. Such a sandbox keeps its record, its log, its transcript
and its names on the host. When a kernel is saved, and when it goes on, is decided in
``hibernation``. What was saved outlives its process: another one of the same user may take it over,
once its owner has ended.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from gvisor_kernel.bridge import SnapshotRun
from gvisor_kernel.config.validators import GIB
from gvisor_kernel.errors import SnapshotError, StateError
from gvisor_kernel.host.private_directories import read_file, replace_file, state_root
from gvisor_kernel.kernel.plan import KernelPlan, read_plan, write_plan
from gvisor_kernel.link.events import VERSION
from gvisor_kernel.runtimes.base import SavedSandbox
from gvisor_kernel.runtimes.state import records
from gvisor_kernel.runtimes.state.saved import IMAGE, NOTE, SAVED, is_saved, write_saved
from gvisor_kernel.runtimes.state.shown_files import Stamps, find_change, find_sources
from gvisor_kernel.runtimes.state.sweep import remove_sandbox
from gvisor_kernel.shown_text import describe_size
from gvisor_kernel.snapshots.snapshot import measure
from gvisor_kernel.typed_json import read_json, write_json

log = logging.getLogger(__name__)

# by path: below the state directory, whose parents only this user can change

SAVE_SECONDS = 120.0
"""Seconds that the kernel's memory may take to be written. A gigabyte takes one or two."""
MIN_LEFT = 256 * 1024 * 1024
"""Bytes of the disk that stay free."""
KEEP_SECONDS = 30 * 86400.0
"""Seconds that a kernel is kept which no process has taken over."""
MAX_SIZE, DISK_SHARE = 50 * GIB, 0.2
"""Bytes of all saved kernels, and their share of the disk space that would be free without."""
MAX_FILE = 1024 * 1024
"""Bytes of kernel.json."""


@dataclass(frozen=True)
class _File:
    """kernel.json. ``key`` signs the kernel's messages inside, and is secret. ``plan``: of
    ``write_plan``, without variables of the server. ``saved``: Unix time. ``link``: the version
    that PID 1 speaks. ``files``: of ``shown_files``, which are found in ``sources``. ``known``:
    see ``SnapshotRun``."""

    run: int
    key: str
    plan: dict[str, Any]
    saved: float
    link: int
    sources: dict[str, str]
    files: dict[str, tuple[int, int, int]]
    known: dict[str, Any] = field(default_factory=dict)


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

    def check(self) -> None:
        """Check that the kernel can go on with what this machine has now.

        :raises SnapshotError: when it cannot; it stays saved
        """
        change = find_change(self.libraries)
        if change is not None:
            raise SnapshotError(
                f"{change} since the kernel was saved, and it would map half of another version.",
                "install the version that was there, or restart the kernel to begin anew.",
            )
        if self.link != VERSION:
            raise SnapshotError(
                f"It was saved by another release of gvisor-kernel, with version {self.link} of the"
                f" link; this one speaks {VERSION}.",
                "install the release that saved it, or restart the kernel to begin anew.",
            )

    @property
    def files(self) -> Path:
        """The directory that a runtime restores from."""
        return self.place / IMAGE

    def adapt(self, plan: KernelPlan) -> KernelPlan:
        """Return ``plan``, for a kernel of the same name and folder, as this one was started.

        Keys, addresses and routes are those of ``plan``.
        """
        own = read_plan(dict(self.plan), b"")
        egress = tuple(name for name in own.spec.egress if name in plan.spec.egress)
        return replace(
            plan,
            spec=replace(own.spec, egress=egress),
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
    sandbox.note_saved(saved.saved)
    return saved


def save_as(place: Path, sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun) -> SavedKernel:
    """Save the kernel of ``sandbox``, which goes on, as the folder ``place`` below its directory.

    :raises SnapshotError: when that fails; nothing is left of it then
    """
    directory = sandbox.directory
    used, free = sandbox.memory_used() or 0, shutil.disk_usage(directory).free
    if free < used + MIN_LEFT:
        raise SnapshotError(
            f"The kernel has {describe_size(used)} of memory, and the disk of {directory.parent}"
            f" has {describe_size(free)} left.",
            "free disk space there, or set XDG_STATE_HOME to another place.",
        )
    note = _make_note(sandbox, plan, run, time.time())
    note = replace(note, files=sandbox.find_shown_files())

    def write_image(image: Path) -> None:
        sandbox.checkpoint(image, SAVE_SECONDS, goes_on=True)

    try:
        write_saved(place, write_json(note), write_image)
    except OSError as error:
        raise SnapshotError(
            f"The kernel cannot be saved in {directory}: {error.strerror}.",
            "check whether the disk is full or read-only.",
        ) from error
    return _describe(place, directory, sandbox.identity, note)


def note_start(sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun) -> None:
    """Write what another process needs to let this kernel go on, if this one is killed.

    Never raises: without it the kernel ends with this process.
    """
    with suppress(OSError):
        replace_file(sandbox.directory / NOTE, write_json(_make_note(sandbox, plan, run, 0.0)))


def _make_note(sandbox: SavedSandbox, plan: KernelPlan, run: SnapshotRun, saved: float) -> _File:
    bare = replace(plan, request=replace(plan.request, environment={}))
    sources = find_sources(sandbox.view.mounts, sandbox.directory)
    return _File(run.run, run.key, write_plan(bare), saved, VERSION, sources, {}, dict(run.known))


def _describe(place: Path, directory: Path, identity: str, note: _File) -> SavedKernel:
    run, size = SnapshotRun(note.run, note.key, known=note.known), measure(place / IMAGE)
    libraries = dict(note.files)
    return SavedKernel(
        *(directory, place, identity, run, note.plan, size, note.saved, note.link, libraries)
    )


def find_saved(kernel_id: str, directory: Path | None = None) -> SavedKernel | None:
    """Return the saved kernel of this id whose process has ended, and make it this process's.

    ``directory``: that of its sandbox, where it is known.

    :raises StateError: when the state directory cannot be used
    """
    found = records.find_directories(kernel_id) if directory is None else [directory]
    if not any((path / SAVED).is_dir() for path in found):
        return None
    with records.locked():
        for directory in found:
            record = records.read_record(directory)
            if record is None or record.kernel_id != kernel_id or not record.saved:
                continue
            if not records.is_orphan(record):
                continue
            saved = read_saved(directory / SAVED, directory, record.identity)
            if saved is None:
                continue
            owner, machine = records.this_process(), records.this_machine()
            records.write_record(directory, replace(record, owner=owner, machine=machine))
            return saved
    return None


def remove_old() -> None:
    """Remove what nobody has let go on for KEEP_SECONDS, and the oldest of what is too much.

    Only of processes that have ended. Says in the log what is removed. Never raises.
    """
    with suppress(StateError, OSError):
        found = []
        for directory, record in records.find_sandboxes():
            if is_saved(directory, record):
                found.append((record.saved, measure(directory / SAVED / IMAGE), directory, record))
        total = sum(size for _, size, _, _ in found)
        room = min(MAX_SIZE, DISK_SHARE * (total + shutil.disk_usage(state_root()).free))
        for saved, size, directory, record in sorted(found, key=itemgetter(0)):
            age = time.time() - saved
            if not records.is_orphan(record) or (age < KEEP_SECONDS and total <= room):
                continue
            log.warning(
                "Removed the saved kernel %s of %s, %.0f days old, %s",
                *(record.container_id, record.folder, age / 86400, describe_size(size)),
            )
            remove_sandbox(directory, record)
            total -= size


def read_saved(place: Path, directory: Path, identity: str) -> SavedKernel | None:
    """Return the kernel that ``save_as`` has saved, None if it cannot be read.

    ``directory``, ``identity``: of its sandbox.
    """
    with suppress(OSError, ValueError, StateError):
        file = read_json(read_file(place / NOTE, MAX_FILE), _File, MAX_FILE)
        return _describe(place, directory, identity, file)
    return None
