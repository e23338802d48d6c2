"""Operations of the service process on files, as the kernel's user. Standard library, Python 3.9.

Paths are what the host was asked for; those that are not absolute are below the kernel's folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import threading
from contextlib import suppress
from typing import Any, BinaryIO

from gvisor_kernel.link.service_messages import MAX_CONTENT

AROUND_NAME = 100
"""Bytes of an entry in an answer, beside its name, at most."""
SPECIAL = "It is a device, pipe or socket"


def read(path: str, offset: int, size: int) -> tuple[dict[str, object], bytes]:
    """Return the size of a file, and ``size`` bytes of it from ``offset`` on.

    :raises OSError: it cannot be read
    """
    with open_regular(path, os.O_RDONLY) as file:
        total = os.fstat(file.fileno()).st_size
        file.seek(offset)
        return {"total": total}, file.read(size)


def write(path: str, data: bytes, first: bool) -> dict[str, object]:
    """Write the first bytes of a file, or append others. Folders above it are made.

    :raises OSError: it cannot be written
    """
    if first and os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | (0 if first else os.O_APPEND)
    with open_regular(path, flags) as file:
        if first:
            file.truncate(0)
        file.write(data)
    return {}


def open_regular(path: str, flags: int) -> BinaryIO:
    """Open a file, never waiting for the other end of a pipe.

    :raises OSError: it is no regular file, or cannot be opened
    """
    fd = os.open(path, flags | os.O_NONBLOCK, 0o666)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else SPECIAL)
        return open(fd, "wb" if flags & os.O_WRONLY else "rb")
    except BaseException:
        os.close(fd)
        raise


def list_folder(path: str, limit: int) -> dict[str, object]:
    """Return up to ``limit`` entries: name, kind, size, time of change.

    :raises OSError: it cannot be read
    """
    entries: list[list[object]] = []
    more = size = 0
    with os.scandir(path) as found:
        for entry in found:
            size += len(json.dumps(entry.name)) + AROUND_NAME
            if len(entries) >= limit or size > MAX_CONTENT:
                more += 1
                break
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed meanwhile
                continue
            mode = status.st_mode
            kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
            kind = "link" if stat.S_ISLNK(mode) else kind
            entries.append([entry.name, kind, status.st_size, status.st_mtime])
    return {"path": os.path.abspath(path), "entries": entries, "more": more}


def change(what: str, path: str) -> dict[str, object]:
    """Do what is not reading or writing: exists, make, remove.

    :raises OSError: it cannot be done
    """
    if what == "exists":
        return {"exists": os.path.lexists(path)}
    if what == "make":
        os.makedirs(path, exist_ok=True)
    elif what == "remove":
        if os.path.isdir(path) and not os.path.islink(path):
            try:
                shutil.rmtree(path)
            except RecursionError:
                raise OSError(errno.ELOOP, "It has too many folders in folders") from None
        else:
            os.remove(path)
    else:
        raise ValueError(f"nobody knows how to do {what}")
    return {}


# -- moves -----------------------------------------------------------------------------------------
# A move that fails leaves nothing at its target. What cannot be removed from its place, as its file
# system is read-only, is copied.

PART = 1024 * 1024
MAX_DEPTH = 300
OUTPUTS = "/mnt/user-data/outputs"
PART_PREFIX = ".moving-"
BLOCK = 4096
"""Bytes that each file or folder takes at least."""
COPIED = (errno.EXDEV, errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY)
"""Errors of a rename after which a copy may succeed."""


class Move:
    """One move. It can be stopped while it copies."""

    def __init__(self, path: str, target: str) -> None:
        self._source = _make_real(path)
        self._target = _make_real(target)
        self._is_stopped = False
        self._room = 0
        """Bytes that may still be copied."""
        self._over = threading.Event()

    def handle(self, content: dict[str, Any]) -> None:
        """Handle a message of the host."""
        if "signal" in content:
            self._is_stopped = True

    def kill(self) -> None:
        """Stop it, and wait until nothing of it is left."""
        self._is_stopped = True
        self._over.wait()

    def run(self) -> dict[str, object]:
        """Move it; make folders above the target.

        ``result``: "moved"; "copied", where the source cannot be removed; "exists", if a folder
        would replace something or be replaced; "full", with ``size`` and ``free`` in bytes.
        ``replaced``: there was a file of that name. ``folder``: it is one. Of the last two results
        nothing is left.

        :raises OSError: it cannot be moved
        """
        try:
            return self._run()
        finally:
            self._over.set()

    def _run(self) -> dict[str, object]:
        mode = os.lstat(self._source).st_mode
        if self._source == self._target:
            return {"result": "moved", "replaced": False, "folder": stat.S_ISDIR(mode)}
        if self._target.startswith(self._source.rstrip("/") + "/"):
            raise OSError(errno.EINVAL, "A folder cannot be moved into itself")
        made: list[str] = []
        answer: dict[str, object] = {}
        try:
            _make_folders(os.path.dirname(self._target), made)
            answer = self._move(stat.S_ISDIR(mode))
        finally:
            if answer.get("result") not in ("moved", "copied"):
                for folder in reversed(made):
                    with suppress(OSError):
                        os.rmdir(folder)
        return {**answer, "folder": stat.S_ISDIR(mode)}

    def _move(self, is_folder: bool) -> dict[str, object]:
        source, target = self._source, self._target
        replaced = os.path.lexists(target)
        if replaced and (is_folder or stat.S_ISDIR(os.lstat(target).st_mode)):
            return {"result": "exists"}
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno not in COPIED:
                raise
        else:
            return {"result": "moved", "replaced": replaced}
        folder = os.path.dirname(target)
        system = os.statvfs(folder)
        self._room = free = system.f_bavail * system.f_frsize
        size = self._measure(free)
        if size > free:
            return {"result": "full", "size": size, "free": free}
        top = OUTPUTS if folder.startswith(OUTPUTS + "/") else folder
        part = os.path.join(top, f"{PART_PREFIX}{os.urandom(8).hex()}")
        try:
            self._copy(part)
            os.rename(part, target)
        except BaseException:
            _remove(part)
            raise
        return {"result": self._remove_source(), "replaced": replaced}

    def _remove_source(self) -> str:
        above = os.path.dirname(self._source)
        is_fixed = os.statvfs(above).f_flag & os.ST_RDONLY or not os.access(above, os.W_OK)
        if is_fixed or _is_mount(self._source):
            return "copied"
        try:
            if os.path.isdir(self._source) and not os.path.islink(self._source):
                shutil.rmtree(self._source)
            else:
                os.remove(self._source)
        except OSError:
            return "copied"
        return "moved"

    def _measure(self, limit: int) -> int:
        """Return what a copy takes, in bytes; no more is counted above ``limit``.

        :raises OSError: a file cannot be copied
        """
        size, left = 0, [(self._source, 0)]
        while left and size <= limit:
            self._check()
            path, depth = left.pop()
            status = os.lstat(path)
            size += max(BLOCK, status.st_size)
            if stat.S_ISDIR(status.st_mode):
                if depth >= MAX_DEPTH:  # what is copied, others have to remove
                    raise OSError(errno.ELOOP, f"It has more than {MAX_DEPTH} folders in folders")
                left += [(os.path.join(path, name), depth + 1) for name in os.listdir(path)]
            elif not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                raise OSError(errno.EINVAL, f"{os.path.basename(path)}: {SPECIAL}")
        return size

    def _check(self) -> None:
        if self._is_stopped:
            raise OSError(errno.ECANCELED, "It was stopped")

    def _copy(self, target: str) -> None:
        left: list[tuple[str, str]] = [(self._source, target)]
        folders: list[tuple[str, os.stat_result]] = []
        while left:
            self._check()
            path, to = left.pop()
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(to, 0o700)
                folders.append((to, status))
                left += [(os.path.join(path, n), os.path.join(to, n)) for n in os.listdir(path)]
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(path), to)
            else:
                with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                    self._copy_file(file, to)
                _take_over(to, status, 0)
        for to, status in reversed(folders):
            _take_over(to, status, stat.S_IRWXU)

    def _copy_file(self, file: BinaryIO, to: str) -> None:
        with open(to, "xb") as copy:
            while True:
                self._check()
                data = file.read(PART)
                if not data:
                    return
                self._room -= len(data)  # it may grow meanwhile, or have no size, as in /proc
                if self._room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                copy.write(data)


def remove_parts() -> None:
    """Remove what a move has left in outputs whose process was killed."""
    with suppress(OSError):
        for name in os.listdir(OUTPUTS):
            if re.fullmatch(re.escape(PART_PREFIX) + "[0-9a-f]{16}", name):
                _remove(os.path.join(OUTPUTS, name))


def rename(path: str, target: str) -> dict[str, object]:
    """Rename a file or folder, also to another file system.

    :raises OSError: it cannot be renamed
    """
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        result = Move(path, target).run()["result"]
        if result == "copied":
            text = "It was copied, as it cannot be removed from its place"
            raise OSError(errno.EROFS, text) from None
        if result != "moved":
            code = errno.EEXIST if result == "exists" else errno.ENOSPC
            raise OSError(code, os.strerror(code)) from None
    return {}


def _make_real(path: str) -> str:
    """Return a path whose folders are no links."""
    folder, name = os.path.split(path.rstrip("/") or "/")
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def _make_folders(path: str, made: list[str]) -> None:
    """Make a folder and those above it; add those that were made to ``made``."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        os.mkdir(folder)
        made.append(folder)


def _is_mount(path: str) -> bool:
    """Return whether something is mounted there. Numbers of devices do not tell: overlays mix."""
    with open("/proc/self/mounts", "rb") as file:
        places = [line.split(b" ")[1] for line in file if line.count(b" ") > 1]
    escaped = os.fsencode(path).replace(b"\\", rb"\134").replace(b" ", rb"\040")
    return escaped in places


def _take_over(path: str, status: os.stat_result, more: int) -> None:
    """Give a copy the times and rights of what it is a copy of; no bits such as setuid."""
    with suppress(OSError):
        os.chmod(path, status.st_mode & 0o777 | more)
    with suppress(OSError):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _remove(path: str) -> None:
    with suppress(OSError, RecursionError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
