"""The digest of a root file system. It identifies an image and shows whether it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.archive.tar import CHUNK

# by path: below a private store of this user; an image that a person has given


@dataclass(frozen=True)
class Measure:
    """``digest`` is SHA-256 in hexadecimal digits, ``size`` is in bytes on the disk."""

    digest: str
    size: int
    entries: int


def measure_tree(directory: Path, environment: Mapping[str, str]) -> Measure:
    """Compute the digest and the size of a root file system. Reads every file. Blocks.

    The digest covers the environment, and names, kinds, modes, contents and link targets of all
    files, and the modification times of regular files, because compiled Python modules depend on
    them. Owners and inodes are not covered.

    :raises OSError: when a file cannot be read
    """
    total = hashlib.sha256(json.dumps(dict(environment), sort_keys=True).encode())
    contents: dict[tuple[int, int], str] = {}
    size = entries = 0
    waiting = [b"."]
    root = os.fsencode(directory)
    while waiting:
        place = waiting.pop()
        with os.scandir(os.path.join(root, place)) as found:  # noqa: PTH118 - bytes
            items = sorted(found, key=lambda item: item.name)
        for item in items:
            status = item.stat(follow_symlinks=False)
            path = place + b"/" + item.name
            kind, detail = stat.S_IFMT(status.st_mode), ""
            inode = (status.st_dev, status.st_ino)
            if kind == stat.S_IFDIR:
                waiting.append(path)
            elif kind == stat.S_IFREG:
                if inode not in contents:
                    contents[inode] = _digest(os.path.join(root, path))  # noqa: PTH118
                detail = f"{int(status.st_mtime)} {contents[inode]}"
            elif kind == stat.S_IFLNK:
                detail = os.fsdecode(os.readlink(os.path.join(root, path)))  # noqa: PTH115, PTH118
            line = f"{kind:o} {stat.S_IMODE(status.st_mode):o} {os.fsdecode(path)}\0{detail}\0"
            total.update(os.fsencode(line))
            if kind == stat.S_IFDIR or inode not in contents or status.st_nlink == 1:
                size += status.st_blocks * 512
            else:
                size += status.st_blocks * 512 // status.st_nlink
            entries += 1
    return Measure(total.hexdigest(), size, entries)


def _digest(path: bytes) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = hashlib.sha256()
    try:
        # no timeout: a file; a pipe ends with its writer, or with Ctrl-C
        while data := os.read(fd, CHUNK):
            found.update(data)
    finally:
        os.close(fd)
    return found.hexdigest()
