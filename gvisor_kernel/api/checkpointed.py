"""Checkpoints of a sandbox's kernel, for programs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from gvisor_kernel.api.runner import Runner
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.kernel.checkpoints import Checkpoint, Checkpoints, OutputChanges
from gvisor_kernel.kernel.session import SandboxedKernel


class Checkpointed(ABC):
    """The part of AsyncSandbox that saves states, and goes back to them."""

    _runner: Runner | None

    @property
    @abstractmethod
    def _kernel(self) -> SandboxedKernel | None:
        """The kernel, once it was started."""

    @abstractmethod
    def _check_alive(self) -> None:
        """:raises SandboxError: the kernel does not run"""

    @property
    def _checkpoints(self) -> Checkpoints:
        if self._kernel is None:
            self._check_alive()
            raise SandboxError("The sandbox was not started.", "call start().")
        return self._kernel.hibernation.checkpoints

    async def checkpoint(self, name: str | None = None) -> str:
        """Save the kernel's state under a name, which is returned, and go on.

        It has variables, threads, processes and files, but for outputs, and ends with the sandbox.
        ``name``: None for one that is free.

        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot be saved, or has a checkpoint of that name
        """
        self._check_alive()
        assert self._runner is not None
        async with self._runner.turn:
            return await self._checkpoints.make(name)

    async def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Return the checkpoints, the oldest first.

        :raises SandboxError: when there is no kernel
        """
        return await self._checkpoints.list()

    async def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint.

        :raises NoCheckpoint: when there is none of that name
        :raises SandboxError: when there is no kernel
        """
        await self._checkpoints.remove(name)

    async def rewind(self, name: str) -> OutputChanges:
        """Go back to a checkpoint, any number of times. The present state becomes the checkpoint
        "before-rewind". Outputs stay; those that are not as they were then are returned.

        :raises NoCheckpoint: when there is none of that name
        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot go back: it goes on as it was
        """
        self._check_alive()
        assert self._runner is not None
        async with self._runner.turn:
            return await self._checkpoints.rewind(name)
