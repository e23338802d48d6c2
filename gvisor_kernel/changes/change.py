"""A change: what a sandbox has of a path, and what the folder on disk has; and which ones a person
has chosen. Data and pure functions only.

``state`` is what somebody looked at, on both sides, as text. Whoever applies a change sends it
back, and it is compared with what is there now. It is no secret and no proof: it only says what was
seen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.spec.layout import WORKSPACE

if TYPE_CHECKING:
    import os

Kind = Literal["added", "changed", "removed"]
Type = Literal["file", "folder", "other"]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

MAX_CHANGES = 10_000
"""Changes that are listed."""
MAX_FILE = 256 * 1024 * 1024
"""Bytes of a file that is applied."""
MAX_PATH, MAX_NAME = 4096, 255


class ChangesError(GvisorKernelError):
    """The changes of a sandbox cannot be listed, shown, applied or undone."""


class OnDisk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file or folder on disk, as it was looked at; all of it tells it from a later one."""

    type: Type
    device: int
    inode: int
    size: int
    modified: int
    """Nanoseconds, as ``changed`` is: the time of the last change of its owner, rights or name."""
    changed: int
    mode: int = 0
    """Its rights. No part of ``text``: they are no change."""

    @classmethod
    def of(cls, status: os.stat_result) -> OnDisk:
        """Return what ``status`` says."""
        mode = status.st_mode
        return cls(
            "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other",
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            stat.S_IMODE(mode),
        )

    @property
    def text(self) -> str:
        """The facts as a part of ``state``. Those of a folder change with each name in it."""
        if self.type == "folder":
            return f"folder.{self.device}.{self.inode}"
        facts = (self.device, self.inode, self.size, self.modified, self.changed)
        return ".".join((self.type, *map(str, facts)))


class Claim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A sandbox's claim about one path. ``digest``: SHA-256 in hexadecimal; empty if not known."""

    path: str
    kind: Literal["written", "removed"]
    type: Type
    size: Number
    modified: Number
    digest: Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]

    @property
    def is_removed(self) -> bool:
        """Return whether the sandbox has removed it."""
        return self.kind == "removed"

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


def encode(value: object) -> bytes:
    """Return JSON. What is not UTF-8 in a text, as in a name on disk, becomes a question mark."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return text.encode(errors="replace")


def encode_changes(found: Changes, **more: object) -> bytes:
    """Return ``found`` as a JSON object, with the members ``more``.

    No other thread runs meanwhile: ten thousand changes take 4 ms (``json`` took 90).
    """
    whole = {"changes": found.changes, "more": found.more, "total": found.total}
    return encode(whole | more)


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


def name_path(text: str) -> str:
    """Return the path of a change that a person has named.

    :raises ChangesError: when it is none in /workspace
    """
    path = text.removeprefix(f"{WORKSPACE}/").removeprefix("./").rstrip("/")
    if not is_path(path):
        raise ChangesError(f"{path!r} is no path in /workspace.")
    return path


def select(changes: Changes, paths: Iterable[str]) -> list[Change]:
    """Return the changes of ``paths``, of what is below them, and of new folders above them.

    :raises ChangesError: when a path is no change
    """
    found = {change.path: change for change in changes.changes}
    chosen: dict[str, Change] = {}
    for text in paths:
        path = name_path(text)
        below = {p: c for p, c in found.items() if p == path or p.startswith(f"{path}/")}
        if not below:
            raise ChangesError(f"{text!r} is not changed in /workspace.")
        chosen |= find_new_parents(found, path) | below
    return list(chosen.values())


def find_seen(changes: Changes, tokens: Iterable[str]) -> list[Change]:
    """Return the changes that were shown with these tokens, and new folders above them.

    :raises ChangesError: when one is not there any more as it was shown
    """
    found = {change.path: change for change in changes.changes}
    shown = {change.token: change for change in changes.changes}
    chosen: dict[str, Change] = {}
    for token in tokens:
        change = shown.get(token)
        if change is None:
            raise ChangesError(
                f"What was shown with {token} is not there any more: it has changed since then, in"
                " the sandbox or on disk, or was applied. Nothing was applied now.",
                "look again: gvisor-kernel changes --diff.",
            )
        chosen |= find_new_parents(found, change.path) | {change.path: change}
    return list(chosen.values())


def note_more(result: Applied, listed: Changes) -> Applied:
    """Return what ``apply`` did with changes that ``select`` has chosen from ``listed``."""
    if not listed.more:
        return result
    left = RefusedChange("…", "there may be more changes than are listed: apply the rest once more")
    return replace(result, refused=(*result.refused, left))


def find_new_parents(found: Mapping[str, Change], path: str) -> dict[str, Change]:
    """Return the folders above a path that are changes themselves: new ones."""
    parts = path.split("/")
    parents = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return {p: found[p] for p in parents if p in found and found[p].kind == "added"}
