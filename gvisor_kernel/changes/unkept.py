"""Finds the files of a sandbox that are gone with it: written by it, and not on disk.

A file that was applied is on disk; so is one with the same content, as far as contents were read.
A sandbox may lie about its own files: then a person is told of others, or of none.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from gvisor_kernel.changes.backups import Backups
from gvisor_kernel.changes.change import Claim
from gvisor_kernel.changes.claims import read_claims
from gvisor_kernel.changes.folder import find_digest, look
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.folders import Opened, reopen
from gvisor_kernel.kernel.facts import Left
from gvisor_kernel.kernel.workspace import find_view
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.spec.layout import UPLOADS

MAX_LISTED = 1000
"""Files that a sandbox names when it is asked while it lives."""
MAX_NAMED = 10
SECONDS = 0.3
"""Seconds that the disk is looked at. Files for which there is no time count as not kept."""
HASHED = 4 * 1024 * 1024
"""Bytes of files whose contents are compared."""


def find_unkept(sandbox: Sandbox, content: Mapping[str, Any]) -> Left:
    """Return the files that end with ``sandbox``. Reads the disk, for SECONDS.

    ``content``: what the sandbox says, as ``read_claims`` takes it.

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
            left = _leave_out_kept(root, written, ours)
    dropped = len(claims) - len(left)
    paths = tuple(claim.path for claim in left[:MAX_NAMED])
    return Left(max(total - dropped, len(left)) if more else len(left), more, paths)


def _leave_out_kept(root: Opened, claims: list[Claim], ours: Collection[str]) -> list[Claim]:
    end, hashed, left = time.monotonic() + SECONDS, HASHED, []
    for claim in claims:
        is_kept = False
        if time.monotonic() < end:
            with suppress(OSError):
                disk = look(root, claim.path)
                if disk is not None and disk.type == "file" and disk.size == claim.size:
                    if claim.digest and disk.size <= hashed:
                        hashed -= disk.size
                        is_kept = find_digest(root, claim.path, disk.size) == claim.digest
                    else:
                        is_kept = disk.text in ours and claim.modified <= disk.changed
        if not is_kept:
            left.append(claim)
    return left
