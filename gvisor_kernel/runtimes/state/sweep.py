"""Removes a sandbox completely, by what its record says: for ``close``, ``kill`` and the sweep."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gvisor_kernel.config.settings import find_entry
from gvisor_kernel.errors import RuntimeMissing, StateError
from gvisor_kernel.host import cgroups, processes
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import Identity, Opened, open_real, reopen
from gvisor_kernel.host.memory_folder import sweep_memory
from gvisor_kernel.host.owners import change_owner
from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME, SUBUID_BASE, SUBUID_COUNT
from gvisor_kernel.runtimes.mounts.plan import Places
from gvisor_kernel.runtimes.mounts.written_folders import forget_written
from gvisor_kernel.runtimes.state import pages, records
from gvisor_kernel.runtimes.state.leftovers import LEFTOVERS
from gvisor_kernel.runtimes.state.listed import read_memory
from gvisor_kernel.runtimes.state.packer import Packer
from gvisor_kernel.runtimes.state.records import Record
from gvisor_kernel.runtimes.state.saved import SAVED, is_kept, is_saved, mend

log = logging.getLogger(__name__)

BRANCHES = "branches"
"""The folder in a kernel's outputs that has those of its branches."""
FOREGROUND_SECONDS = 1.0
"""Seconds that a runsc in the foreground may take to notice that its sandbox has ended."""
OUTPUTS_SECONDS = 10.0
"""Seconds that a start waits for an earlier sandbox's outputs that are copied to its own folder."""
LATER_SECONDS = 1800.0
"""Seconds that the copy of outputs may take when nobody waits for it."""
AT_ONCE = 2
"""Sandboxes that are saved or removed at the same time."""
END_SECONDS = 5.0
"""A killed process that has not ended after this time hangs in the host's kernel."""


def root_argument(directory: Path) -> str:
    """Return the argument that every process of the sandbox in ``directory`` was started with."""
    return f"--root={directory / 'runsc'}"  # no runtime: see ``Places.runsc``


def kill_sandbox(directory: Path, groups: Sequence[Path], *, wholly: bool = False) -> list[int]:
    """Send SIGKILL to the processes of a sandbox; return their pids. Does not wait, never raises.

    Only the sentry and the gofer, if there are any: a runsc in the foreground then ends by itself,
    and reaps its children. With ``wholly``, or if there are none: every process.
    """
    argument = root_argument(directory)
    killed: list[int] = []
    with suppress(OSError):
        if not wholly:
            killed = processes.kill_with_argument(argument, (SANDBOX_NAME, GOFER_NAME))
        if not killed:
            killed = processes.kill_with_argument(argument)
            killed += cgroups.kill_cgroup(groups)
    return killed


def end_sandbox(directory: Path, groups: Sequence[Path]) -> bool:
    """Kill the processes of a sandbox and wait for their end; return whether all have ended.

    Blocks for at most END_SECONDS and FOREGROUND_SECONDS. Never raises.
    """
    deadline = time.monotonic() + END_SECONDS
    if kill_sandbox(directory, groups):
        remaining = processes.find_with_argument(root_argument(directory))
        processes.wait_until_gone(remaining, time.monotonic() + FOREGROUND_SECONDS)
    while killed := kill_sandbox(directory, groups, wholly=True):
        if not processes.wait_until_gone(killed, deadline):
            log.warning("Processes of %s did not end after SIGKILL: %s", directory.name, killed)
            return False
    if not cgroups.remove_cgroup(groups, deadline):
        log.warning("Could not remove the cgroup of %s", directory.name)
        return False
    return True


def remove_sandbox(directory: Path, record: Record | None, lent: Opened | None = None) -> bool:
    """End a sandbox and remove everything that belongs to it; return whether nothing is left.

    What is left waits for the next sweep, and for the next ``finish_removals`` of this process,
    which may live for long; a sandbox in an engine is removed in the background. ``lent`` is its
    folder of outputs, if that is held open; otherwise it is opened by its name. Blocks for seconds.
    Never raises.
    """
    if _remove_sandbox(directory, record, lent):
        _unfinished.pop(directory, None)
        return True
    if record is not None and find_remover(record) is not None:
        remove_in_background(directory, record)
    else:
        _unfinished[directory] = record
    return False


def retire_sandbox(directory: Path, record: Record | None, lent: Opened | None = None) -> bool:
    """End a sandbox whose kernel was saved in its directory; return whether nothing of it runs.

    What a next sandbox makes anew is removed from the directory. Blocks for seconds. Never raises.
    """
    groups = [Path(group) for group in record.cgroups] if record is not None else []
    if not end_sandbox(directory, groups):
        return False
    if record is not None and record.lent_by is not None and lent is not None:
        give_back(lent, record.lent_by)
    places = Places(directory)
    # ``runsc`` last: see ``has_run``
    for folder in (places.bundle, places.rootfs, places.covers, places.empty, places.runsc):
        shutil.rmtree(folder, ignore_errors=True)  # by path: below the state directory
    mend(directory)
    return True


Remover = Callable[[Path, Record, float | None], bool]


def find_remover(record: Record) -> Remover | None:
    """Return ``remove`` of the entry of the sandbox's runtime; None if that needs none."""
    try:
        return find_entry(record.runtime).remove
    except RuntimeMissing as error:
        log.warning("Could not remove %s: %s", record.identity, error)
        return lambda directory, record, seconds: False


def remove_in_background(directory: Path, record: Record) -> None:
    """Remove a sandbox of an engine in the background, however long copying its outputs takes."""

    def remove() -> bool:
        return not directory.exists() or _remove_sandbox(directory, record, seconds=LATER_SECONDS)

    LEFTOVERS.put(directory, record.outputs, remove)


def finish_removals(outputs: str | None = None) -> None:
    """Try again what ``remove_sandbox`` could not remove, as when no more files could be opened.

    Does not wait for sandboxes in an engine, except for those whose outputs are copied to the
    folder ``outputs``: for them at most OUTPUTS_SECONDS.
    """
    for directory, record in list(_unfinished.items()):
        remove_sandbox(directory, record)
    LEFTOVERS.try_soon(outputs, OUTPUTS_SECONDS)


_unfinished: dict[Path, Record | None] = {}
_told: set[Path] = set()


def _remove_sandbox(
    directory: Path,
    record: Record | None,
    lent: Opened | None = None,
    seconds: float | None = None,
) -> bool:
    """``seconds``: how long the copy of outputs may take; None: as long as at an end."""
    groups = [Path(group) for group in record.cgroups] if record is not None else []
    if not end_sandbox(directory, groups):
        return False
    Packer.instance().leave(directory / pages.FOLDER)
    remove_parts = find_remover(record) if record is not None else None
    if record is not None and remove_parts is not None:
        # `gvisor-kernel sync --to` may have changed the folder of its outputs meanwhile.
        record = records.read_record(directory) or record
        if not remove_parts(directory, record, seconds):
            return False
    try:
        with records.locked():
            # Another sandbox may have left the folder of outputs to this one meanwhile.
            record = records.read_record(directory) or record
            if record is not None and record.outputs is not None:
                _finish_outputs(record, directory, lent)
            records.remove_directory(directory)
    except StateError as error:
        log.warning("%s", error)
        return False
    return not directory.exists()


def _finish_outputs(record: Record, directory: Path, lent: Opened | None) -> None:
    """Give back an outputs folder that was lent; remove one that this sandbox has made and is
    empty.

    While another sandbox has the same folder, both are left to that one.
    """
    for other, theirs in records.find_sandboxes():
        if other != directory and _have_same_outputs(theirs, record):
            made = theirs.made_outputs or record.made_outputs
            heir = replace(theirs, made_outputs=made, lent_by=theirs.lent_by or record.lent_by)
            if heir != theirs:
                records.write_record(other, heir)
            return
    if record.outputs is None or record.outputs_file is None or record.outputs_parent is None:
        return
    outputs, same_boot = record.outputs, records.is_of_this_boot(record)
    owner = record.lent_by
    try:
        if owner is not None and lent is not None:
            give_back(lent, owner)
            owner = None
        with reopen(outputs, Identity(*record.outputs_file), same_boot=same_boot) as folder:
            if owner is not None:
                give_back(folder, owner)
        parent, name = os.path.split(outputs)
        with reopen(parent, Identity(*record.outputs_parent), same_boot=same_boot) as above:
            if record.made_outputs:
                try:
                    os.rmdir(name, dir_fd=above.fd)
                except OSError:
                    _leave_to_branches(outputs)
                    return
                forget_written(Identity(*record.outputs_file))
                if parent.endswith(f"/{BRANCHES}"):  # of a branch; goes with the last one
                    with suppress(OSError):
                        _remove_beside(above, record)
    except OSError as error:
        if owner is not None:
            log.warning(
                "Could not give %s back to its owner after a sandbox has used it: %s. The owner is"
                " uid %d.",
                *(outputs, error.strerror, owner[0]),
            )


def _leave_to_branches(outputs: str) -> None:
    """Leave a folder that an ended sandbox has made, with those of its branches, to these."""
    for other, theirs in records.find_sandboxes():
        if os.path.split(theirs.outputs or "")[0] == f"{outputs}/{BRANCHES}":
            records.write_record(other, replace(theirs, made_above=True))


def _remove_beside(folder: Opened, record: Record) -> None:
    """Remove what has the name of ``folder``, if that is an empty folder; and the one above it, if
    that was left to ``record``'s branch and is nobody else's."""
    outputs = os.path.split(folder.path)[0]
    with open_real(outputs) as parent:
        os.rmdir(BRANCHES, dir_fd=parent.fd)
    if record.made_above:
        for other, theirs in records.find_sandboxes():
            if theirs.outputs == outputs:
                records.write_record(other, replace(theirs, made_outputs=True))
                return
        above, name = os.path.split(outputs)
        with open_real(above) as grandparent:
            os.rmdir(name, dir_fd=grandparent.fd)


def _have_same_outputs(theirs: Record, record: Record) -> bool:
    return theirs.outputs == record.outputs or (
        theirs.outputs_file is not None and theirs.outputs_file == record.outputs_file
    )


def lend(outputs: Opened, owner: tuple[int, int], kernel: int) -> None:
    """Make ``kernel`` (a uid and gid of the host) the owner of ``outputs`` and of ``owner``'s files
    in it.

    Files with more than one hard link are left alone: another name may lie elsewhere.

    :raises OSError: when the owner of the folder itself could not be changed
    """
    change_owner(outputs.fd, kernel, kernel)

    def is_lent(status: os.stat_result) -> bool:
        return status.st_uid == owner[0] and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1)

    _change_owners(outputs, is_lent, (kernel, kernel))


def give_back(outputs: Opened, owner: tuple[int, int]) -> None:
    """Make ``owner`` the owner of everything in ``outputs`` that a sandbox owns. Never raises."""

    def is_the_sandboxs(status: os.stat_result) -> bool:
        return SUBUID_BASE <= status.st_uid < SUBUID_BASE + SUBUID_COUNT

    with suppress(OSError):
        if is_the_sandboxs(outputs.status()):
            change_owner(outputs.fd, *owner)
    _change_owners(outputs, is_the_sandboxs, owner)


def _change_owners(
    folder: Opened, is_affected: Callable[[os.stat_result], bool], owner: tuple[int, int]
) -> None:
    """Change the owner of everything in ``folder`` that ``is_affected`` accepts. Never raises.

    Follows no symbolic link. Works at any depth: a kernel may have made folders as deep as it
    liked.
    """
    with suppress(OSError):
        fd = folder.read()
        try:
            above = [(_identity(fd), _change_entries(fd, is_affected, owner))]
            while above:
                _, folders = above[-1]
                step = folders.pop() if folders else ".."
                if step == "..":
                    above.pop()
                    if not above:
                        return
                try:
                    reached = os.open(step, _FOLDER, dir_fd=fd)
                except OSError:
                    if step == "..":
                        raise
                    continue
                os.close(fd)
                fd = reached
                if step != "..":
                    above.append((_identity(fd), _change_entries(fd, is_affected, owner)))
                elif _identity(fd) != above[-1][0]:
                    return  # it was moved meanwhile, so another folder may be above it now
        finally:
            os.close(fd)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _change_entries(
    fd: int, is_affected: Callable[[os.stat_result], bool], owner: tuple[int, int]
) -> list[str]:
    """Change the owners of the entries of an open folder; return the names of the folders in it."""
    folders: list[str] = []
    with suppress(OSError), os.scandir(fd) as entries:
        for entry in entries:
            with suppress(OSError):
                # Held open: its name could lead to another file a moment later.
                held = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                with closing_fd(held):
                    status = os.fstat(held)
                    if is_affected(status):
                        change_owner(held, *owner)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
    return folders


@dataclass(frozen=True)
class _Orphan:
    """A sandbox without its owner, which this process has claimed until ``claim`` is closed."""

    directory: Path
    record: Record | None
    claim: ExitStack


def sweep_orphans(runtime: str | None = None) -> list[str]:
    """Remove this user's sandboxes whose owner has died; return their identities.

    Only those of ``runtime`` if that is given, and not what another process has claimed. A
    directory without a record was left by a crash while it was made or removed.

    :raises StateError: when the state directory cannot be read
    """
    with ExitStack() as claims:
        orphans = []
        for directory, _ in find_orphans(runtime):
            orphan = _claim(directory, runtime)
            if orphan is not None:
                claims.callback(orphan.claim.close)
                orphans.append(orphan)
                _hold(orphan.record)
        # Whoever takes long to be saved comes last, and takes the time of at most one other.
        orphans.sort(key=lambda it: (it.record and read_memory(it.record)) or 0)
        with ThreadPoolExecutor(AT_ONCE) as workers:
            removed = list(workers.map(_sweep_claimed, orphans))
    sweep_memory()
    return [
        orphan.record.identity if orphan.record is not None else orphan.directory.name
        for orphan, is_removed in zip(orphans, removed, strict=True)
        if is_removed
    ]


def _claim(directory: Path, runtime: str | None) -> _Orphan | None:
    with ExitStack() as claim, suppress(OSError):
        claim.enter_context(records.claimed(directory))
        with records.locked():
            record = records.read_record(directory)
            if _is_left(directory, record, runtime):
                return _Orphan(directory, record, claim.pop_all())
    return None


def _hold(record: Record | None) -> None:
    """Stop a sandbox whose kernel is to be saved: it waits for that as long as it does not run."""
    with suppress(RuntimeMissing, OSError):
        if record is not None and find_entry(record.runtime).save is not None:
            sentry = record.processes.get("sentry")
            if sentry is not None and processes.is_alive(sentry):
                os.kill(sentry.pid, signal.SIGSTOP)


def _sweep_claimed(orphan: _Orphan) -> bool:
    with orphan.claim:
        return _sweep(orphan.directory, orphan.record)


def _sweep(directory: Path, record: Record | None) -> bool:
    """End a sandbox, and remove it, but for a kernel that was saved in it, or is saved now, and
    that somebody may take over."""
    if record is not None and not is_saved(directory, record):
        with suppress(RuntimeMissing):
            save = find_entry(record.runtime).save
            if save is not None and save(directory, record):
                record = records.read_record(directory) or record
    if record is not None and is_kept(directory, record):
        retire_sandbox(directory, record)
        return False
    return remove_sandbox(directory, record)


def finish_saving(directory: Path) -> None:
    """Save the kernel of a sandbox whose owner has died, if that was not done, and end the sandbox.

    The caller has claimed ``directory``.

    :raises StateError: when the state directory cannot be used
    """
    with records.locked():
        record = records.read_record(directory)
        is_left = record is not None and _is_left(directory, record, None)
    with suppress(RuntimeMissing):
        if record is not None and is_left and find_entry(record.runtime).save is not None:
            _sweep(directory, record)


def remove_orphan(directory: Path) -> bool:
    """Remove a saved kernel whose owner has died; return whether nothing of it is left.

    False if another process has claimed it, or has let it go on. Never raises.
    """
    with suppress(OSError, StateError), records.claimed(directory):
        with records.locked():
            record = records.read_record(directory)
        if record is not None and records.is_orphan(record):
            # Not tried again by ``finish_removals``: another process may take it over until then.
            return _remove_sandbox(directory, record)
    return False


def has_run(directory: Path) -> bool:
    """Return whether a sandbox was made in ``directory`` that was not ended wholly."""
    return Places(directory).runsc.exists()


def find_orphans(runtime: str | None = None) -> list[tuple[Path, Record | None]]:
    """Return what ``sweep_orphans`` removes.

    :raises StateError: when the state directory cannot be read
    """
    with records.locked():
        found = [(path, records.read_record(path)) for path in records.sandbox_directories()]
        return [(path, record) for path, record in found if _is_left(path, record, runtime)]


def _is_left(directory: Path, record: Record | None, runtime: str | None) -> bool:
    if record is None:
        return directory.is_dir() and not _is_saved_unread(directory)
    if runtime not in (None, record.runtime) or not records.is_orphan(record):
        return False
    return has_run(directory) or not is_kept(directory, record)


def _is_saved_unread(directory: Path) -> bool:
    """Return whether a kernel was saved there whose record cannot be read; say so once."""
    if not (directory / records.RECORD).exists() or not (directory / SAVED).is_dir():
        return False
    if directory not in _told:
        _told.add(directory)
        log.warning(
            "What was saved of a kernel in %s stays, and is not listed: %s there cannot be read."
            " Use the release that has written it, or remove the folder.",
            *(directory, records.RECORD),
        )
    return True
