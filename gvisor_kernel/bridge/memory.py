"""A sandbox's memory, watched from outside: when to look, when it is too much, what to say then.

Ends nothing: what follows is its owner's to do.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from gvisor_kernel.bridge.sandbox_link import LinkedSandbox

LOOK_SECONDS = 0.1
"""The longest time between two looks."""
SHORTEST_LOOK = 0.005
FASTEST_GROWTH = max(4, os.cpu_count() or 1) * 1024**3
"""Bytes a second that a sandbox can touch at most (measured: about 2 GiB/s on two cores). The
nearer the limit, the sooner the next look, so that even this rate does not pass it by much."""
OVERRUN = 128 * 1024**2
"""So far over the limit the whole sandbox is killed at once, without asking its PID 1."""
ASK_SECONDS = 1.0
"""How long PID 1 has to end the kernel; then the whole sandbox is killed."""


def seconds_to_next_look(used: int, limit: int) -> float:
    """How long the next look may wait."""
    return min(LOOK_SECONDS, max(SHORTEST_LOOK, (limit - used) / FASTEST_GROWTH))


def format_size(size: int) -> str:
    """Bytes as a person reads them: ``4 GiB``, ``1.5 GiB``, ``300 MiB``."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} bytes"


NEARLY_FULL = 0.8
"""Of the memory limit: so much used, and a death by signal is put down to it."""


class MemoryWatch:
    """Compares what ``sandbox`` uses with ``limit``, again and again, from ``start`` to ``stop``.

    ``on_over(used)`` is called at each look that finds more than the limit, ``on_overrun`` when it
    is more by OVERRUN: then the watch is over. On the loop that runs at construction.
    """

    def __init__(
        self,
        sandbox: LinkedSandbox,
        limit: int,
        on_over: Callable[[int], None],
        on_overrun: Callable[[int], None],
    ) -> None:
        self.limit = limit
        self.used = 0
        """At the last look."""
        self._sandbox = sandbox
        self._on_over = on_over
        self._on_overrun = on_overrun
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._kills = 0
        """By the host's kernel, that were known."""

    def start(self) -> None:
        """Look now, and go on."""
        used = self._sandbox.memory_used()
        wait = LOOK_SECONDS
        if used is not None:
            self.used = used
            wait = seconds_to_next_look(used, self.limit)
            if used > self.limit + OVERRUN:
                self._on_overrun(used)
                return
            if used > self.limit:
                self._on_over(used)
        self._timer = self._loop.call_later(wait, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def explains(self, status: int) -> bool:
        """Whether an unexplained death was the host's or the runtime's own bound on memory."""
        killed = status in (-signal.SIGKILL, -signal.SIGBUS, -signal.SIGSEGV)
        return self.has_killed() or (killed and self.used > NEARLY_FULL * self.limit)

    def has_killed(self) -> bool:
        """Whether the host's kernel has ended something of the sandbox, newly, as it tells.

        Inside, that looks like a program that ended by itself: gVisor's stand-in for it is killed.
        """
        kills = self._sandbox.memory_kills()
        new, self._kills = kills > self._kills, kills
        if new:
            self.used = max(self.used, self.limit)
        return new

    async def has_fallen(self) -> bool:
        """Whether memory is free again, ASK_SECONDS after a death for want of it.

        What a dead kernel held is freed soon. What it left in files is not, and would end the
        next kernel.
        """
        deadline = self._loop.time() + ASK_SECONDS
        while True:
            used = self._sandbox.memory_used()
            if used is None or used < NEARLY_FULL * self.limit:
                return True
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(0.01)


def describe_excess(used: int, limit: int) -> str:
    """Why a kernel was ended, for the person who sees it in a cell."""
    return (
        f"The kernel used {format_size(used)} of memory; its limit is {format_size(limit)}. "
        "It was ended. To allow more, raise the setting memory_limit (for instance "
        f'c.GVisorProvisioner.memory_limit = "{format_size(2 * limit)}" in Jupyter\'s '
        "configuration, or memory_limit in the kernelspec), and restart the kernel."
    )
