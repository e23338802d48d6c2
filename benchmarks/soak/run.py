"""The phases of a soak test, and its report."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak import counts
from benchmarks.soak.kernels import ACTIONS, Kernel, a_kernel, cell
from gvisor_kernel.kernel.preparation import SpareKeeper
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue

AT_ONCE = 4
"""Starts that run in parallel when many kernels are started."""
ROOM_PER_KERNEL = 150 * 1024 * 1024
BUILD = ("-m", "gvisor_kernel", "snapshot", "build", "--kernel")
STAY = (3, 12)
"""Minimum and maximum number of actions on a kernel in the mixed load before its shutdown."""
MAX_ERRORS = 50


class Soak:
    """Call ``run`` once, then ``report``."""

    def __init__(self, base: Path, kernel: str, arguments: argparse.Namespace) -> None:
        self._base = base
        self._kernel = kernel
        self._arguments = arguments
        self._random = random.Random(arguments.seed)  # noqa: S311 - not for secrets
        self._containers: set[str] = set()
        self._starts = 0
        self._done: Counter[str] = Counter()
        self._errors: list[str] = []
        self._lost = 0
        self._phases: dict[str, Any] = {}
        self._before: counts.Counts | None = None
        self._after: counts.Counts | None = None
        self._leaks: list[str] = []

    @property
    def failed(self) -> bool:
        return bool(self._leaks or self._lost or self._after is None)

    async def run(self) -> None:
        if self._arguments.snapshot == "auto":
            await self._build()
        await self._start_and_stop()  # create what a process has only once
        self._before = counts.settle(self._base, self._containers, self._count())
        with self._phase("starts and stops"):
            await self._many_starts(self._arguments.starts)
        with self._phase("kernels at once"):
            await self._many_at_once(self._arguments.kernels)
        with self._phase("mixed load"):
            await self._mixed(60 * self._arguments.minutes)
        await asyncio.to_thread(SpareKeeper.instance().end)
        await asyncio.to_thread(SnapshotQueue.instance().end)
        self._after = await asyncio.to_thread(
            counts.settle, self._base, self._containers, self._before
        )
        self._leaks = counts.find_leaks(self._before, self._after, self._starts)

    def _count(self) -> counts.Counts:
        return counts.count(self._base, self._containers)

    @contextmanager
    def _phase(self, name: str) -> Any:
        """Record the duration of a phase, its starts, and this process's memory."""
        since, starts, rss = time.monotonic(), self._starts, self._count().rss
        self._phases[name] = phase = {}
        try:
            yield phase
        finally:
            phase["seconds"] = round(time.monotonic() - since, 1)
            phase["starts"] = self._starts - starts
            phase["rss_mib"] = [rss >> 20, self._count().rss >> 20]
            self._say(f"{name}: {phase}")

    def _note(self, identity: str) -> None:
        """Record a started sandbox; the name of its cgroups is in its identity."""
        self._starts += 1
        self._containers.add(identity.removeprefix("container_").partition("--")[0].lower())

    def _fail(self, what: str, error: BaseException) -> None:
        self._lost += 1
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(f"{what}: {type(error).__name__}: {error}")
            self._say(self._errors[-1])

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # -- phases ----------------------------------------------------------------------------------

    async def _start_and_stop(self) -> None:
        try:
            async with a_kernel(self._kernel, self._note) as kernel:
                await cell(kernel, self._starts)
            self._done["starts and stops"] += 1
        except Exception as error:
            self._fail("a start and stop", error)

    async def _many_starts(self, number: int) -> None:
        for _ in range(number):
            await self._start_and_stop()

    async def _many_at_once(self, number: int) -> None:
        room = psutil.virtual_memory().available // ROOM_PER_KERNEL
        phase = self._phases["kernels at once"]
        phase["wanted"], phase["had"] = number, min(number, room)
        kernels = [Kernel(self._kernel) for _ in range(min(number, room))]
        turn = asyncio.Semaphore(AT_ONCE)

        async def start(kernel: Kernel) -> None:
            async with turn:
                self._note(await kernel.start())

        async def use(index: int) -> None:
            await cell(kernels[index], index)
            self._done["cells"] += 1

        available = psutil.virtual_memory().available
        try:
            await self._all("a start of many", [start(kernel) for kernel in kernels])
            since = time.monotonic()
            await self._all("a cell of many", [use(index) for index in range(len(kernels))])
            phase["seconds_for_a_cell_in_each"] = round(time.monotonic() - since, 2)
            taken = available - psutil.virtual_memory().available
            phase["mib_each"] = round(taken / max(len(kernels), 1) / 2**20, 1)
        finally:
            await self._all("an end of many", [kernel.close() for kernel in kernels])

    async def _all(self, what: str, work: list[Any]) -> None:
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                self._fail(what, result)

    async def _mixed(self, seconds: float) -> None:
        if seconds <= 0:
            return
        until = time.monotonic() + seconds
        users = [self._user(until, number) for number in range(self._arguments.users)]
        await asyncio.gather(*users, self._builder(until))

    async def _user(self, until: float, number: int) -> None:
        """Start kernels one after the other, and run random actions on each."""
        names = list(ACTIONS)
        weights = [weight for _, weight in ACTIONS.values()]
        while time.monotonic() < until:
            name = "a start"
            try:
                now = self._random.random() < 0.3
                async with a_kernel(self._kernel, self._note, now=now) as kernel:
                    for _ in range(self._random.randint(*STAY)):
                        (name,) = self._random.choices(names, weights)
                        await ACTIONS[name][0](kernel, self._random.randrange(10**6))
                        self._note_renewed(await kernel.identity())
                        self._done[name] += 1
                        if time.monotonic() >= until:
                            break
                    name = "a shutdown"
                self._done["shutdowns"] += 1
            except Exception as error:
                self._fail(f"user {number}, {name}", error)

    def _note_renewed(self, identity: str) -> None:
        """Record the sandbox, which a restart may have replaced."""
        self._containers.add(identity.removeprefix("container_").partition("--")[0].lower())

    async def _builder(self, until: float) -> None:
        """Rebuild the snapshot every 30 s while kernels start from it."""
        while self._arguments.snapshot == "auto" and time.monotonic() < until:
            await asyncio.sleep(min(30.0, max(until - time.monotonic(), 0)))
            if time.monotonic() < until:
                await self._build()

    async def _build(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(*BUILD, self._kernel),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, words = await process.communicate()
        if process.returncode == 0:
            self._done["snapshot builds"] += 1
        elif b"being made just now" not in words:
            self._fail("a snapshot build", RuntimeError(words.decode(errors="replace").strip()))

    # -- report ----------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        sides = {"before": self._before, "after": self._after}
        return {
            "arguments": {k: str(v) for k, v in vars(self._arguments).items()},
            "phases": self._phases,
            "done": dict(sorted(self._done.items())),
            "starts": self._starts,
            "counts": {k: None if v is None else counts.describe(v) for k, v in sides.items()},
            "leaks": self._leaks,
            "failures": self._lost,
            "errors": self._errors,
        }

    def text(self) -> str:
        report = self.report()
        lines = [f"{report['starts']} starts", ""]
        lines += [f"  {name:<24}{number:>8}" for name, number in report["done"].items()]
        for name, phase in report["phases"].items():
            lines += ["", name, *(f"  {key:<32}{value}" for key, value in phase.items())]
        lines += ["", f"{'':<16}{'before':>10}{'after':>10}"]
        before, after = report["counts"]["before"], report["counts"]["after"]
        if before is not None and after is not None:
            lines += [f"{key:<16}{before[key]:>10}{after[key]:>10}" for key in before]
        for title in ("leaks", "errors"):
            lines += ["", f"{title}: {len(report[title])}"]
            lines += [f"  {text}" for text in report[title]]
        return "\n".join(lines)
