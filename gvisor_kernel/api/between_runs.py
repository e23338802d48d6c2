"""Checkpoints of a sandbox's kernel that are made by themselves, between runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from gvisor_kernel.errors import GvisorKernelError
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
            return await kernel.checkpoints.make_automatic()
        except GvisorKernelError as error:
            log.debug("No state is saved before the next run: %s", error)
            return None
        finally:
            if (seconds := time.monotonic() - began) > MAX_SECONDS:
                self._not_before = time.monotonic() + PAUSE * seconds
