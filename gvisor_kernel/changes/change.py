"""A change: what a sandbox has of a path, and what the folder on disk has. Data only.

``state`` is what somebody looked at, on both sides, as text. Whoever applies a change sends it
back, and it is compared with what is there now. It is no secret and no proof: it only says what was
seen.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal

from gvisor_kernel.errors import GvisorKernelError

Kind = Literal["added", "changed", "removed"]
Type = Literal["file", "folder", "other"]

MAX_CHANGES = 10_000
"""Changes that are listed."""
MAX_FILE = 256 * 1024 * 1024
"""Bytes of a file that is applied."""
MAX_PATH, MAX_NAME = 4096, 255


class ChangesError(GvisorKernelError):
    """The changes of a sandbox cannot be listed, shown, applied or undone."""


@dataclass(frozen=True)
class OnDisk:
    """A file or folder on disk, as it was looked at; all of it tells it from a later one."""

    type: Type
    device: int
    inode: int
    size: int
    modified: int
    """Nanoseconds, as ``changed`` is: the time of the last change of its owner, rights or name."""
    changed: int

    @property
    def text(self) -> str:
        """The facts as a part of ``state``. Those of a folder change with each name in it."""
        if self.type == "folder":
            return f"folder.{self.device}.{self.inode}"
        facts = (self.device, self.inode, self.size, self.modified, self.changed)
        return ".".join((self.type, *map(str, facts)))


@dataclass(frozen=True)
class Claim:
    """A sandbox's claim about one path. ``digest``: SHA-256 in hexadecimal; empty if not known."""

    path: str
    is_removed: bool
    type: Type
    size: int
    modified: int
    digest: str

    @property
    def text(self) -> str:
        """The claim as a part of ``state``."""
        if self.is_removed:
            return "removed"
        if self.type == "folder":  # its time of change is that of the names in it
            return "folder"
        return f"{self.type}.{self.size}.{self.modified}.{self.digest}"


@dataclass(frozen=True)
class Change:
    """One difference between /workspace and the folder on disk.

    ``path``: relative, with "/". ``size``: in the sandbox, 0 for what was removed; ``old_size``: on
    disk, None if there is nothing. ``conflict``: why it is not applied unless it is forced, or not
    at all (``is_refused``); None if nothing is in the way. ``runs``: why it may run later without
    being opened, so that it is applied only if its own path is named; None if nothing says so.
    """

    path: str
    kind: Kind
    type: Type
    size: int
    old_size: int | None
    state: str
    conflict: str | None = None
    is_refused: bool = False
    runs: str | None = None

    @property
    def token(self) -> str:
        """Path and state in 32 letters and digits, for a person to send back.

        Its 160 bits are for a sandbox that chooses both of two contents, the one that is shown and
        the one that it wants applied: two with the same token cost 2**80 hashes.
        """
        digest = hashlib.sha256(f"{self.path}\0{self.state}".encode()).digest()
        return base64.b32encode(digest[:20]).decode().lower()


@dataclass(frozen=True)
class Changes:
    """The changes found. ``more``: there may be others; ``total``: how many were counted."""

    changes: tuple[Change, ...]
    more: bool
    total: int


@dataclass(frozen=True)
class RefusedChange:
    """A change that was not applied or undone, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Applied:
    """The result of ``apply``. ``undo``: the id for ``undo``; None if nothing was changed."""

    applied: tuple[str, ...]
    refused: tuple[RefusedChange, ...]
    undo: str | None


@dataclass(frozen=True)
class Undone:
    """The result of ``undo`` in ``folder``: the paths that are as before, and the others."""

    folder: str
    undone: tuple[str, ...]
    refused: tuple[RefusedChange, ...]


def encode_changes(found: Changes, more: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return ``found`` as a JSON object, with the members ``more``.

    Made change by change: to encode all of it at once would hold the interpreter lock for as long
    as ten thousand changes take.
    """
    listed = ",".join(json.dumps(asdict(change)) for change in found.changes)
    rest = json.dumps({"more": found.more, "total": found.total, **more})
    return f'{{"changes": [{listed}], {rest[1:]}'


def make_state(disk: OnDisk | None, claim: Claim) -> str:
    """Return what was looked at as text."""
    return f"{disk.text if disk is not None else 'absent'} {claim.text}"


def is_path(path: object) -> bool:
    """Return whether a path is relative, stays below its folder, and can be a name on disk."""
    if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH or "\0" in path:
        return False
    try:
        parts = path.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return all(0 < len(part) <= MAX_NAME and part not in (b".", b"..") for part in parts)
