"""The files that an image's processes had loaded, as they were: what a restore must find unchanged.

A restored process maps its files anew from the host: a library that was upgraded meanwhile would
be half the old one and half the new one. The list of names comes out of a sandbox, so it is
bounded, and nothing is done with a name but to look at what has it, below what the sandbox was
shown of the interpreter's world.
"""

from __future__ import annotations

import hashlib
import os
import stat
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
"""Entries that are looked at in one directory of the import path."""
OUTPUTS = "outputs"
"""Comes and goes beside notebooks with each kernel, in a folder that is imported from, too."""

Stamp: TypeAlias = tuple[int, int, int]
"""Size, time of change in nanoseconds, inode."""


@dataclass(frozen=True)
class Directory:
    """A directory of the import path: its time of change, and what it offers for import.

    The names are looked at only where the time has changed: a notebook saved beside a package
    changes nothing.
    """

    changed: int
    names: str


@dataclass(frozen=True)
class Manifest:
    """By paths of the host. Directories that did not exist have None."""

    files: dict[str, Stamp]
    directories: dict[str, Directory | None]

    def find_change(self) -> str | None:
        """Words for the first thing that is not as it was; None when all is. Milliseconds."""
        lstat = os.lstat
        for path, stamp in self.files.items():
            try:
                status = lstat(path)
            except OSError:
                return f"{path} is gone"
            if (status.st_size, status.st_mtime_ns, status.st_ino) != stamp:
                return f"{path} has changed"
        for path, directory in self.directories.items():
            now = _changed(path)
            if directory is None:
                if now is not None:
                    return f"{path} is new"
            elif now != directory.changed and (now is None or _names(path) != directory.names):
                return f"what {path} offers has changed"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "files": [[path, *stamp] for path, stamp in self.files.items()],
            "directories": [
                [path, None if d is None else [d.changed, d.names]]
                for path, d in self.directories.items()
            ],
        }

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Raises ValueError, KeyError or TypeError for what ``to_json`` did not make."""
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
    """The manifest of an image. ``files`` and ``directories`` are paths as a sandbox called them.

    ``mounts``: what it was shown of the host; a path that is in none of them is passed over, as it
    lies in the image itself. ``since``: when the sandbox was started; a file that is younger may
    not be what was loaded. ``own``: the sandbox's directory on the host, which ends with it.
    Raises SnapshotError for that, and for a list without end.
    """
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
            if since is not None and status.st_mtime > since:
                raise SnapshotError(f"{spelled} changed while the image was made.")
            found[spelled] = (status.st_size, status.st_mtime_ns, status.st_ino)
    offered: dict[str, Directory | None] = {}
    for path in _translate(directories, views, MAX_DIRECTORIES, "directories", own):
        changed = _changed(path)
        offered[path] = None if changed is None else Directory(changed, _names(path))
    return Manifest(found, offered)


def _translate(
    paths: Iterable[str], views: Sequence[MountView], most: int, what: str, own: str | None
) -> Iterator[str]:
    """Those of ``paths`` that are the host's, as it calls them. ``views``: deepest first."""
    seen: set[str] = set()
    for count, path in enumerate(paths):
        if count >= most:
            raise SnapshotError(f"A kernel has more than {most} {what} loaded.")
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


def _changed(path: str) -> int | None:
    """When the directory ``path`` changed last; None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - text in, number out
    except OSError:
        return None
    return status.st_mtime_ns if stat.S_ISDIR(status.st_mode) else None


def _names(path: str) -> str:
    """A digest of the names in ``path`` that mean something to an import system."""
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
