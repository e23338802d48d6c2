"""Checkpoints of a sandbox's kernel, for programs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from gvisor_kernel.api.lasting import LastingState
from gvisor_kernel.changes.change import RefusedChange
from gvisor_kernel.changes.since import UndoableApply, find_applies, undo_applies
from gvisor_kernel.errors import GvisorKernelError, NoCheckpoint
from gvisor_kernel.kernel.checkpoints import Checkpoint as Checkpoint
from gvisor_kernel.kernel.checkpoints import Checkpoints
from gvisor_kernel.kernel.noted_outputs import OutputChanges as OutputChanges
from gvisor_kernel.kernel.session import SandboxedKernel

log = logging.getLogger(__name__)

MAX_RUNS = 100
"""Runs whose states are remembered; far fewer are kept."""
MAX_SECONDS, PAUSE = 10.0, 20.0
"""If it takes longer than this to save a state, none is saved for so many times that time: the next
run waits for it."""


class BetweenRuns:
    """Saves the state before each run but the first, where the setting ``checkpoints`` is "agent".

    That is done after a run, so that the next one seldom waits; and again before it if files or
    commands have been used meanwhile. What fails fails no run.
    """

    def __init__(self, find: Callable[[], SandboxedKernel | None]) -> None:
        self._runs: deque[str | None] = deque(maxlen=MAX_RUNS)
        """The checkpoints of the states before the runs that no rewind has taken back; None for one
        that was not saved."""
        self._find = find
        self._is_used = False
        self._saving: asyncio.Future[str | None] | None = None
        self._not_before = 0.0

    def note_use(self) -> None:
        """Note that files or commands are used."""
        self._is_used = True

    @property
    def last(self) -> str | None:
        """The checkpoint of the state before the last run that was not taken back."""
        return self._runs[-1] if self._runs else None

    async def begin(self) -> None:
        """Wait until the state is saved. Called before a run, when it is its turn."""
        saving, self._saving = self._saving, None
        if self._is_used:
            saving, self._is_used = asyncio.ensure_future(self._save(saving)), False
        # no timeout: SAVE_SECONDS of each try
        self._runs.append(await asyncio.shield(saving) if saving is not None else None)

    async def settle(self) -> None:
        """Wait until no state is being saved. Called before a rewind, when it is its turn."""
        if self._saving is not None:
            await asyncio.shield(self._saving)  # no timeout: SAVE_SECONDS of each try

    def note_rewound(self, name: str) -> None:
        """Note that the kernel is as it was at a checkpoint, which is so before the next run."""
        runs = list(self._runs)
        self._runs.clear()
        self._runs.extend(runs[: runs.index(name)] if name in runs else [])
        self._saving, self._is_used = asyncio.get_running_loop().create_future(), False
        self._saving.set_result(name)

    def end(self) -> None:
        """Begin to save the state. Called when a run has ended."""
        self._saving = asyncio.ensure_future(self._save())

    async def _save(self, before: asyncio.Future[str | None] | None = None) -> str | None:
        if before is not None:
            await before  # no timeout: SAVE_SECONDS of each try
        kernel, began = self._find(), time.monotonic()
        facts = kernel.describe() if kernel is not None else None
        if kernel is None or facts is None or facts.spec.checkpoints != "agent":
            return None
        if began < self._not_before:
            return None
        try:
            return await kernel.hibernation.checkpoints.make_automatic(before=True)
        except GvisorKernelError as error:
            log.debug("No state is saved before the next run: %s", error)
            return None
        finally:
            if (seconds := time.monotonic() - began) > MAX_SECONDS:
                self._not_before = time.monotonic() + PAUSE * seconds


@dataclass(frozen=True)
class RewindChanges(OutputChanges):
    """Files on disk after a rewind: outputs, which it has left alone, and those of the folder.

    ``undone``: they are as before they were applied. ``refused``: they are not, and why.
    """

    undone: tuple[str, ...] = ()
    refused: tuple[RefusedChange, ...] = ()


class Checkpointed(LastingState):
    """The part of AsyncSandbox that saves states, and goes back to them."""

    _between: BetweenRuns

    @property
    def _checkpoints(self) -> Checkpoints:
        return self._require_kernel().hibernation.checkpoints

    async def checkpoint(self, name: str | None = None) -> str:
        """Save the kernel's state under a name, which is returned, and go on.

        It has variables, threads, processes and files, but for outputs, and ends with the sandbox.
        ``name``: None for one that is free. With the setting ``checkpoints="agent"`` each run but
        the first has one by itself: "before-5" before ``In[5]``.

        :raises NotIdle: when code of the kernel runs that nobody waits for
        :raises SandboxError: when it cannot be saved, or has a checkpoint of that name
        """
        checkpoints = self._checkpoints
        assert self._runner is not None
        async with self._runner.turn:
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
        assert self._runner is not None
        async with self._runner.turn:
            await self._between.settle()
            target = name if name is not None else self.find_before_last_run()
            applied: list[UndoableApply] = []
            if undo_applied and facts is not None:
                times = [one.time for one in await checkpoints.list() if one.name == target]
                applied = await asyncio.to_thread(find_applies, facts.directory, *times)
            changes = await checkpoints.rewind(target)
            self._between.note_rewound(target)
            # no timeout: STEP_SECONDS of each step
            done = await asyncio.shield(asyncio.to_thread(undo_applies, applied))
            return RewindChanges(**asdict(changes), undone=done.undone, refused=done.refused)

    def find_before_last_run(self) -> str:
        """Return the checkpoint of the state before the last run.

        :raises NoCheckpoint: when there is none
        """
        last = self._between.last
        if last is None:
            raise NoCheckpoint(
                "The state before the last run was not saved.",
                'give the name of a checkpoint; or set checkpoints to "agent" for the next runs.',
            )
        return last
