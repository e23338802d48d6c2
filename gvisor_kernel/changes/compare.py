"""Compares what a sandbox says of its changes with the folder on disk. Reads the disk, and changes
nothing.

All that a sandbox says may be made up; it is bounded and checked here. About its own files it may
lie: then a person is told of others, or of none.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from gvisor_kernel.changes.autorun import EXECUTABLE, find_kind, is_data
from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import (
    MAX_CHANGES,
    MAX_FILE,
    Change,
    Changes,
    ChangesError,
    Claim,
    Number,
    OnDisk,
    is_path,
    make_state,
)
from gvisor_kernel.changes.folder import find_digest, list_files, look
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.folders import Opened, reopen
from gvisor_kernel.kernel.facts import Left
from gvisor_kernel.kernel.workspace import find_view
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.spec.layout import UPLOADS

HASHED = 256 * 1024 * 1024
"""Bytes of files on disk that are read, to leave out those that are the same in both."""
LINK = "a part of this path is a link, or cannot be opened, on disk"
SPECIAL = "the sandbox has a link, device, pipe or socket there, which is never written to disk"
OTHER_TYPE = "on disk it is {}: with force that is replaced"
HIDDEN = "it is a hidden file or folder of the project, which the kernel was not shown"
NOT_OURS = "on disk it is {}: remove that yourself"
LATER = "it was changed on disk since the kernel was started"
REPOSITORY = "it is a repository's own: with force it is written"
TYPES = {"file": "a file", "folder": "a folder", "other": "a link, device, pipe or socket"}

MAX_LISTED = 1000
"""Files that a sandbox names when it is asked for those that are not kept, while it lives."""
MAX_NAMED = 30
SECONDS = 0.3
"""Seconds that the disk is looked at then. Files for which there is no time count as not kept."""
UNKEPT_HASHED = 4 * 1024 * 1024
"""Bytes of files whose contents are compared then."""


class _Answer(msgspec.Struct):
    entries: Annotated[list[Claim], msgspec.Meta(max_length=MAX_CHANGES)]
    total: Number
    more: object = True


def read_claims(content: Mapping[str, Any]) -> tuple[dict[str, Claim], bool, int]:
    """Return claims by path, whether there may be more, and how many the sandbox counted.

    :raises ChangesError: when it is no answer
    """
    wrong = ChangesError("The sandbox did not answer as it should about its changes.")
    try:
        answer = msgspec.convert(content, _Answer)
    except ValueError:
        raise wrong from None
    claims = {claim.path: claim for claim in answer.entries}
    if len(claims) != len(answer.entries) or not all(map(is_path, claims)):
        raise wrong
    more = answer.more is not False or answer.total > len(claims)
    return claims, more, max(answer.total, len(claims))


class _Comparison:
    def __init__(
        self, root: Opened, started: float, ours: Mapping[str, OnDisk | None], hides: bool
    ) -> None:
        self._root = root
        self._started = int(started * 1e9)
        self._ours = ours
        self._hides = hides
        self._hashed = HASHED
        self.found: list[Change] = []
        self.more = False

    def add(self, claim: Claim) -> None:
        try:
            disk = look(self._root, claim.path)
        except OSError:
            self._put(claim, None, LINK, refused=True)
            return
        if claim.is_removed:
            if disk is not None:
                self._add_removed(claim, disk)
        elif disk is None:
            self._put(claim, None, SPECIAL if claim.type == "other" else None, refused=True)
        elif disk.type == claim.type == "folder" or self._is_equal(claim, disk):
            return
        elif claim.type == "other":
            self._put(claim, disk, SPECIAL, refused=True)
        elif disk.type == "other":
            self._put(claim, disk, NOT_OURS.format(TYPES[disk.type]), refused=True)
        elif disk.type != claim.type:
            self._put(claim, disk, OTHER_TYPE.format(TYPES[disk.type]))
            self._add_below(claim, disk)
        else:
            self._put(claim, disk, self._find_conflict(disk))

    def _add_removed(self, claim: Claim, disk: OnDisk) -> None:
        self._put(claim, disk, self._find_conflict(disk))
        self._add_below(claim, disk)

    def _add_below(self, claim: Claim, disk: OnDisk) -> None:
        """Add what goes with a folder on disk."""
        if disk.type != "folder":
            return
        try:
            for path, found in list_files(self._root, claim.path, MAX_CHANGES - len(self.found)):
                if not is_path(path):  # it is no UTF-8
                    self.more = True
                    continue
                below = Claim(path, "removed", "other", 0, 0, "")
                self._put(below, found, self._find_conflict(found))
        except OSError:
            self.more = True
        self.more |= len(self.found) >= MAX_CHANGES

    def _is_equal(self, claim: Claim, disk: OnDisk) -> bool:
        if not claim.digest or disk.type != "file" or disk.size != claim.size:
            return False
        self._hashed -= disk.size
        return self._hashed >= 0 and (
            find_digest(self._root, claim.path, disk.size) == claim.digest
        )

    def _find_conflict(self, disk: OnDisk) -> str | None:
        if disk.type == "folder":
            return None
        for _ in range(len(self._ours) + 1):  # each undo brings back what the one before left
            if disk.text not in self._ours:
                break
            origin = self._ours[disk.text]
            if origin is None:
                return None
            disk = origin
        return LATER if max(disk.modified, disk.changed) > self._started else None

    def _put(
        self, claim: Claim, disk: OnDisk | None, conflict: str | None, *, refused: bool = False
    ) -> None:
        if len(self.found) >= MAX_CHANGES:
            self.more = True
            return
        kind = "removed" if claim.is_removed else "added" if disk is None else "changed"
        shown = disk.type if claim.is_removed and disk is not None else claim.type
        if self._hides and disk is not None and "/." in f"/{claim.path}":
            conflict, refused = HIDDEN, True
        is_refused, runs = refused and conflict is not None, None
        if shown == "file" and not is_refused:
            runs = find_kind(claim.path)
            if runs is not None and runs.needs_force:
                conflict = conflict or REPOSITORY
            elif claim.is_removed:  # nothing is left that could run
                runs = None
            elif runs is None and disk is not None and disk.type == "file" and disk.mode & 0o111:
                runs = EXECUTABLE
        self.found.append(
            Change(
                path=claim.path,
                kind=kind,  # type: ignore[arg-type]
                type=shown,
                size=claim.size,
                old_size=None if disk is None else disk.size,
                state=make_state(disk, claim),
                conflict=conflict,
                is_refused=is_refused,
                runs=None if runs is None else runs.reason,
            )
        )


def compare(
    root: Opened,
    claims: Mapping[str, Claim],
    started: float,
    *,
    more: bool,
    total: int,
    ours: Mapping[str, OnDisk | None] = MappingProxyType({}),
    hides: bool = False,
) -> Changes:
    """Return the differences between a sandbox's claims and the folder ``root``, by path.

    ``started``: Unix time of the kernel's start; a file that was changed on disk after it is a
    conflict. ``ours`` has the facts of files that applies from this sandbox have written: they are
    none (None), unless an undo has brought back what was one. Files with the same content in both
    are left out, as far as contents were read. ``hides``: the sandbox shows a project, whose hidden
    files the kernel was not shown.
    """
    comparison = _Comparison(root, started, ours, hides)
    for path in sorted(claims):
        comparison.add(claims[path])
    found = tuple(sorted(comparison.found, key=lambda change: change.path))
    return Changes(found, more or comparison.more, max(total if more else 0, len(found)))


def list_claims(claims: Mapping[str, Claim], reason: str, *, more: bool, total: int) -> Changes:
    """Return a sandbox's claims where there is no folder on disk, each refused for ``reason``."""
    found = tuple(
        Change(path, "added", claim.type, claim.size, None, make_state(None, claim), reason, True)
        for path, claim in sorted(claims.items())
        if not claim.is_removed
    )
    return Changes(found, more, total if more else len(found))


def find_unkept(sandbox: Sandbox, content: Mapping[str, Any], *, applies_new: bool = False) -> Left:
    """Return the files that end with ``sandbox``, the latest first. Reads the disk, for SECONDS.

    ``content``: what the sandbox says, as ``read_claims`` takes it. A file that was applied is on
    disk; so is one with the same content, as far as contents were read. ``applies_new``: leave out
    what the setting ``apply`` writes at the end.

    :raises ChangesError: when it says what it cannot say
    """
    claims, more, total = read_claims(content)
    written = [claim for claim in claims.values() if claim.type == "file" and not claim.is_removed]
    left = written
    view = find_view(sandbox, UPLOADS)
    if view is not None and view.identity is not None and written:
        ours: Collection[str] = ()
        with suppress(GvisorKernelError):
            found = Backups.open().find_ours(sandbox.directory.name)
            ours = [text for text, origin in found.items() if origin is None]
        with suppress(OSError), reopen(view.source, view.identity) as root:
            left = _leave_out_kept(root, written, ours, applies_new)
    dropped = len(claims) - len(left)
    latest = sorted(left, key=lambda claim: claim.modified, reverse=True)
    paths = tuple(claim.path for claim in latest[:MAX_NAMED])
    return Left(max(total - dropped, len(left)) if more else len(left), more, paths)


def _leave_out_kept(
    root: Opened, claims: list[Claim], ours: Collection[str], applies_new: bool
) -> list[Claim]:
    end, hashed, left = time.monotonic() + SECONDS, UNKEPT_HASHED, []
    for claim in claims:
        is_kept = False
        if time.monotonic() < end:
            with suppress(OSError):
                disk = look(root, claim.path)
                if disk is None:
                    is_kept = applies_new and is_data(claim.path) and claim.size <= MAX_FILE
                elif disk.type == "file" and disk.size == claim.size:
                    if claim.digest and disk.size <= hashed:
                        hashed -= disk.size
                        is_kept = find_digest(root, claim.path, disk.size) == claim.digest
                    else:
                        is_kept = disk.text in ours and claim.modified <= disk.changed
        if not is_kept:
            left.append(claim)
    return left
