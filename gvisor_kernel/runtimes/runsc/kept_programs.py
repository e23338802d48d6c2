"""The very runsc of running kernels, also once another file is at its path.

A kernel keeps its runsc until its end, and restarts with it. So a program is named by its path and
by what tells its files from others. A process that starts sandboxes holds these files open. When
the path leads to others, as after an update of the distribution's package, they are copied into
this user's store of releases, where the user's other processes find them. What was never replaced
is never copied there; for saved kernels see ``state/kept_packages``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from operator import attrgetter
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS
from gvisor_kernel.errors import ReleaseError, RuntimeMissing, StateError
from gvisor_kernel.host.folders import open_path
from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.releases import release_store
from gvisor_kernel.releases.release_store import PROGRAM, SIDECARS, SYSTEM, Release
from gvisor_kernel.runtimes.mounts.written_folders import read_written
from gvisor_kernel.runtimes.state.records import find_sandboxes, is_orphan
from gvisor_kernel.runtimes.state.shown_files import Stamps, stamp

# by path: below a store, whose folders only its owner or root can change

KEEP_SECONDS = 3600.0
"""Seconds after its last use until a copy that no sandbox runs with is removed. A start has found
it some milliseconds before its sandbox has a record."""

_held: dict[str, dict[str, int]] = {}
"""The open files of each program that this process has used, by their names beside it. They stay
open: whether a kernel of this process may still restart, nobody here knows."""
_lock = ThreadLock()


def name_program(path: str, fingerprint: str) -> str:
    """Return a name for the very files of a program, which no path is."""
    return f"{path}\n{fingerprint}"


def split_program(program: str) -> tuple[str, str]:
    """Return the path in a name, and what tells its files from others."""
    path, _, fingerprint = program.partition("\n")
    return path, fingerprint


def list_files(path: str) -> dict[str, str]:
    """Return the paths of a program and of its sidecars, by their names beside it."""
    files = {PROGRAM: path}
    with suppress(OSError), os.scandir(Path(path).parent / SIDECARS) as entries:
        for entry in sorted(entries, key=attrgetter("name")):
            files[f"{SIDECARS}/{entry.name}"] = entry.path
    return files


def describe_files(statuses: Iterable[os.stat_result]) -> str:
    """Return times, sizes and inodes: another file at the same path differs, also where all files
    of a system have the same time."""
    return "-".join(f"{s.st_mtime_ns}-{s.st_size}-{s.st_ino}" for s in statuses)


def is_script(path: str) -> bool:
    """Return whether the program at ``path`` is a script. What answers then is a program that the
    script starts: when that is replaced, the script stays as it is."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return True


def hold(program: str) -> None:
    """Hold a program's files open until this process ends, unless others are in their place. Not
    those of a script: a copy of it would start the same program as it does."""
    path, fingerprint = split_program(program)
    with _lock, ExitStack() as opened, suppress(OSError):
        if program in _held or is_script(path):
            return
        files: dict[str, int] = {}
        for name, place in list_files(path).items():
            files[name] = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, files[name])
        if describe_files(map(os.fstat, files.values())) == fingerprint:
            _held[program] = files
            opened.pop_all()


def find_files(program: str) -> Stamps:
    """Return the files of a program, which a saved kernel needs; none if others are in their place,
    as its copy is kept then."""
    path, fingerprint = split_program(program)
    with suppress(OSError):
        found = {file: Path(file).stat() for file in list_files(path).values()}
        if describe_files(found.values()) == fingerprint and not is_script(path):
            return {file: stamp(status) for file, status in found.items()}
    return {}


def hold_kept(program: str, kept: Mapping[str, str]) -> dict[str, str]:
    """Hold the copies that were kept of a program's files for a saved kernel, if it was replaced.

    ``kept``: copies by the paths that they stand for. Returns the others.
    """
    path = split_program(program)[0]
    beside = f"{Path(path).parent / SIDECARS}/"
    own = {f"{SIDECARS}/{file.removeprefix(beside)}": file for file in kept if beside in file}
    if path in kept:
        own[PROGRAM] = path
    with _lock, suppress(OSError):
        if own and program not in _held:
            _held[program] = {
                name: os.open(kept.get(file, file), os.O_RDONLY | os.O_CLOEXEC)
                for name, file in {**list_files(path), **own}.items()
            }
    return {file: tree for file, tree in kept.items() if file not in own.values()}


def find_copy(program: str, version: str) -> str | None:
    """Return the path of the copy of a program that was replaced. It is made if this process holds
    the program, which takes a second. None: it cannot be had any more, or not be run there."""
    name = f"{SYSTEM}-{hashlib.sha256(program.encode()).hexdigest()[:8]}"
    with suppress(ReleaseError, OSError):
        found = {one.source: one for one in release_store.find_releases() if one.name == name}
        copy = found.get(program) or _copy(name, program, version)
        if copy is not None:
            os.utime(copy.directory)
            if os.access(copy.program, os.X_OK):  # not where no program of this user's may be run
                return str(copy.program)
    return None


def _copy(name: str, program: str, version: str) -> Release | None:
    with _lock:
        files = _held.get(program)
    if files is None:
        return None
    with release_store.write() as draft:
        for place, fd in files.items():
            (draft / place).parent.mkdir(exist_ok=True)
            with (draft / place).open("xb") as copy, open(f"/proc/self/fd/{fd}", "rb") as source:
                shutil.copyfileobj(source, copy)
        with (draft / PROGRAM).open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").hexdigest()
        return release_store.publish(draft, name, version, digest, program)


def sweep_copies() -> None:
    """Remove the copies that nobody uses. Never raises: another sweep will come."""
    with suppress(ReleaseError, StateError, OSError):
        found, root = release_store.find_releases(), release_store.own_store()
        copies = [it for it in found if it.name.startswith(f"{SYSTEM}-")]
        used = {
            it.program for _, it in find_sandboxes() if copies and (it.saved or not is_orphan(it))
        }
        for copy in copies:
            unused = time.time() - copy.directory.stat().st_mtime > KEEP_SECONDS
            if unused and copy.directory.parent == root and copy.source not in used:
                release_store.remove(copy)


def check_unwritten(path: str) -> None:
    """Check that no kernel may have put another program at ``path``.

    :raises RuntimeMissing: when a folder above it is one that a kernel may write, or that cannot be
        told
    """
    try:
        written = read_written(DEFAULTS)
    except StateError as error:
        raise RuntimeMissing(error.fact, error.hint) from error
    for folder in Path(path).parents:
        with suppress(OSError), open_path(str(folder)) as found:
            if written.is_noted(found.path, found.fd):
                raise RuntimeMissing(
                    f"The program {path} is not run: kernels may write in {folder}.",
                    "move it to a folder where no kernel writes; see the setting runsc.",
                )
