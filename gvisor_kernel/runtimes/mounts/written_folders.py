"""Folders that a sandbox may write, or might at any time before: no link in one decides anything.

What a kernel leaves in its outputs is not to decide what a later one is shown. So each folder that
a sandbox of this user may write is noted down in the state directory, before it can be, and stays
noted: by its path, and by what it is, should it be moved. Nothing here opens a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.config.settings import DEFAULTS, SandboxSpec
from gvisor_kernel.errors import StateError
from gvisor_kernel.host.folders import Identity, Opened, birth_time
from gvisor_kernel.runtimes.state import records

MAX_LINES = 65536
"""With more, the oldest whose folder is gone are forgotten: those that were moved, too."""
MAX_BYTES = 64 * 1024 * 1024
"""Of the file. A folder's line has some hundred bytes, or 4 KiB."""


@dataclass(frozen=True)
class WrittenFolders:
    """``paths`` and ``files`` (device, inode, time of birth) of what was noted.

    ``names``: ends of paths that are outputs of kernels, wherever they are.
    """

    paths: frozenset[str]
    files: frozenset[tuple[int, int, int]]
    names: tuple[str, ...]

    def has(self, path: str, fd: int) -> bool:
        """Whether a sandbox may have written what is in the folder ``path`` (without links)."""
        return (
            path in self.paths
            or any(path.endswith(f"/{name}") for name in self.names)
            or (bool(self.files) and _describe(fd) in self.files)
        )


def read_written(spec: SandboxSpec) -> WrittenFolders:
    """What was noted, and what ``spec`` and the default call outputs. Raises StateError."""
    names = {DEFAULTS.outputs, spec.outputs} - {None}
    relative = tuple(str(name) for name in names if not str(name).startswith("/"))
    paths, files = set(), set()
    for path, described in _read(_path()):
        paths.add(path)
        if described[2]:  # else it may be another folder's by now
            files.add(described)
    if spec.outputs is not None and spec.outputs.startswith("/"):
        paths.add(os.path.normpath(spec.outputs))
    return WrittenFolders(frozenset(paths), frozenset(files), relative)


def note_written(folders: Iterable[Opened]) -> None:
    """Note ``folders`` down, before a sandbox may write them. Holds ``records.locked`` already.

    Raises StateError.
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
            f"The file {path} cannot be written: {error.strerror}.",
            "look whether the disk is full or read-only; XDG_STATE_HOME names another place.",
        ) from error


def forget_written(folder: Identity) -> None:
    """It is removed, and was empty. Holds ``records.locked`` already; quiet."""
    with suppress(OSError, StateError):
        path = _path()
        known = _read(path)
        kept = [entry for entry in known if entry[1][:2] != tuple(folder)]
        if len(kept) < len(known):
            _write(path, kept)


def _write(path: Path, entries: Iterable[tuple[str, tuple[int, int, int]]]) -> None:
    """All of it anew, and in its place in one step: half a line would spoil the next one."""
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(map(_line, entries)))
    temporary.replace(path)


def _path() -> Path:
    return records.state_root() / "written-folders"


def _line(entry: tuple[str, tuple[int, int, int]]) -> str:
    return json.dumps([entry[0], *entry[1]]) + "\n"


def _read(path: Path) -> list[tuple[str, tuple[int, int, int]]]:
    """Raises StateError where it cannot be known: then any link might be trusted."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateError(
            f"The file {path} cannot be read: {error.strerror}.",
            "see whether it is a file of yours; without it, links that kernels have left may be"
            " followed.",
        ) from error
    if len(content) > MAX_BYTES:
        raise StateError(
            f"The file {path} has more than {MAX_BYTES} bytes.",
            "see what is in it; without it, links that kernels have left may be followed.",
        )
    found = []
    for line in content.splitlines():
        try:
            name, device, inode, born = json.loads(line)
            found.append((str(name), (int(device), int(inode), int(born))))
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue  # nothing of ours
    return found


def _describe(fd: int) -> tuple[int, int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, birth_time(fd)
