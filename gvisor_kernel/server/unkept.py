"""Asks sandboxes which files would end with them: one look at a time for a kernel, kept shortly."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.kernel.facts import Left
from gvisor_kernel.kernel.session import SandboxedKernel

KEEP_SECONDS = 0.7
"""Seconds after its begin in which a look is used again: clients ask that long after the end of a
cell, and what was seen before it is no answer."""
MAX_KEPT = 200
"""Kernels whose answers are kept."""


class _Look:
    began = math.inf
    task: asyncio.Task[Left]


class UnkeptLooks:
    """The looks of one server. On its loop."""

    def __init__(self, make: Callable[[SandboxedKernel], KernelChanges] = KernelChanges) -> None:
        self._make = make
        self._looks: dict[str, _Look] = {}
        """The last look of each sandbox: it waits for the one before, is under way, or is over."""

    async def read(self, kernel: SandboxedKernel) -> Left:
        """Return the files that would end with the sandbox; up to KEEP_SECONDS old.

        :raises GvisorKernelError: when the sandbox has ended, or does not answer
        """
        key = kernel.sandbox.identity if kernel.sandbox is not None else ""
        look = before = self._looks.get(key)
        if look is None or asyncio.get_running_loop().time() - look.began >= KEEP_SECONDS:
            look = _Look()
            look.task = asyncio.create_task(self._look(look, before, kernel))
            if len(self._looks) >= MAX_KEPT:
                self._looks.clear()
            self._looks[key] = look
        return await asyncio.shield(look.task)  # no timeout: SHORT_ANSWER_SECONDS of the look

    async def _look(self, look: _Look, before: _Look | None, kernel: SandboxedKernel) -> Left:
        if before is not None:
            try:
                # no timeout: SHORT_ANSWER_SECONDS of the look before
                await asyncio.wait([before.task])
            except asyncio.CancelledError:
                before.task.cancel()
                raise
        look.began = asyncio.get_running_loop().time()
        return await self._make(kernel).find_unkept()

    def end(self) -> None:
        """End all looks."""
        for look in self._looks.values():
            look.task.cancel()
