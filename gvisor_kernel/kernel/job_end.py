"""Lets a kernel hibernate before the job of its sandbox is over: the next request begins another
job, in which it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, runtime_checkable

from gvisor_kernel.runtimes.base import SavedSandbox

LAST_SECONDS, SHARE = 120.0, 0.2
"""Seconds before its end at which a kernel is to hibernate, and at most this share of what the job
has: an image of some gigabytes takes a minute to be sent."""
PAUSE_SECONDS = 2.0
"""Seconds between two tries: a kernel that works then may have done with it."""


@runtime_checkable
class _InJob(Protocol):
    """A sandbox that ends with a job of others. ``ends_at``: when, of ``time.monotonic``."""

    ends_at: float | None

    def call_before_end(self, call: Callable[[], None]) -> None: ...


def call_before_end(sandbox: SavedSandbox, begin: Callable[[], object]) -> None:
    """Call ``begin`` on this loop in the last minutes of a sandbox's job, and when the job is about
    to be ended, until it has ended."""
    if not isinstance(sandbox, _InJob):
        return
    loop, is_begun = asyncio.get_running_loop(), False

    def first() -> None:
        nonlocal is_begun
        if not is_begun:
            is_begun = True
            again()

    def again() -> None:
        if sandbox.memory_used() is not None:
            begin()
            loop.call_later(PAUSE_SECONDS, again)

    def call() -> None:
        with suppress(RuntimeError):  # this process is exiting
            loop.call_soon_threadsafe(first)

    if sandbox.ends_at is not None:
        left = sandbox.ends_at - time.monotonic()
        loop.call_later(max(0.0, left - min(LAST_SECONDS, SHARE * left)), first)
    sandbox.call_before_end(call)
