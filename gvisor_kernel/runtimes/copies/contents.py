"""Tar archive that is copied into a sandbox of an engine: it is written while it is sent.

Folders of this machine are read by descriptors, and no symbolic link in them is followed: a kernel
may have made what is in them, and another may still change it. The disk limit of the sandbox bounds
what is read. What only one engine gets is added there.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import gvisor_kernel
from gvisor_kernel.archive.tar import CHUNK, MAX_DEPTH
from gvisor_kernel.environments.environment import Base
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import Opened, open_path
from gvisor_kernel.runtimes.mounts.covers import Cover, find_jupyter_covers, identify
from gvisor_kernel.runtimes.mounts.folders import Inputs
from gvisor_kernel.runtimes.mounts.plan import GUEST_PARTS, check_source, open_packages
from gvisor_kernel.runtimes.state.beginning import Beginning
from gvisor_kernel.spec.identity import format_info
from gvisor_kernel.spec.layout import (
    CONTAINER_INFO,
    ENVIRONMENT,
    GUEST,
    GUEST_PART,
    LAYOUT,
    OUTPUTS,
    UPLOADS,
    Bind,
    Tmpfs,
    mount_part,
    scratch_mounts,
)
from gvisor_kernel.strict_json import JsonError
from gvisor_kernel.typed_json import read_json

log = logging.getLogger(__name__)

MAX_ENTRIES = 200_000
"""Files, folders and symbolic links that are copied into one sandbox."""
ENTRY_COST = 4096
"""Bytes that each of them takes in addition to its content."""
MAX_LIST = 1024 * 1024 * 1024
"""Bytes of the list of what was copied: MAX_ENTRIES of the longest names."""
RECENT_SECONDS = 2
"""A file that was changed within this time may change again within the same second."""


@dataclass
class Room:
    """Bytes that may still be copied into a sandbox. ``folder``, ``setting``: for the error.

    ``covered``: directories that are copied without their content, and files that are not copied,
    by device and inode. ``hidden``: paths in ``folder`` that are left out, as each hidden name is;
    None where nothing is.
    """

    bytes: int
    covered: frozenset[tuple[int, int]] = frozenset()
    hidden: frozenset[str] | None = None
    folder: str = ""
    setting: str = ""
    entries: int = MAX_ENTRIES
    left_out: int = 0

    def take(self, size: int) -> None:
        """Count one entry of ``size`` bytes.

        :raises LaunchError: when there is no room for it
        """
        self.entries -= 1
        self.bytes -= size + ENTRY_COST
        if self.bytes < 0 or self.entries < 0:
            raise LaunchError(
                f"The folder {self.folder} is too large to be copied into a sandbox.",
                f"set {self.setting} to a smaller folder, or to None; or raise disk_limit. At most"
                f" {MAX_ENTRIES} files are copied.",
            )


@dataclass
class Contents:
    """The content of one volume, by its path there: texts, and folders of this machine."""

    texts: dict[str, str] = field(default_factory=dict)
    folders: list[tuple[str, Opened, str]] = field(default_factory=list)
    """The path in the volume, the folder or file (held open meanwhile), the name of the setting."""
    empty: list[str] = field(default_factory=list)
    covered: frozenset[tuple[int, int]] = frozenset()
    hidden: frozenset[str] | None = None
    """Paths in the uploads that are left out, if these are a project."""
    left_out: int = 0
    """Files that were not copied, once the archive was read."""

    def measure(self, size: int) -> None:
        """Check that it is at most ``size`` bytes.

        :raises LaunchError: when it is more
        """
        room = Room(size, self.covered)
        for _, folder, setting in self.folders:
            self._enter(room, folder, setting)
            for _, status, _ in _walk(folder, room):
                room.take(status.st_size if stat.S_ISREG(status.st_mode) else 0)

    def _enter(self, room: Room, folder: Opened, setting: str) -> None:
        room.folder, room.setting = folder.path, setting
        room.hidden = self.hidden if setting == "uploads" else None

    def archive(self, size: int, entries: int = MAX_ENTRIES) -> Iterator[bytes]:
        """Yield the tar archive.

        :raises LaunchError: when a folder has become larger than ``size`` bytes or ``entries``
            files meanwhile
        :raises OSError: when a folder cannot be read
        """
        room = Room(size, self.covered, entries=entries)
        parents: set[str] = set()
        for name in self.empty:
            yield from _parents(f"{name}/x", parents)
        for name, text in self.texts.items():
            yield from _parents(name, parents)
            yield _header(name, tarfile.REGTYPE, 0o644, time.time(), size=len(text.encode()))
            yield _padded(text.encode())
        for name, folder, setting in self.folders:
            self._enter(room, folder, setting)
            yield from _parents(name, parents)
            yield from _archive_folder(name, folder, room)
        self.left_out = room.left_out
        yield bytes(2 * tarfile.BLOCKSIZE)
        if room.left_out:
            log.info(
                "%d files were not copied: special files, too deep, unreadable, or with a name"
                " that is not UTF-8",
                room.left_out,
            )


def _parents(name: str, made: set[str]) -> Iterator[bytes]:
    parts = name.split("/")[:-1]
    for end in range(1, len(parts) + 1):
        folder = "/".join(parts[:end])
        if folder not in made:
            made.add(folder)
            yield _header(folder, tarfile.DIRTYPE, 0o755, time.time())


def _archive_folder(place: str, folder: Opened, room: Room) -> Iterator[bytes]:
    for name, status, opened in _walk(folder, room):
        path = f"{place}/{name}" if name else place
        mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime
        if stat.S_ISDIR(status.st_mode):
            room.take(0)
            yield _header(path, tarfile.DIRTYPE, (mode & 0o777) | 0o700, mtime)
        elif isinstance(opened, str):
            room.take(0)
            yield _header(path, tarfile.SYMTYPE, 0o777, mtime, target=opened)
        else:
            room.take(status.st_size)
            yield _header(path, tarfile.REGTYPE, (mode & 0o777) | 0o600, mtime, size=status.st_size)
            yield from _content(opened, status.st_size)


def _content(fd: int, size: int) -> Iterator[bytes]:
    """Yield exactly ``size`` bytes, however long the file is by now, and the padding."""
    left = size
    while left:
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        data = os.read(fd, min(CHUNK, left)) or bytes(min(CHUNK, left))
        left -= len(data)
        yield data
    yield bytes(-size % tarfile.BLOCKSIZE)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _header(
    name: str, kind: bytes, mode: int, mtime: float, *, size: int = 0, target: str = ""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.size, info.linkname = kind, mode, mtime, size, target
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _walk(root: Opened, room: Room) -> Iterator[tuple[str, os.stat_result, int | str]]:
    """Yield each entry of ``root``: its path, its status, and a descriptor or a symbolic link's
    target.

    The first one is ``root`` itself, with an empty path.

    :raises OSError: when ``root`` itself cannot be read
    """
    with closing_fd(root.read()) as fd:
        status = os.fstat(fd)
        yield "", status, fd
        if stat.S_ISDIR(status.st_mode):
            yield from _walk_folder(fd, (), room)


def _walk_folder(
    folder: int, parts: tuple[str, ...], room: Room
) -> Iterator[tuple[str, os.stat_result, int | str]]:
    for name in sorted(os.listdir(folder)):
        path = (*parts, name)
        shown = "/".join(path)
        if room.hidden is not None and (name.startswith(".") or shown in room.hidden):
            continue
        try:
            shown.encode()
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(name, dir_fd=folder)
                target.encode()
                yield shown, status, target
                continue
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise PermissionError
            if len(path) > MAX_DEPTH:
                raise PermissionError
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=folder)
        except (OSError, UnicodeEncodeError):
            room.left_out += 1
            continue
        with closing_fd(fd):
            status = os.fstat(fd)
            is_covered = (status.st_dev, status.st_ino) in room.covered
            if stat.S_ISREG(status.st_mode) and not is_covered:
                yield shown, status, fd
            elif stat.S_ISDIR(status.st_mode):
                yield shown, status, fd
                if is_covered:
                    continue
                with suppress(PermissionError):
                    yield from _walk_folder(fd, path, room)


# -- what is sent to each engine that mounts nothing of this machine -------------------------------

EMPTY = [place.part for target, place in LAYOUT.items() if target not in (CONTAINER_INFO, OUTPUTS)]
"""Folders that are there also where nothing is sent to them."""


def find_contents(
    begun: Beginning, base: Base, etc: Mapping[str, str], held: ExitStack
) -> Contents:
    """Return the guest's code, files of /etc, uploads, skills, packages and extra mounts.

    ``held`` closes the folders that are opened here.

    :raises SettingError: when a folder cannot be shown
    :raises GvisorKernelError: when the packages do not fit ``base``
    """
    jupyters = find_jupyter_covers(())
    contents = Contents(empty=list(EMPTY), covered=identify(jupyters))
    for name, text in etc.items():
        contents.texts[f"etc/{name}"] = text
    package = Path(gvisor_kernel.__file__).parent
    for part in GUEST_PARTS:
        opened = held.enter_context(open_path(str(package / part)))
        contents.folders.append((f"{GUEST_PART}/gvisor_kernel/{part}", opened, ""))
    add_inputs(contents, begun.inputs, jupyters)
    packages = open_packages(begun.spec, base)
    if packages is not None:
        opened = held.enter_context(open_path(str(packages.tree)))
        place = f"{GUEST_PART}{ENVIRONMENT.removeprefix(GUEST)}"  # where the guest is
        contents.folders.append((place, opened, "packages"))
    return contents


def add_inputs(contents: Contents, inputs: Inputs, jupyters: Sequence[Cover]) -> None:
    """Add uploads, skills and extra mounts.

    :raises SettingError: when an extra mount shows one of Jupyter's own folders
    """
    if inputs.uploads is not None:
        contents.folders.append((LAYOUT[UPLOADS].part, inputs.uploads, "uploads"))
        if inputs.hidden is not None:
            contents.hidden = frozenset(hidden.path for hidden in inputs.hidden)
    for target, folder in inputs.skills.items():
        contents.folders.append((LAYOUT[target].part, folder, "skills"))
    for i, folder in enumerate(inputs.mounts):
        check_source(folder.path, jupyters)
        contents.folders.append((mount_part(i), folder, "mounts"))


def describe_sandbox(begun: Beginning, *, keeps_outputs: bool) -> str:
    """Return the content of /container_info.json. ``keeps_outputs``: they outlive the sandbox."""
    spec = begun.spec
    layout = [
        Tmpfs(OUTPUTS, spec.disk_limit)
        if target == OUTPUTS and not keeps_outputs
        else Bind("", target, place.read_only)
        for target, place in LAYOUT.items()
    ]
    return format_info(
        begun.identity,
        spec,
        kernel_name=begun.request.kernel_name,
        created=begun.record.created,
        versions={"gvisor-kernel": gvisor_kernel.__version__},
        mounts=[*layout, *scratch_mounts(spec)],
        workdir=begun.workdir,
    )


# -- what was copied in, so that only what has changed is copied out -------------------------------


Copied = Mapping[str, tuple[int, int]]
"""Sizes and modification times, in whole seconds, by the names of files."""


def list_files(folder: Opened) -> dict[str, tuple[int, int]]:
    """Return the files that can be told from a later version; others were changed too recently.

    :raises OSError: when the folder cannot be read
    """
    latest = time.time() - RECENT_SECONDS
    return {
        name: (status.st_size, int(status.st_mtime))
        for name, status, _ in _walk(folder, Room(0))
        if stat.S_ISREG(status.st_mode) and status.st_mtime < latest
    }


def write_list(path: Path, copied: Copied) -> None:
    """Write the list of what was copied in.

    :raises OSError: when that fails
    """
    # by path: below the state directory, whose parents only this user can change
    path.write_text(json.dumps(copied))


def read_list(path: Path) -> dict[str, tuple[int, int]]:
    """Return the list; empty if there is none, so that everything is copied out."""
    with suppress(OSError, JsonError):
        return read_json(path.read_bytes(), dict[str, tuple[int, int]], MAX_LIST)
    return {}
