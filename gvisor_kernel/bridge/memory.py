"""Watches the memory of a sandbox from outside, and reports when it is over its limit.

Ends nothing itself; the owner of the sandbox does.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.host.cgroups import (
    MAX_INTERVAL_SECONDS,
    MAX_OVERRUN,
    seconds_to_next_measurement,
)

KILL_GRACE_SECONDS = 1.0
"""Seconds that PID 1 has to end the kernel. After that the whole sandbox is killed."""
NEARLY_FULL = 0.8
"""Share of the memory limit above which a death by signal is explained by the limit."""


class MemoryWatch:
    """Compares the memory of ``sandbox`` with ``limit`` bytes from ``start`` to ``stop``.

    Calls ``on_over(used)`` at each measurement above the limit. Calls ``on_overrun(used)`` once
    when the limit is exceeded by MAX_OVERRUN, and stops. Uses the loop that runs at construction.
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
        """Bytes at the last measurement."""
        self._sandbox = sandbox
        self._on_over = on_over
        self._on_overrun = on_overrun
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._kills = 0
        """OOM kills by the host's kernel that were seen."""

    def start(self) -> None:
        """Measure now, and schedule the next measurement."""
        used = self._sandbox.memory_used()
        wait = MAX_INTERVAL_SECONDS
        if used is not None:
            self.used = used
            wait = seconds_to_next_measurement(used, self.limit)
            if used > self.limit + MAX_OVERRUN:
                self._on_overrun(used)
                return
            if used > self.limit:
                self._on_over(used)
        self._timer = self._loop.call_later(wait, self.start)

    def stop(self) -> None:
        """Measure no more until the next ``start``. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def explains(self, status: int) -> bool:
        """Return whether the memory limit of the host or the runtime can explain a death."""
        killed = status in (-signal.SIGKILL, -signal.SIGBUS, -signal.SIGSEGV)
        return self.has_killed() or (killed and self.used > NEARLY_FULL * self.limit)

    def has_killed(self) -> bool:
        """Return whether the host's kernel killed a process of the sandbox since the last call.

        Inside the sandbox this looks like a program that ended by itself, since the OOM killer
        kills gVisor's stub process for it.
        """
        kills = self._sandbox.memory_kills()
        new, self._kills = kills > self._kills, kills
        if new:
            self.used = max(self.used, self.limit)
        return new

    async def has_fallen(self) -> bool:
        """Wait up to KILL_GRACE_SECONDS after an out-of-memory death; whether memory is free again.

        The memory of a dead kernel is freed soon. Files that it left in memory are not, and would
        end the next kernel.
        """
        deadline = self._loop.time() + KILL_GRACE_SECONDS
        while True:
            used = self._sandbox.memory_used()
            if used is None or used < NEARLY_FULL * self.limit:
                return True
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(0.01)
