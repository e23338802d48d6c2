"""Finds the project around a notebook's folder, and what of it no kernel is shown.

A project is what the setting ``uploads`` = PROJECT shows in place of the notebook's folder alone.
Reads names and owners, by descriptor; mounts and copies nothing. ``folders`` decides whether a
project that was found may be shown.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from gvisor_kernel.config.validators import is_plain_path, is_within
from gvisor_kernel.host.folders import Opened, find_ancestry, open_below, open_real
from gvisor_kernel.runtimes.mounts.written_folders import WrittenFolders

MARKERS = (".git", "pyproject.toml", "environment.yml", ".jupyter-project")
"""A file or folder of this name makes its folder a project."""
MAX_VISITED = 200_000
"""Entries of a project that are looked at for hidden ones."""
MAX_SECONDS = 5.0
MAX_DEPTH = 50
"""Nested folders that are looked into; deeper ones are hidden."""
MAX_HIDDEN = 1000
"""Hidden entries: each is a mount."""


class TooLarge(Exception):
    """Not everything that must be hidden could be found."""


@dataclass(frozen=True)
class Project:
    """``within``: the notebook's folder as a path below ``folder``; empty if it is that."""

    folder: Opened
    within: str

    def hides(self, path: str) -> bool:
        """Return whether a path of the host is in a hidden folder of the project, or is one."""
        if not is_within(path, self.folder.path):
            return False
        return any(part.startswith(".") for part in path[len(self.folder.path) :].split("/"))

    def has_other(self, name: str) -> bool:
        """Return whether the project has a file or link of this name, in place of a folder."""
        with suppress(OSError):
            status = os.stat(name, dir_fd=self.folder.fd, follow_symlinks=False)
            return not stat.S_ISDIR(status.st_mode)
        return False


def find_project(folder: Opened, written: WrittenFolders) -> Project | None:
    """Return the nearest project that ``folder`` (the notebook's) is or lies in; the caller closes
    its folder.

    None if there is none. A marker of another user makes none: it may be planted, as in /tmp. Nor
    does a folder that a kernel may have written, and none is found from a hidden folder.

    :raises OSError: when the folders above cannot be read
    """
    trusted = {0, os.geteuid(), folder.status().st_uid}
    ancestry, path = find_ancestry(folder), folder.path
    for identity in ancestry[:-1]:
        within = folder.path[len(path) + 1 :]
        if any(part.startswith(".") for part in within.split("/")):
            return None
        found = open_real(path)
        try:
            if found.identity != identity:  # it was moved meanwhile
                found.close()
                return None
            is_project = _has_marker(found, trusted) and not written.has(path, found.fd)
        except BaseException:
            found.close()
            raise
        if is_project and (not within or is_plain_path(within)):
            return Project(found, within)
        found.close()
        if is_project:
            return None
        path = os.path.dirname(path)  # noqa: PTH120 - text
    return None


def _has_marker(folder: Opened, trusted: set[int]) -> bool:
    for name in MARKERS:
        with suppress(OSError):
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            mode = status.st_mode
            if status.st_uid in trusted and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                return True
    return False


def find_hidden(project: Project, written: WrittenFolders) -> tuple[tuple[str, int], ...]:
    """Return the paths below the project that no kernel is shown, sorted, with their inodes.

    Those are all hidden files and folders, folders that cannot be listed or lie too deep, and
    outputs of another person than the owner of the notebook's folder. What kernels have written is
    not looked into.

    :raises TooLarge: when there are too many, or the project is too large to find all in time
    :raises OSError: when the project cannot be read
    """
    return tuple(sorted(_Search(project, written).run()))


class _Search:
    def __init__(self, project: Project, written: WrittenFolders) -> None:
        self._project = project
        self._written = written
        self._left = MAX_VISITED
        self._end = time.monotonic() + MAX_SECONDS
        with open_below(project.folder, project.within or ".") as folder:
            self._own = {0, os.geteuid(), folder.status().st_uid}

    def run(self) -> list[tuple[str, int]]:
        found = []
        fd = self._project.folder.read()
        try:
            for hidden in self._look(fd, ""):
                found.append(hidden)
                if len(found) > MAX_HIDDEN:
                    raise TooLarge(f"it has more than {MAX_HIDDEN} hidden files and folders")
        finally:
            os.close(fd)
        return found

    def _look(self, fd: int, above: str) -> Iterator[tuple[str, int]]:
        below = []
        with os.scandir(fd) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0 or time.monotonic() > self._end:
                    raise TooLarge("it has too many files to find the hidden ones")
                is_folder = entry.is_dir(follow_symlinks=False)
                if not entry.name.startswith("."):
                    below += [entry.name] if is_folder else []
                elif is_folder or not entry.is_symlink():  # a link's target is hidden or not itself
                    yield above + entry.name, entry.inode()
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        for name in below:
            try:
                child = os.open(name, flags, dir_fd=fd)
            except PermissionError:
                yield above + name, os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino
                continue
            except OSError:  # it was removed or replaced meanwhile
                continue
            try:
                status = os.fstat(child)
                if above.count("/") >= MAX_DEPTH:
                    yield above + name, status.st_ino
                elif not self._written.has(f"{self._project.folder.path}/{above}{name}", child):
                    yield from self._look(child, f"{above}{name}/")
                elif status.st_uid not in self._own:
                    yield above + name, status.st_ino
            finally:
                os.close(child)
