"""A folder on disk, what a sandbox says of it, and applying without a sandbox."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

from gvisor_kernel.changes.apply import Applying, order
from gvisor_kernel.changes.backups import MAX_JOURNAL, Backup, Backups, Head
from gvisor_kernel.changes.change import Applied, Change, Changes, OnDisk
from gvisor_kernel.changes.compare import compare, read_claims
from gvisor_kernel.changes.folder import look
from gvisor_kernel.host.folders import Opened, open_real

LATER = 10.0
"""Seconds in the future: no file of a test is younger."""


def entry(
    path: str, kind: str = "written", what: str = "file", size: int = 3, digest: str = ""
) -> list[object]:
    return [path, kind, what, size, 1, digest]


def find(
    root: Opened,
    *entries: list[object],
    started: float | None = None,
    ours: Mapping[str, OnDisk | None] | None = None,
    hides: bool = False,
) -> Changes:
    claims, more, total = read_claims(
        {"entries": list(entries), "total": len(entries), "more": False}
    )
    begin = time.time() + LATER if started is None else started
    return compare(root, claims, begin, more=more, total=total, ours=ours or {}, hides=hides)


def open_root(path: Path) -> Opened:
    return open_real(os.path.realpath(path))


def begin(root: Opened, room: int = MAX_JOURNAL) -> Backup:
    return Backups.open().begin(Head("sandbox", root.path, root.identity), room)


def apply(root: Opened, backup: Backup, changes: Changes, content: bytes = b"new") -> Applied:
    """Apply all changes as they are; each file gets ``content``."""
    work = Applying(root, backup)
    chosen: list[Change] = sorted(changes.changes, key=order)
    for change in chosen:
        work.apply(change, look(root, change.path), io.BytesIO(content))
    return work.result
