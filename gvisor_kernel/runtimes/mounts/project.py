"""Finds the project around a notebook's folder, and what of it no kernel is shown.

A project is what ``uploads`` = PROJECT shows in place of the notebook's folder alone. Names and
owners are read by descriptor; nothing is mounted or copied. ``folders`` decides whether a project
may be shown.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from gvisor_kernel.config.validators import is_plain_path, is_within
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import Identity, Opened, find_ancestry, open_below, open_real
from gvisor_kernel.host.stage import Hidden
from gvisor_kernel.runtimes.mounts.written_folders import WrittenFolders

MARKERS = (".git", "pyproject.toml", "environment.yml", ".jupyter-project")
"""A file or folder of this name makes its folder a project."""
MAX_VISITED, MAX_SECONDS = 200_000, 5.0
"""Entries of a project that are looked at for hidden ones, and the time for it."""
MAX_DEPTH = 50
"""Nested folders that are looked into; deeper ones are hidden."""
MAX_HIDDEN = 1000
"""Hidden entries: each is a mount."""


@dataclass(frozen=True)
class Project:
    """``within``: the notebook's folder as a path below ``folder``; empty if it is that."""

    folder: Opened
    within: str

    def hides(self, path: str) -> bool:
        """Return whether a path of the host is hidden by one of its names in the project."""
        names = path[len(self.folder.path) :].split("/")
        return is_within(path, self.folder.path) and any(name.startswith(".") for name in names)


def find_project(folder: Opened, written: WrittenFolders) -> Project | None:
    """Return the nearest project that the notebook's ``folder`` is or lies in, opened; or None.

    No other user decides it (``_is_project``), and no kernel: a folder that one may have written
    is none. There is none for a hidden folder, in which nothing would be seen.

    :raises OSError: when the folders above cannot be read, or one was moved meanwhile
    """
    person, path = folder.status().st_uid, folder.path
    for identity in find_ancestry(folder)[:-1]:
        within = folder.path[len(path) + 1 :]
        if any(part.startswith(".") for part in within.split("/")):
            return None
        found = open_real(path)
        if (
            found.identity == identity
            and _is_project(found, person)
            and not written.has(path, found.fd)
            and (not within or is_plain_path(within))
        ):
            return Project(found, within)
        found.close()
        path = os.path.dirname(path)  # noqa: PTH120 - text
    return None


def _is_project(folder: Opened, person: int) -> bool:
    """Return whether a folder has a marker, and that and the folder are this user's or root's.

    For a server of root they may also be the ``person``'s who owns the notebook's folder, both of
    them. Nobody else may write the folder: a marker may be planted, as in /tmp. A file with several
    names may be another one's that was linked here.
    """
    top = folder.status()
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0 and top.st_uid == person:
        trusted.add(person)
    own_group = (top.st_uid, top.st_gid) == (os.geteuid(), os.getegid())
    others = stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP
    if top.st_uid not in trusted or top.st_mode & others:
        return False
    for name in MARKERS:
        with suppress(OSError):
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            single = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if status.st_uid in trusted and (single or stat.S_ISDIR(status.st_mode)):
                return True
    return False


def check_reach(project: Project) -> None:
    """Check that a sandbox may read the project's folder and those down to the notebook's.

    It has the rights of this user, for a server of root those of the project's owner, by the user
    and the primary group: supplementary groups do not count in it.

    :raises OSError: when it may not; or a folder was moved
    """
    status = project.folder.status()
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        uid, gid = status.st_uid, status.st_gid
    parts = project.within.split("/") if project.within else []
    for depth in range(len(parts) + 1):
        with open_below(project.folder, "/".join(parts[:depth]) or ".") as folder:
            status = folder.status()
            shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
            if ~(status.st_mode >> shift) & 0o5:
                raise PermissionError(
                    f"a sandbox may not read {folder.path}: it has the rights of uid {uid} and gid"
                    f" {gid}, without further groups"
                )


def find_hidden(project: Project, written: WrittenFolders) -> tuple[Hidden, ...]:
    """Return what is below the project that no kernel is shown, sorted by path.

    Those are all hidden files and folders, folders that cannot be listed or lie too deep, and
    outputs of another person than the owner of the notebook's folder. The notebook's own outputs
    and what kernels have written are not looked into; another folder is, whatever its name.

    :raises OSError: when there are too many, or it cannot be read
    """
    with open_below(project.folder, project.within or ".") as folder:
        own = {0, os.geteuid(), folder.status().st_uid}
        outputs = [os.path.normpath(f"{folder.path}/{name}") for name in written.names]
    end, visited, found = time.monotonic() + MAX_SECONDS, 0, []

    def look(fd: int, above: str) -> Iterator[Hidden]:
        nonlocal visited
        folders = []
        with os.scandir(fd) as entries:
            for entry in entries:
                visited += 1
                if visited > MAX_VISITED or time.monotonic() > end:
                    raise OSError("it has too many files to find the hidden ones")
                is_folder = entry.is_dir(follow_symlinks=False)
                if entry.name.startswith("."):
                    if not entry.is_symlink():  # its target is hidden by itself, or not
                        yield from note(fd, above, entry.name)
                elif is_folder:
                    folders.append(entry.name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        for name in folders:
            try:
                child = os.open(name, flags, dir_fd=fd)
            except PermissionError:
                yield from note(fd, above, name)
                continue
            except OSError:  # it was removed or replaced meanwhile
                continue
            with closing_fd(child):
                if not os.access(".", os.X_OK, dir_fd=child, effective_ids=True):
                    yield from note(fd, above, name)  # what is in it could not be noted
                    continue
                path = f"{project.folder.path}/{above}{name}"
                is_foreign = os.fstat(child).st_uid not in own and written.has(path, child)
                if not is_foreign and (path in outputs or written.is_noted(path, child)):
                    continue
                if is_foreign or above.count("/") >= MAX_DEPTH:
                    yield from note(fd, above, name)
                else:
                    yield from look(child, f"{above}{name}/")

    def note(fd: int, above: str, name: str) -> Iterator[Hidden]:
        with suppress(FileNotFoundError):  # it was removed meanwhile
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            identity = Identity(status.st_dev, status.st_ino)
            yield Hidden(above + name, identity, status.st_ctime_ns)

    with closing_fd(project.folder.read()) as top:
        for hidden in look(top, ""):
            found.append(hidden)
            if len(found) > MAX_HIDDEN:
                raise OSError(f"it has more than {MAX_HIDDEN} hidden files and folders")
    return tuple(sorted(found))
