"""Compares what a sandbox says with the folder on disk. Reads the disk; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gvisor_kernel.changes.autorun import EXECUTABLE, find_kind
from gvisor_kernel.changes.change import MAX_CHANGES, Change, Changes, Claim, OnDisk, make_state
from gvisor_kernel.changes.folder import find_digest, is_executable, list_files, look
from gvisor_kernel.host.folders import Opened

HASHED = 256 * 1024 * 1024
"""Bytes of files on disk that are read, to leave out those that are the same in both."""
LINK = "a part of this path is a link, or cannot be opened, on disk"
SPECIAL = "the sandbox has a link, device, pipe or socket there, which is never written to disk"
OTHER_TYPE = "on disk it is {}: with force that is replaced"
NOT_OURS = "on disk it is {}: remove that yourself"
LATER = "it was changed on disk since the kernel was started"
REPOSITORY = "it is a repository's own: with force it is written"
TYPES = {"file": "a file", "folder": "a folder", "other": "a link, device, pipe or socket"}


class _Comparison:
    def __init__(self, root: Opened, started: float, ours: Mapping[str, OnDisk | None]) -> None:
        self._root = root
        self._started = int(started * 1e9)
        self._ours = ours
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
                below = Claim(path, True, "other", 0, 0, "")
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
        is_refused, runs = refused and conflict is not None, None
        if shown == "file" and not is_refused:
            runs = find_kind(claim.path)
            if runs is not None and runs.needs_force:
                conflict = conflict or REPOSITORY
            elif claim.is_removed:  # nothing is left that could run
                runs = None
            elif runs is None and disk is not None and is_executable(self._root, claim.path):
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
) -> Changes:
    """Return the differences between a sandbox's claims and the folder ``root``, by path.

    ``started``: Unix time of the kernel's start; a file that was changed on disk after it is a
    conflict. ``ours`` has the facts of files that applies from this sandbox have written: they are
    none (None), unless an undo has brought back what was one. Files with the same content in both
    are left out, as far as contents were read.
    """
    comparison = _Comparison(root, started, ours)
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
