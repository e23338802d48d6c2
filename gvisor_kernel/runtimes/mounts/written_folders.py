"""Remembers the folders that a sandbox may write: no symbolic link in one of them is followed.

What a kernel leaves in its outputs must not decide what a later sandbox is shown. So each folder
that a sandbox of this user may write is noted in the state directory before it can be written, and
stays noted: by its path, and by its identity in case it is moved. Only a noted folder gets the
rights back that its owner lacks. Nothing here opens a folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.folders import Identity, Opened, birth_time
from gvisor_kernel.host.owners import check_access, restore_access
from gvisor_kernel.host.private_directories import state_root

# by path: below the state directory, whose parents only this user can change

log = logging.getLogger(__name__)

MAX_LINES = 65536
"""Lines above which the oldest whose folder is gone are dropped, even if that was moved."""
MAX_BYTES = 64 * 1024 * 1024
"""Bytes of the file. A folder's line has some hundred bytes, at most 4 KiB."""


@dataclass(frozen=True)
class WrittenFolders:
    """``paths`` and ``files`` (device, inode, time of birth) of the folders that were noted.

    ``names``: paths that settings call outputs; relative ones in whatever folder they lie.
    """

    paths: frozenset[str]
    files: frozenset[tuple[int, int, int]]
    names: tuple[str, ...]

    def has(self, path: str, fd: int) -> bool:
        """Return whether a sandbox may have written to ``path`` (real), a folder open as ``fd``."""
        return any(
            path == name or path.endswith(f"/{name}") for name in self.names
        ) or self.is_noted(path, fd)

    def ensure_access(self, folder: Opened) -> None:
        """Check that this user may enter a folder that a sandbox is to write. One that was noted,
        and that a kernel may so have closed to this user, its owner, is opened again before.

        :raises OSError: when this user may not enter it; says what its owner can do
        """
        if self.is_noted(folder.path, folder.fd) and restore_access(folder):
            log.warning("%s was closed to its owner, as by a kernel: it is open again", folder.path)
        check_access(folder)

    def is_noted(self, path: str, fd: int) -> bool:
        """Return the same, whatever the folder's name: a sandbox of this user was to write it."""
        return path in self.paths or (bool(self.files) and _describe(fd) in self.files)


def read_written(spec: SandboxSpec) -> WrittenFolders:
    """Return the noted folders, and those that ``spec`` and the default call outputs.

    :raises StateError: when the file cannot be read: then any link might be followed
    """
    names = {os.path.normpath(name) for name in (DEFAULTS.outputs, spec.outputs) if name}
    paths, files = set(), set()
    for path, described in _read(_path()):
        paths.add(path)
        if described[2]:  # without a time of birth another folder may have the inode by now
            files.add(described)
    return WrittenFolders(frozenset(paths), frozenset(files), tuple(names))


def note_written(folders: Iterable[Opened]) -> None:
    """Note ``folders`` before a sandbox may write them. The caller holds ``records.locked``.

    :raises StateError: when the file cannot be read or written
    """
    path = _path()
    known = _read(path)
    new = []
    for folder in folders:
        entry = (folder.path, _describe(folder.fd))
        if entry not in known:
            new.append(entry)
    if not new:
        return
    try:
        if len(known) + len(new) > MAX_LINES:
            known = known[-MAX_LINES // 2 :] + [
                entry
                for entry in known[: -MAX_LINES // 2]
                if os.path.isdir(entry[0])  # noqa: PTH112
            ]
        _write(path, [*known, *new])
    except OSError as error:
        raise StateError(
            f"Could not write the file {path}: {error.strerror}.",
            "check whether the disk is full or read-only; or set XDG_STATE_HOME to another"
            " directory.",
        ) from error


def forget_written(folder: Identity) -> None:
    """Remove the note of a folder that was empty and was removed.

    The caller holds ``records.locked``. Never raises.
    """
    with suppress(OSError, StateError):
        path = _path()
        known = _read(path)
        kept = [entry for entry in known if entry[1][:2] != tuple(folder)]
        if len(kept) < len(known):
            _write(path, kept)


def _write(path: Path, entries: Iterable[tuple[str, tuple[int, int, int]]]) -> None:
    """Write a new file and rename it into place: half a line would spoil the next one."""
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(map(_line, entries)))
    temporary.replace(path)


def _path() -> Path:
    return state_root() / "written-folders"


def _line(entry: tuple[str, tuple[int, int, int]]) -> str:
    return json.dumps([entry[0], *entry[1]]) + "\n"


def _read(path: Path) -> list[tuple[str, tuple[int, int, int]]]:
    """Read all notes.

    :raises StateError: when the file cannot be read: then any link might be followed
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateError(
            f"Could not read the file {path}: {error.strerror}.",
            "check that it is a file of yours; without it, symbolic links that kernels have made"
            " might be followed.",
        ) from error
    if len(content) > MAX_BYTES:
        raise StateError(
            f"The file {path} has more than {MAX_BYTES} bytes.",
            "check what is in it; without it, symbolic links that kernels have made might be"
            " followed.",
        )
    found = []
    for line in content.splitlines():
        try:
            name, device, inode, born = json.loads(line)
            found.append((str(name), (int(device), int(inode), int(born))))
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue  # not a line that this module has written
    return found


def _describe(fd: int) -> tuple[int, int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, birth_time(fd)
