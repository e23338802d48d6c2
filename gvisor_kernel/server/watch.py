"""Watches the kernels of a server for events and metrics.

Starts and deaths are told by the kernels; memory, bytes and refused requests are looked at once a
second. That reads no file of a kernel without routes, so that many idle kernels cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from gvisor_kernel.cli.logs import Follower
from gvisor_kernel.egress.audit import FILE, Entry, parse_entry
from gvisor_kernel.kernel.facts import Died, Happening, Happenings, KernelFacts, Started
from gvisor_kernel.server.events import Events
from gvisor_kernel.server.metrics import metrics


@dataclass(frozen=True)
class Refused:
    """The last refused request, and how many there were with it."""

    entry: Entry
    count: int


class Refusals:
    """Follows the record of one sandbox, until ``close``. One thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._follower = Follower(directory / FILE)

    def read(self) -> Refused | None:
        """Return what was refused since the last call; None if nothing was. Blocks."""
        last, count = None, 0
        for line in self._follower.read():
            entry = parse_entry(line)
            if entry is not None and is_refused(entry):
                last, count = entry, count + 1 + entry.more
        return None if last is None else Refused(last, count)

    def close(self) -> None:
        """Close the file."""
        self._follower.close()


def is_refused(entry: Entry) -> bool:
    """Return whether nothing of a request was sent, because no rule allows it."""
    return bool(entry.reason) and not (entry.is_open or entry.id or entry.up or entry.down)


log = logging.getLogger(__name__)

SECONDS = 1.0
HIGH, LOW = 0.8, 0.7
"""Shares of the memory limit: an event comes above the first, and again only after the second."""


class Watch:
    """Watches from ``start`` to ``end``. On the server's loop."""

    def __init__(
        self, events: Events, executor: Executor, find: Callable[[], Mapping[str, KernelFacts]]
    ) -> None:
        """``find`` returns the facts of the server's kernels by their id; it does not block."""
        self._events = events
        self._executor = executor
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._carried: dict[str, tuple[int, int]] = {}
        self._high: set[str] = set()
        self._refusals: dict[str, Refusals] = {}
        """By the identity of the sandbox."""
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ended = False

    def start(self) -> None:
        """Begin."""
        Happenings.instance().watch(self._on_happening)
        metrics()
        self._schedule()

    def _schedule(self) -> None:
        if not self._ended:
            self._timer = self._loop.call_later(SECONDS, self._begin_look)

    def _begin_look(self) -> None:
        self._looking = self._loop.create_task(self._look_and_go_on())

    async def _look_and_go_on(self) -> None:
        try:
            await self.look()
        except Exception:
            log.exception("The kernels could not be watched")
        finally:
            self._schedule()

    async def look(self) -> None:
        """Look at all kernels once."""
        kernels = self._find()
        metrics().show(kernels.values())
        self._count_bytes(kernels)
        for kernel_id, facts in kernels.items():
            self._check_memory(kernel_id, facts)
        self._high &= kernels.keys()
        with_routes = {
            facts.identity: (kernel_id, facts)
            for kernel_id, facts in kernels.items()
            if facts.routes and facts.identity is not None
        }
        for identity in self._refusals.keys() - with_routes.keys():
            self._refusals.pop(identity).close()
        for identity, (kernel_id, facts) in with_routes.items():
            assert facts.directory is not None
            refusals = self._refusals.setdefault(identity, Refusals(facts.directory))
            found = await self._loop.run_in_executor(self._executor, refusals.read)
            if found is not None:
                self._tell_refused(kernel_id, facts, found)

    def _count_bytes(self, kernels: Mapping[str, KernelFacts]) -> None:
        carried = {}
        for kernel_id, facts in kernels.items():
            received, sent = self._carried.get(kernel_id, (0, 0))
            if facts.received < received or facts.sent < sent:  # another kernel of the same id
                received = sent = 0
            metrics().count_bytes(facts.received - received, facts.sent - sent)
            carried[kernel_id] = (facts.received, facts.sent)
        self._carried = carried

    def _check_memory(self, kernel_id: str, facts: KernelFacts) -> None:
        used = facts.memory_used or 0
        if used < LOW * facts.spec.memory_limit:
            self._high.discard(kernel_id)
        elif used > HIGH * facts.spec.memory_limit and kernel_id not in self._high:
            self._high.add(kernel_id)
            self._events.tell_memory(kernel_id, facts)

    def _tell_refused(self, kernel_id: str, facts: KernelFacts, refused: Refused) -> None:
        metrics().count_refused(refused.count)
        more = refused.count - 1
        self._events.tell_refused(kernel_id, facts.kernel_name, refused.entry, more)

    def _on_happening(self, happening: Happening) -> None:
        """Called on the bridge's loop."""
        try:
            self._loop.call_soon_threadsafe(self._take, happening)
        except RuntimeError:  # the server's loop is closed
            Happenings.instance().unwatch(self._on_happening)

    def _take(self, happening: Happening) -> None:
        if isinstance(happening, Started):
            metrics().count_start(happening.start.kind, happening.start.seconds)
            self._events.tell_started(happening)
        elif isinstance(happening, Died):
            metrics().count_death(happening.death.kind)
            self._events.tell_died(happening)

    async def end(self) -> None:
        """Watch no more."""
        self._ended = True
        Happenings.instance().unwatch(self._on_happening)
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        for refusals in self._refusals.values():
            refusals.close()
