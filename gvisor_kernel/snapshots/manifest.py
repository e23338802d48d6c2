"""The files that a snapshot's processes had loaded. A restore must find them unchanged.

A restored process maps its files again from the host, so an upgraded library would be half old and
half new. The list of names comes from a sandbox: it is bounded, and a name is only used to stat a
file below the folders that the sandbox was shown.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gvisor_kernel.config.validators import is_within
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.base import MountView

MAX_FILES = 20_000
"""A kernel with numpy, pandas and matplotlib imported has about 1,500."""
MAX_DIRECTORIES = 2_000
MAX_PATH = 4096
MAX_NAMES = 100_000
"""Entries that are read in one directory of the import path."""
AHEAD_SECONDS = 60.0
"""Seconds that the clock of a file server may be ahead. A file with a later time was written while
the clock was wrong, and not while the snapshot was made; its time is compared as any other."""
OUTPUTS = "outputs"
"""Name that is ignored: each kernel creates and removes this folder beside its notebook, and that
directory may be on the import path."""

Stamp: TypeAlias = tuple[int, int, int]
"""Size, modification time in nanoseconds, inode."""


@dataclass(frozen=True)
class Directory:
    """A directory of the import path: its modification time, and a digest of importable names.

    The names are compared only if the time has changed, as it does when a notebook is saved beside
    a package.
    """

    changed: int
    names: str


@dataclass(frozen=True)
class Manifest:
    """Files and directories by their paths on the host; None for a directory that did not exist."""

    files: dict[str, Stamp]
    directories: dict[str, Directory | None]

    def find_change(self) -> str | None:
        """Return what has changed first, or None. Takes milliseconds."""
        lstat = os.lstat
        for path, stamp in self.files.items():
            try:
                status = lstat(path)
            except OSError:
                return f"{path} is gone"
            if (status.st_size, status.st_mtime_ns, status.st_ino) != stamp:
                return f"{path} has changed"
        for path, directory in self.directories.items():
            now = _modified_at(path)
            if directory is None:
                if now is not None:
                    return f"{path} is new"
            elif now is None:
                return f"the modules in {path} have changed"
            elif now != directory.changed:
                try:
                    names = _digest_names(path)
                except SnapshotError as error:  # it has too many by now
                    return error.fact
                if names != directory.names:
                    return f"the modules in {path} have changed"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` parses: only lists, dictionaries, texts and numbers."""
        return {
            "files": [[path, *stamp] for path, stamp in self.files.items()],
            "directories": [
                [path, None if d is None else [d.changed, d.names]]
                for path, d in self.directories.items()
            ],
        }

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Parse the result of ``to_json``.

        :raises ValueError, KeyError, TypeError: when ``content`` is something else
        """
        return cls(
            {path: (size, changed, inode) for path, size, changed, inode in content["files"]},
            {
                path: None if found is None else Directory(*found)
                for path, found in content["directories"]
            },
        )


def make_manifest(
    files: Iterable[str],
    directories: Iterable[str],
    mounts: Sequence[MountView],
    since: float | None = None,
    own: str | None = None,
) -> Manifest:
    """Make the manifest of a snapshot. ``files`` and ``directories`` are paths inside the sandbox.

    ``mounts`` are the sandbox's; a path in none of them is skipped, as it is part of the snapshot
    itself. ``since`` is the start of the sandbox in seconds since the epoch. ``own`` is the
    sandbox's directory on the host, which is skipped, as it ends with the sandbox.

    :raises SnapshotError: when a file is younger than ``since``, so that the loaded one may have
        been another; when there are too many paths
    """
    latest = time.time() + AHEAD_SECONDS
    views = sorted(mounts, key=lambda view: len(view.target), reverse=True)
    found: dict[str, Stamp] = {}
    for path in _translate(files, views, MAX_FILES, "files", own):
        for spelled in {path, os.path.realpath(path)}:
            if spelled != path and not any(is_within(spelled, view.source) for view in views):
                continue
            try:
                status = os.lstat(spelled)
            except OSError:
                continue
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                continue
            if since is not None and since < status.st_mtime < latest:
                raise SnapshotError(
                    f"{spelled} changed while the snapshot was made.", "make the snapshot again."
                )
            found[spelled] = (status.st_size, status.st_mtime_ns, status.st_ino)
    offered: dict[str, Directory | None] = {}
    for path in _translate(directories, views, MAX_DIRECTORIES, "directories", own):
        changed = _modified_at(path)
        offered[path] = None if changed is None else Directory(changed, _digest_names(path))
    return Manifest(found, offered)


def _translate(
    paths: Iterable[str], views: Sequence[MountView], most: int, what: str, own: str | None
) -> Iterator[str]:
    """Yield the host's paths for ``paths`` in a sandbox. ``views`` are sorted deepest first."""
    seen: set[str] = set()
    for count, path in enumerate(paths):
        if count >= most:
            raise SnapshotError(f"The kernel has loaded more than {most} {what}.")
        if not isinstance(path, str) or len(path) > MAX_PATH or "\0" in path:
            continue
        if not path.startswith("/") or path in seen or ".." in path.split("/"):
            continue
        seen.add(path)
        for view in views:
            if is_within(path, view.target):
                if own is None or not is_within(view.source, own):
                    yield view.source + path[len(view.target.rstrip("/")) :]
                break


def _modified_at(path: str) -> int | None:
    """Return the modification time of the directory ``path``, or None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - faster than Path
    except OSError:
        return None
    return status.st_mtime_ns if stat.S_ISDIR(status.st_mode) else None


def _digest_names(path: str) -> str:
    """Return a digest of the names in ``path`` that can be imported."""
    names = []
    try:
        with os.scandir(path) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_NAMES:
                    raise SnapshotError(f"{path} has more than {MAX_NAMES} entries.")
                name = entry.name
                if name == OUTPUTS:
                    continue
                if not name.startswith((".", "__pycache__")) and (
                    name.endswith((".py", ".pyc", ".so", ".pth", ".zip", "-info", ".egg"))
                    or name.isidentifier()
                ):
                    names.append(name)
    except OSError:
        return ""
    content = "\0".join(sorted(names)).encode(errors="surrogateescape")
    return hashlib.sha256(content).hexdigest()
