"""The state of a sandbox's kernel, which lasts: it hibernates, has branches and checkpoints, and
may outlive its program."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from gvisor_kernel.api.between_runs import BetweenRuns
from gvisor_kernel.api.manager import Manager
from gvisor_kernel.api.runner import Runner
from gvisor_kernel.changes.apply import UndoableApply, find_applies, undo_applies
from gvisor_kernel.changes.change import RefusedChange
from gvisor_kernel.errors import GvisorKernelError, NoCheckpoint, SandboxError
from gvisor_kernel.host.workers import in_thread
from gvisor_kernel.jupyter.asleep import RESUMES_ONLY, Resumes
from gvisor_kernel.kernel.branches import Branch, handing, name_branches
from gvisor_kernel.kernel.checkpoints import Checkpoint as Checkpoint
from gvisor_kernel.kernel.checkpoints import Checkpoints
from gvisor_kernel.kernel.lasting import LastingSandbox as LastingSandbox
from gvisor_kernel.kernel.lasting import find_lasting, list_lasting
from gvisor_kernel.kernel.noted_outputs import OutputChanges as OutputChanges
from gvisor_kernel.kernel.saved_kernel import SavedKernel
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.runtimes.state.records import disown, read_record

MAX_STARTS = 4
"""Branches that begin to go on at the same time."""


@dataclass(frozen=True)
class RewindChanges(OutputChanges):
    """Files on disk after a rewind: outputs, which it has left alone, and those of the folder.

    ``undone``: they are as before they were applied. ``refused``: they are not, and why.
    """

    undone: tuple[str, ...] = ()
    refused: tuple[RefusedChange, ...] = ()


class LastingState:
    """A part of ``AsyncSandbox``, which has all that is not defined here."""

    _arguments: dict[str, Any]
    _between: BetweenRuns
    _manager: Manager
    _outputs_folder: str | None
    _runner: Runner | None

    async def _start(self, *, resumes: bool = False, stays: bool = False) -> Self:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def _require_kernel(self) -> SandboxedKernel:
        raise NotImplementedError

    @property
    def _kernel(self) -> SandboxedKernel | None:
        raise NotImplementedError

    @property
    def lasting(self) -> bool:
        """Return whether it outlives its program."""
        return self._manager.lasting

    @property
    def is_hibernated(self) -> bool:
        """Return whether the kernel is saved on the disk, and has no memory."""
        return self._kernel is not None and self._kernel.hibernation.saved is not None

    async def wake(self) -> None:
        """See ``runner.Kernel``."""
        with suppress(GvisorKernelError):
            if self.is_hibernated:
                await self._require_kernel().hibernation.resume()

    @property
    def _checkpoints(self) -> Checkpoints:
        return self._require_kernel().checkpoints

    @property
    def _turn(self) -> asyncio.Lock:
        assert self._runner is not None
        return self._runner.turn

    async def hibernate(self) -> None:
        """Save the kernel on the disk with all that it has, and free its memory. The next use of
        the sandbox lets it go on as it was, and takes about as long as a start.

        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot be saved; it goes on
        """
        kernel = self._require_kernel()
        async with self._turn:
            await kernel.hibernation.hibernate()

    async def leave(self) -> str:
        """Let the kernel of a sandbox with ``lasting=True`` hibernate, leave it to whoever calls
        ``attach`` with the id that is returned, and close this sandbox.

        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot be saved; it goes on
        """
        kernel = self._require_kernel()
        if not self._manager.lasting:
            raise SandboxError("This sandbox ends with its program.", "make it with lasting=True.")
        async with self._turn:
            return await self._leave(kernel)

    async def _leave(self, kernel: SandboxedKernel) -> str:
        directory = kernel.hibernation.find_directory()
        await kernel.hibernation.leave()
        await self.close()
        await in_thread(disown, directory)
        return directory.name

    @classmethod
    async def attach(cls, id: str, **arguments: Any) -> Self:
        """Return a sandbox whose kernel goes on as another program has left it, also one that was
        killed, or ran before this machine was started again. Its folders and settings are the same,
        and what Jupyter's configuration grants now. ``arguments``: those of the class that are to
        differ, such as ``timeout``.

        :raises SandboxError: when there is none of this id, or it is another's; see ``saved``
        :raises GvisorKernelError: when it does not go on; it stays saved
        """
        found = await in_thread(find_lasting, id)
        own = {"language": found.language, **found.settings, **arguments, "lasting": True}
        sandbox = cls(**own)
        sandbox._outputs_folder = found.record.outputs
        sandbox._manager.kernel_id = found.record.kernel_id
        resumes = RESUMES_ONLY.set(Resumes(found.record.kernel_id, found.directory))
        try:
            return await sandbox._start(resumes=True, stays=True)
        finally:
            RESUMES_ONLY.reset(resumes)

    @staticmethod
    async def saved() -> tuple[LastingSandbox, ...]:
        """Return what programs of this user have left, the oldest first, for ``attach``.

        :raises StateError: when the state directory cannot be used
        """
        return await in_thread(list_lasting)

    async def move(self, to: str) -> None:
        """Let the kernel go on on another machine, with all that it has in memory: on a host that
        the setting ``ssh`` names, in a job ("slurm") if the setting ``slurm`` is given, or on this
        one ("local"). Files and packages must be there at the same paths.

        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises GvisorKernelError: when it does not go on there; it goes on as it was
        """
        self._require_kernel()
        provisioner: Any = self._manager.provisioner
        async with self._turn:
            await provisioner.move(to)

    async def branch(
        self,
        n: int = 1,
        *,
        name: str | None = None,
        reseed: bool = False,
        from_checkpoint: str | None = None,
    ) -> list[Self]:
        """Return ``n`` sandboxes whose kernels go on from the present state of this one, each by
        itself: variables, threads, processes, /workspace and /tmp. End each with ``close``.

        This kernel pauses while its memory is written once. Outputs are as ``branch_outputs`` says:
        by default a folder of its own, ``branches/NAME`` in ``outputs``. Several branches are
        called NAME-1, NAME-2 and so on. What ``random`` and NumPy give next is the same in all;
        with ``reseed`` it is not. ids, keys, UUIDs and ``secrets`` always differ.
        ``from_checkpoint``: they go on from the state of that name, and this kernel is not touched.

        :raises NoCheckpoint: when there is none of that name
        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises GvisorKernelError: when it cannot be saved, or a branch does not go on; then there
            are none, and this sandbox goes on
        """
        wanted = name_branches(n, name, reseeds=reseed, checkpoint=from_checkpoint)
        branching = asyncio.ensure_future(self._branch(wanted))
        try:
            return await asyncio.shield(branching)  # no timeout: a save and starts, which have some
        except asyncio.CancelledError:
            await asyncio.wait({branching})  # no timeout: the same
            if not branching.cancelled() and branching.exception() is None:
                await _close_all(await branching)  # no timeout: it is done
            raise

    async def _branch(self, wanted: list[Branch]) -> list[Self]:
        kernel = self._require_kernel()
        made = [type(self)(**self._arguments) for _ in wanted]
        async with self._turn:
            saved = await kernel.checkpoints.branch(wanted)
        turns = asyncio.Semaphore(MAX_STARTS)

        async def begin(sandbox: Self, branch: Branch, own: SavedKernel) -> None:
            async with turns:
                await sandbox._begin_as(branch, own)

        try:
            await wait_for_all(map(begin, made, wanted, saved))
        except BaseException:
            await _close_all(made)
            raise
        return made

    async def _begin_as(self, branch: Branch, saved: SavedKernel) -> None:
        record = await in_thread(read_record, saved.directory)
        if record is not None:
            self._outputs_folder = record.outputs
        self._manager.kernel_id = branch.kernel_id
        with handing(branch, saved):
            await self._start(resumes=True)

    async def checkpoint(self, name: str | None = None) -> str:
        """Save the kernel's state under a name, which is returned, and go on.

        It has variables, threads, processes and files, but for outputs, and ends with the sandbox.
        ``name``: None for one that is free. With the setting ``checkpoints="agent"`` each run but
        the first has one by itself: "before-5" before ``In[5]``.

        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot be saved, or has a checkpoint of that name
        """
        checkpoints = self._checkpoints
        async with self._turn:
            return await checkpoints.make(name)

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

    async def rewind(self, name: str | None = None, *, undo_applied: bool = False) -> RewindChanges:
        """Go back to a checkpoint, any number of times. The present state becomes the checkpoint
        "before-rewind". Outputs stay; those that are not as they were then are returned.

        ``name``: None for the state before the last run, where ``checkpoints="agent"`` has saved
        it; called again, for the state before the run before that. ``undo_applied``: also undo what
        was applied from this sandbox to its folder since the checkpoint, as ``undo`` does; a file
        that was changed on disk since it was applied stays, and so does each output.

        :raises NoCheckpoint: when there is none of that name, or that state was not saved
        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot go back: it goes on as it was, and nothing is undone
        """
        checkpoints, facts = self._checkpoints, self._require_kernel().describe()
        async with self._turn:
            await self._between.settle()
            target = name if name is not None else self.find_before_last_run()
            applied: list[UndoableApply] = []
            made = None
            if undo_applied and facts is not None:
                made = next((it.time for it in await checkpoints.list() if it.name == target), 0.0)
                applied = await in_thread(find_applies, facts.directory, made)
            changes = await checkpoints.rewind(target, made)
            self._between.note_rewound(target)
            # no timeout: STEP_SECONDS of each step
            done = await asyncio.shield(in_thread(undo_applies, applied))
            return RewindChanges(**asdict(changes), undone=done.undone, refused=done.refused)

    def find_before_last_run(self) -> str:
        """Return the checkpoint of the state before the last run.

        :raises NoCheckpoint: when there is none
        """
        last = self._between.last
        if last is None:
            raise NoCheckpoint(
                "The state before the last run was not saved.",
                'give the name of a checkpoint. With checkpoints="agent" there is one before each'
                " run but the first.",
            )
        return last


async def wait_for_all(works: Iterable[Awaitable[None]]) -> None:
    """Wait until each has ended, and raise the first failure."""
    # no timeout: starts, which have some
    ends = await asyncio.gather(*works, return_exceptions=True)
    failure = next(filter(None, ends), None)
    if failure is not None:
        raise failure


async def _close_all(made: Sequence[LastingState]) -> None:
    # no timeout: it is finished or undone, by steps that have timeouts
    await asyncio.gather(*(one.close() for one in made))
