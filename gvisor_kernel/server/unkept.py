"""Asks sandboxes which files would end with them: one look at a time for a kernel, kept shortly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gvisor_kernel.changes.kernel_changes import KernelChanges
from gvisor_kernel.kernel.facts import Left
from gvisor_kernel.kernel.session import SandboxedKernel

KEEP_SECONDS = 2.0
"""How long an answer is used again: clients ask after each cell."""
MAX_KEPT = 200
"""Kernels whose answers are kept."""


@dataclass(frozen=True)
class _Kept:
    left: Left
    at: float


class UnkeptLooks:
    """The looks of one server. On its loop."""

    def __init__(self, make: Callable[[SandboxedKernel], KernelChanges] = KernelChanges) -> None:
        self._make = make
        self._kept: dict[str, _Kept] = {}
        self._looking: dict[str, asyncio.Task[Left]] = {}

    async def read(self, kernel: SandboxedKernel) -> Left:
        """Return the files that would end with the sandbox; up to KEEP_SECONDS old.

        :raises GvisorKernelError: when the sandbox has ended, or does not answer
        """
        key = kernel.sandbox.identity if kernel.sandbox is not None else ""
        kept = self._kept.get(key)
        if kept is not None and asyncio.get_running_loop().time() - kept.at < KEEP_SECONDS:
            return kept.left
        if key not in self._looking:
            self._looking[key] = asyncio.create_task(self._look(key, kernel))
        return await asyncio.shield(self._looking[key])

    async def _look(self, key: str, kernel: SandboxedKernel) -> Left:
        try:
            left = await self._make(kernel).find_unkept()
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = _Kept(left, asyncio.get_running_loop().time())
            return left
        finally:
            del self._looking[key]

    def end(self) -> None:
        """End all looks."""
        for task in self._looking.values():
            task.cancel()
