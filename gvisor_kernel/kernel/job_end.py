"""Lets a kernel hibernate before the job of its sandbox is over: the next request begins another
job, in which it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gvisor_kernel.runtimes.base import SavedSandbox

LAST_SECONDS, SHARE = 120.0, 0.2
"""Seconds before its end at which a kernel is to hibernate, and at most this share of what the job
has: an image of some gigabytes takes a minute to be sent."""
PAUSE_SECONDS = 5.0
"""Seconds between two tries: a kernel that works then may have done with it."""


def call_before_end(sandbox: SavedSandbox, begin: Callable[[], object]) -> None:
    """Call ``begin`` on this loop in the last minutes of a sandbox's job, until it has ended."""
    ends_at, loop = getattr(sandbox, "ends_at", None), asyncio.get_running_loop()
    if not isinstance(ends_at, float):
        return

    def again() -> None:
        if sandbox.memory_used() is not None and time.monotonic() < ends_at:
            begin()
            loop.call_later(PAUSE_SECONDS, again)

    left = ends_at - time.monotonic()
    loop.call_later(max(0.0, left - min(LAST_SECONDS, SHARE * left)), again)
