"""Checks of this user's state directory: space in it, and sandboxes that were left behind."""

from __future__ import annotations

import shutil
import tempfile

from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.checks import Check, failed, ok, warning
from gvisor_kernel.runtimes.state.records import find_sandboxes, is_orphan
from gvisor_kernel.shown_text import describe_size

MIN_SPACE = 256 * 1024 * 1024
"""Room for logs and transcripts of a few kernels, in bytes."""


def check_state() -> Check:
    """Check that the state directory can be written, and has MIN_SPACE bytes free.

    :raises StateError: when it cannot be made, or another user could change it
    """
    root = state_root()
    try:
        with tempfile.TemporaryFile(dir=root / "sandboxes") as file:
            file.write(b"x" * 4096)
    except OSError as error:
        return failed(
            f"{root} cannot be written: {error.strerror}",
            "free some space there, or use another directory: export XDG_STATE_HOME=/another/place",
        )
    free = shutil.disk_usage(root).free
    if free < MIN_SPACE:
        return warning(
            f"{root} has only {describe_size(free)} of free space",
            "free some space there, or use another directory: export XDG_STATE_HOME=/another/place",
        )
    return ok(f"{root} is writable and has {describe_size(free)} free")


def check_leftovers() -> Check:
    """Look for sandboxes whose Jupyter process is gone. Saved kernels wait for the next one.

    :raises StateError: when the state directory cannot be read
    """
    sandboxes = find_sandboxes()
    asleep = sum(bool(record.saved) for _, record in sandboxes)
    orphans = [
        record.container_id for _, record in sandboxes if is_orphan(record) and not record.saved
    ]
    if orphans:
        more = "" if len(orphans) == 1 else f" and {len(orphans) - 1} more"
        return warning(
            f"the Jupyter process that started sandbox {orphans[0]}{more} is gone",
            "gvisor-kernel prune",
        )
    words = f", {asleep} kernels hibernate" if asleep else ""
    return ok(f"no orphaned sandboxes; {len(sandboxes) - asleep} in use{words}")
