"""Operations of the service process on files, as the kernel's user. Standard library, Python 3.9.

Paths are what the host was asked for; those that are not absolute are below the kernel's folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from typing import BinaryIO, Dict, List, Tuple

from gvisor_kernel.link.service_messages import MAX_CONTENT

AROUND_NAME = 100
"""Bytes of an entry in an answer, beside its name, at most."""
SPECIAL = "It is a device, pipe or socket"


def read(path: str, offset: int, size: int) -> Tuple[Dict[str, object], bytes]:
    """Return the size of a file, and ``size`` bytes of it from ``offset`` on.

    :raises OSError: it cannot be read
    """
    with open_regular(path, os.O_RDONLY) as file:
        total = os.fstat(file.fileno()).st_size
        file.seek(offset)
        return {"total": total}, file.read(size)


def write(path: str, data: bytes, first: bool) -> Dict[str, object]:
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


def list_folder(path: str, limit: int) -> Dict[str, object]:
    """Return up to ``limit`` entries: name, kind, size, time of change.

    :raises OSError: it cannot be read
    """
    entries: List[List[object]] = []
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


def change(what: str, path: str) -> Dict[str, object]:
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
