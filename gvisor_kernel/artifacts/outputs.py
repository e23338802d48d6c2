"""The files of an outputs folder: listed, and read by descriptor.

A sandbox writes the folder meanwhile. No link is followed, nothing but regular files is read, and
the time and the number of files of a look are bounded.
"""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from gvisor_kernel.errors import OutputsError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.folders import Opened, open_below
from gvisor_kernel.host.owners import check_access

MAX_DEPTH = 50
MAX_PATH = 1000
"""Characters of a path. Longer ones are not listed."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class OutputFile:
    """A regular file, if ``kind`` is "file"; else a "link", or an "other" such as a pipe.

    ``path``: relative, with ``/``; ``modified``: seconds of Unix time.
    """

    path: str
    size: int
    modified: float
    type: str
    """Type by the file's name, which the kernel chose."""
    kind: str = "file"


@dataclass(frozen=True)
class Bounds:
    """The files that a list has, the newest; the names and the seconds that are spent on it.

    A sandbox decides how many files and folders there are.
    """

    listed: int = 1000
    looked_at: int = 50_000
    seconds: float = 2.0


BOUNDS = Bounds()


@dataclass(frozen=True)
class Listing:
    """``files``: regular ones, the newest first. ``others``: links and special files, which
    ``open_output`` refuses, and which nothing else should open: a link may lead to any file of the
    host. ``more``: there are some that are not listed."""

    files: tuple[OutputFile, ...]
    more: bool
    others: tuple[OutputFile, ...] = ()


def list_outputs(root: Opened, *, hidden: bool = False, bounds: Bounds = BOUNDS) -> Listing:
    """Return what lies below a folder. Blocks for at most ``bounds.seconds``.

    Hidden files and folders are left out without ``hidden``, and names that are not UTF-8.

    :raises OSError: when the folder cannot be read
    """
    check_access(root, read=True)
    found: dict[bool, list[OutputFile]] = {True: [], False: []}
    more = False
    for file in _walk(root, bounds, hidden):
        if file is None:
            more = True
        else:
            found[file.kind == "file"].append(file)
    for each in found.values():
        each.sort(key=lambda file: (-file.modified, file.path))
        more = more or len(each) > bounds.listed
    files, others = (tuple(found[kind][: bounds.listed]) for kind in (True, False))
    return Listing(files, more, others)


def _walk(root: Opened, bounds: Bounds, hidden: bool) -> Iterator[OutputFile | None]:
    """Yield files, and None if something was left out."""
    looked_at, deadline = 0, time.monotonic() + bounds.seconds
    left = [("", 0)]
    while left:
        folder, depth = left.pop()
        try:
            with open_below(root, folder or ".") as opened:
                fd = opened.read()
        except PermissionError:
            yield None
            continue
        except OSError:
            if not folder:
                raise
            continue  # it was removed, or is a link now
        with closing_fd(fd), os.scandir(fd) as entries:
            for entry in entries:
                looked_at += 1
                if looked_at > bounds.looked_at or time.monotonic() > deadline:
                    yield None
                    return
                path = f"{folder}/{entry.name}" if folder else entry.name
                if not _is_shown(path):
                    if hidden:
                        yield None
                    continue
                if entry.name.startswith(".") and not hidden:
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        if depth == MAX_DEPTH:
                            yield None
                        else:
                            left.append((path, depth + 1))
                    else:
                        kind = "link" if stat.S_ISLNK(status.st_mode) else "other"
                        kind = "file" if stat.S_ISREG(status.st_mode) else kind
                        described = status.st_size, status.st_mtime, find_type(path)
                        yield OutputFile(path, *described, kind)


def _is_shown(path: str) -> bool:
    return len(path) <= MAX_PATH and not any("\ud800" <= letter <= "\udfff" for letter in path)


def find_type(path: str) -> str:
    """Return the MIME type that a file's name tells."""
    # By itself "data:text/x,y" would be an address, which says its type.
    return mimetypes.guess_type(f"./{path}", strict=False)[0] or "application/octet-stream"


def check_path(path: str, *, hidden: bool = False) -> str:
    """Return a path below a folder in its usual form.

    :raises OutputsError: when it is none; when it is one of a hidden file, without ``hidden``
    """
    parts = [part for part in path.split("/") if part != "."]
    refused = any(part == ".." or (part.startswith(".") and not hidden) for part in parts)
    if "\0" in path or not _is_shown(path) or refused:
        raise OutputsError("This is no path of a file below the outputs, or one of a hidden file.")
    if not all(parts) or not parts:
        raise OutputsError("This is no path of a file below the outputs.")
    return "/".join(parts)


@contextlib.contextmanager
def open_output(
    root: Opened, path: str, *, hidden: bool = False
) -> Iterator[tuple[IO[bytes], os.stat_result]]:
    """Open the regular file at ``path`` below ``root``, and yield it with its status.

    :raises OutputsError: when there is none, or a part of the path is a link
    """
    checked = check_path(path, hidden=hidden)
    above, _, name = checked.rpartition("/")
    try:
        with open_below(root, above or ".") as folder:
            fd = os.open(name, _READ, dir_fd=folder.fd)
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        reason = "it is a link, or lies behind one" if is_link else error.strerror
        raise OutputsError(f"{checked}: {reason}.") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OutputsError(f"{checked} is no regular file.")
    with os.fdopen(fd, "rb", buffering=0) as file:
        yield file, status
