"""Finds what was changed in /workspace: looks through the upper layer of its overlay.

gVisor's overlay keeps in the upper layer what was written, and a character device with the number
0 for what was removed. It shows nobody but PID 1 which folders of the upper layer hide those of the
uploads: so the names of both are compared. The host compares all of it with the folder on disk, and
believes none of it. Standard library, Python 3.9.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gvisor_kernel.guest.service_files import open_regular
from gvisor_kernel.guest.workspace import (
    UPLOADS,
    UPPER,
    WORKSPACE,
    find_shown_outputs,
    is_cache,
)

MAX_DEPTH = 100
"""Nested folders that are looked into."""
MAX_VISITED = 200_000
"""Entries that are looked at."""
MAX_SECONDS = 5.0
MAX_TEXT = 1024 * 1024
"""Bytes of all paths in an answer: those of ten thousand names of a hundred."""
HASHED_FILE, HASHED = 64 * 1024 * 1024, 256 * 1024 * 1024
"""Bytes of one file, and of all files, whose content gets a digest."""
PART = 1024 * 1024

Entry = tuple[str, str, str, int, int, str]
"""Path, kind ("written" or "removed"), type ("file", "folder", "other"), size, time of change in
nanoseconds, and SHA-256; empty if it is not known."""


class _Look:
    """One look through the upper layer."""

    def __init__(
        self, limit: int, seconds: float, hashed: int, only_written: bool, under: list[str]
    ) -> None:
        self._only_written = only_written
        self._under = set(under)
        self._above = {above for path in under for above in _find_above(path)}
        self.entries: list[Entry] = []
        self.total = 0
        self.more = False
        """True if not all was looked at, or not all is in ``entries``."""
        self._limit = limit
        self._end = time.monotonic() + seconds
        self._visited = 0
        self._text = 0
        self._hashed = HASHED - hashed

    def run(self) -> None:
        skipped = find_shown_outputs()
        left: list[tuple[str, int]] = [("", 0)]
        while left:
            folder, depth = left.pop()
            below: list[tuple[str, int]] = []
            names = set()
            try:
                with os.scandir(os.path.join(UPPER, folder)) as found:
                    for entry in found:
                        if self._is_over():
                            return
                        path = os.path.join(folder, entry.name)
                        if path == skipped or not self._is_wanted(path):
                            continue
                        names.add(entry.name)
                        try:
                            self._take(path, entry.stat(follow_symlinks=False), depth, below)
                        except OSError:
                            self.more = True
                self._find_hidden(folder, names)
            except OSError:  # it was removed or renamed meanwhile, or must not be read
                self.more = True
                continue
            left += below

    def _is_wanted(self, path: str) -> bool:
        return (
            not self._under
            or path in self._under
            or path in self._above
            or any(above in self._under for above in _find_above(path))
        )

    def _is_over(self) -> bool:
        self._visited += 1
        if self._visited > MAX_VISITED or time.monotonic() > self._end:
            self.more = True
        return self._visited > MAX_VISITED or time.monotonic() > self._end

    def _take(
        self, path: str, status: os.stat_result, depth: int, below: list[tuple[str, int]]
    ) -> None:
        mode = status.st_mode
        if stat.S_ISCHR(mode) and status.st_rdev == 0:
            if os.path.lexists(os.path.join(UPLOADS, path)):  # else it was made and removed here
                self._add(path, "removed", "other", 0, 0)
        elif stat.S_ISDIR(mode):
            if self._only_written and is_cache(os.path.basename(path), f"{UPPER}/{path}"):
                return
            if depth < MAX_DEPTH:
                below.append((path, depth + 1))
            else:
                self.more = True
            if not _is_folder(os.path.join(UPLOADS, path)):
                self._add(path, "written", "folder", 0, status.st_mtime_ns)
        else:
            kind = "file" if stat.S_ISREG(mode) else "other"
            digest = self._hash(path, status.st_size) if kind == "file" else ""
            self._add(path, "written", kind, status.st_size, status.st_mtime_ns, digest)

    def _find_hidden(self, folder: str, names: set[str]) -> None:
        """Add what a folder that was made anew hides: none of the uploads' names is visible."""
        if not folder:
            return
        hidden: bool | None = None
        with suppress(OSError), os.scandir(os.path.join(UPLOADS, folder)) as found:
            for entry in found:
                path = os.path.join(folder, entry.name)
                if time.monotonic() > self._end:
                    self.more = True
                    return
                if entry.name in names or not self._is_wanted(path):
                    continue
                if hidden is None:
                    hidden = not os.path.lexists(os.path.join(WORKSPACE, path))
                if not hidden or self._is_over():
                    return
                self._add(path, "removed", "other", 0, 0)

    def _add(
        self, path: str, kind: str, what: str, size: int, modified: int, digest: str = ""
    ) -> None:
        try:
            length = len(path.encode())
        except UnicodeEncodeError:  # nobody could name it in a message
            self.more = True
            return
        if self._only_written and (kind, what) != ("written", "file"):
            return
        self.total += 1
        self._text += length
        if len(self.entries) >= self._limit or self._text > MAX_TEXT:
            self.more = True
            return
        self.entries.append((path, kind, what, size, modified, digest))

    def _hash(self, path: str, size: int) -> str:
        if size > HASHED_FILE or self._hashed + size > HASHED or len(self.entries) >= self._limit:
            return ""
        digest, left = hashlib.sha256(), HASHED_FILE
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW
            with open_regular(os.path.join(UPPER, path), flags) as file:
                # It may grow meanwhile, and faster than it is read.
                while self._hashed <= HASHED and left >= 0 and time.monotonic() <= self._end:
                    data = file.read(PART)
                    if not data:
                        return digest.hexdigest()
                    self._hashed += len(data)
                    left -= len(data)
                    digest.update(data)
        return ""


def find_changes(
    limit: int,
    seconds: float,
    digests: bool,
    only_written: bool = False,
    under: Sequence[str] = (),
    hashed: int = HASHED,
) -> dict[str, Any]:
    """Return what was written or removed in /workspace: at most ``limit`` entries.

    ``total``: how many there are, as far as it was looked; ``more``: whether there may be others.
    ``digests``: whether contents are read, at most ``hashed`` bytes. ``only_written``: no folders,
    nothing removed, and nothing in caches. ``under``: only these paths, what is below them, and
    folders above them.
    """
    allowed = max(0, min(hashed, HASHED)) if digests else 0
    look = _Look(limit, min(seconds, MAX_SECONDS), allowed, only_written, list(under))
    look.run()
    return {"entries": look.entries, "total": look.total, "more": look.more}


def _find_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
