"""Reads what a sandbox says of its changes. All of it may be made up; it is bounded and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gvisor_kernel.changes.change import MAX_CHANGES, ChangesError, Claim, is_path

MAX_NUMBER = 2**63
TYPES = ("file", "folder", "other")
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")


def read_claims(content: Mapping[str, Any]) -> tuple[dict[str, Claim], bool, int]:
    """Return claims by path, whether there may be more, and how many the sandbox counted.

    :raises ChangesError: when it is no answer
    """
    entries, total = content.get("entries"), content.get("total")
    if (
        not isinstance(entries, list)
        or len(entries) > MAX_CHANGES
        or type(total) is not int
        or not 0 <= total < MAX_NUMBER
    ):
        raise _wrong()
    claims: dict[str, Claim] = {}
    for entry in entries:
        claim = _read(entry)
        if claim.path in claims:
            raise _wrong()
        claims[claim.path] = claim
    return claims, content.get("more") is not False or total > len(claims), max(total, len(claims))


def _read(entry: object) -> Claim:
    if not isinstance(entry, list) or len(entry) != 6:
        raise _wrong()
    path, kind, what, size, modified, digest = entry
    if (
        not is_path(path)
        or kind not in ("written", "removed")
        or what not in TYPES
        or not all(type(n) is int and 0 <= n < MAX_NUMBER for n in (size, modified))
        or not isinstance(digest, str)
        or _DIGEST.fullmatch(digest) is None
    ):
        raise _wrong()
    return Claim(path, kind == "removed", what, size, modified, digest)


def _wrong() -> ChangesError:
    return ChangesError("The sandbox did not answer as it should about its changes.")
