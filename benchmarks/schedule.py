"""The order of measurements: every variant once per round, and each round starts with another one.

So a slow minute of the machine affects all variants. A failure is recorded and the run continues; a
variant that cannot be warmed up is absent, with the reason.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks import figures, processes
from benchmarks.notebooks.cells import OWN, find_notebooks
from benchmarks.notebooks.runs import Runs, provide
from benchmarks.peers.engine import IMAGE, Engine, EngineError
from benchmarks.results import Results
from benchmarks.variants import BASELINE, Variant, kernelspec
from benchmarks.workers import WorkerError, WorkerProcess, Workers

SETTLE_SECONDS = 2.0
"""Seconds from a kernel's last cell until it counts as idle."""
SNAPSHOT_SECONDS = 60.0
SHORT_SNAPSHOT_SECONDS = 15.0
"""Seconds to wait for a snapshot; the second value after one has already failed to appear."""
STEADY_PASSES = 3
BUSY_PERCENT = 10.0
"""Percent of a core: a kernel that uses more while idle gets a note."""
FACTS = """
import json, os, platform, sys, threading
ADAPTER = "gvisor_kernel.guest.ipykernel_adapter"
print(json.dumps({
    "system": platform.release(), "python": platform.python_version(), "uid": os.getuid(),
    "mode": "direct" if ADAPTER in sys.modules else "relay", "threads": threading.active_count()}))
"""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    ``rounds``: by figure, 0 or missing for none. ``crowd``: variants that are measured with many
    kernels at once; ``counts``: the numbers of kernels. ``stalled``: variants that print 1 GB to a
    stalled client, or have a neighbour that floods; ``notebooks``: those that run notebooks. Empty
    tuples mean all variants.
    ``rest_seconds``: how long kernels are idle before ``idle_seconds`` are measured.
    """

    rounds: dict[str, int]
    crowd: tuple[str, ...] = ()
    stalled: tuple[str, ...] = ()
    notebooks: tuple[str, ...] = ()
    counts: tuple[int, ...] = (1, 10, 30)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    idle_seconds: float = 20.0
    rest_seconds: float = 10.0
    stall_seconds: float = 5.0
    notebook_rest_seconds: float = 60.0


FULL = Plan(
    rounds={
        **{
            "start": 5,
            "ready": 2,
            "program": 3,
            "trips": 3,
            "interrupt": 3,
            "output": 2,
            "compute": 2,
        },
        **{"large": 2, "prints": 2, "forks": 2, "data": 2},
        **{"stalled": 1, "flooded": 2, "memory": 1, "idle": 1, "notebooks": 3},
    },
    crowd=(
        BASELINE,
        *(f"snapshot, {mode}, root" for mode in ("relay", "direct")),
        "snapshot, direct, user",
        "dockernel, runc",
    ),
    stalled=tuple(f"snapshot, {mode}, root" for mode in ("relay", "direct")),
    notebooks=(BASELINE, "learned, direct, root", "learned, direct, user"),
)
QUICK = Plan(
    rounds={
        **{
            "start": 2,
            "ready": 1,
            "program": 1,
            "trips": 1,
            "interrupt": 1,
            "output": 1,
            "compute": 1,
        },
        **{"large": 1, "prints": 1, "forks": 1, "data": 1},
        **{"stalled": 1, "flooded": 1, "memory": 1, "idle": 1, "notebooks": 1},
    },
    crowd=(BASELINE, "snapshot, direct, root"),
    counts=(1, 10),
    stalled=("snapshot, direct, root",),
    notebooks=(BASELINE, "snapshot, direct, root"),
    options={"trips": {"count": 30}},
)
QUICK_VARIANTS = (
    *("cold, *, root", "snapshot, *, root", "snapshot+preload, direct, root"),
    *("spare, direct, root", "spare+preload, direct, root"),
    *("snapshot, direct, user", "dockernel, *", "gateway-provisioners, runc"),
)


class Schedule:
    """One run. ``say`` takes lines of progress."""

    def __init__(
        self,
        variants: Sequence[Variant],
        plan: Plan,
        workers: Workers,
        engine: Engine | EngineError,
        results: Results,
        say: Callable[[str], None],
    ) -> None:
        self._variants = list(variants)
        self._plan = plan
        self._workers = workers
        self._engine = engine
        self._results = results
        self._say = say
        self._defined: set[tuple[int, str]] = set()
        self._opened: set[str] = set()
        self._patience = SNAPSHOT_SECONDS
        self._begin = time.monotonic()

    def run(self) -> None:
        self._results.run = {"rounds": self._plan.rounds, "counts": self._plan.counts}
        self.prepare()
        for figure in ("start", "ready", "program"):
            for number in range(self._rounds(figure)):
                for variant in self._turn(number, figure):
                    if figure != "program" or not variant.starts_only:  # a new one has no spare
                        self._measure(variant, figure, figure)
        self._kernels()
        if self._rounds("stalled"):
            for variant in self._turn(0, "stalled"):
                if variant.kind == "ours" and self._is_in(variant, self._plan.stalled):
                    self.tell(f"1 GB to a stalled client: {variant.name}")
                    self._measure(variant, "stalled", "stalled", stall=self._plan.stall_seconds)
        for number in range(self._rounds("flooded")):
            for variant in self._turn(number, "flooded"):
                if variant.kind == "ours" and self._is_in(variant, self._plan.stalled):
                    self._measure(variant, "flooded", "flooded")
        if self._rounds("idle"):
            self._idle()
        if self._rounds("memory"):
            for variant in self._turn(0, "memory"):
                if self._is_in(variant, self._plan.crowd):
                    self._crowd(variant)
        if self._rounds(figures.NOTEBOOKS):
            self._run_notebooks()
        self._results.run["seconds"] = round(time.monotonic() - self._begin)

    # -- the parts of a run ----------------------------------------------------------------------

    def prepare(self) -> list[Variant]:
        """Start every variant once, unmeasured, to warm caches and make snapshots.

        Return those that can be measured.
        """
        self._results.variants = [variant.name for variant in self._variants]
        for variant in self._variants:
            try:
                self.warm_up(variant)
            except WorkerError as error:
                self.tell(f"absent: {variant.name}: {error}")
                self._results.absent[variant.name] = str(error)
        self._variants = [v for v in self._variants if v.name not in self._results.absent]
        return self._variants

    def _kernels(self) -> None:
        """Measure the figures of one running kernel, a new one each round."""
        wanted = [name for name in figures.OF_A_KERNEL if self._rounds(name)]
        for number in range(max((self._rounds(name) for name in wanted), default=0)):
            now = [name for name in wanted if self._rounds(name) > number]
            for variant in self._turn(number, ", ".join(now)):
                if variant.starts_only or self.open(variant, 1) is None:
                    continue
                for name in now:
                    options = self._plan.options.get(name, {})
                    if not self._measure(variant, name, "measure", figure=name, **options):
                        break  # the kernel's state is unknown
                self.close(variant)

    def _idle(self) -> None:
        """Measure one idle kernel of each variant, all at the same time."""
        groups = {}
        for variant in self._turn(0, "idle"):
            if variant.starts_only:
                continue
            group = self.open(variant, 1)
            if group is not None:
                groups[variant.name] = group
                time.sleep(SETTLE_SECONDS)
                self._remember(variant, figures.MEMORY.format(1), processes.memory(group), 1)
        shared = [v for v in self._variants if v.name in groups and v.kind != "dockernel"]
        managers = {v.worker: {self.worker(v).process.pid} for v in shared}
        # A sandbox whose kernel cannot be asked is looked at for some seconds before it is stopped.
        time.sleep(self._plan.rest_seconds)
        self.tell(f"idle for {self._plan.idle_seconds:.0f} s")
        before = {
            name: {process: processes.cpu_seconds([process]) for process in group}
            for name, group in groups.items()
        }
        manager_before = {name: self._cpu(pids) for name, pids in managers.items()}
        time.sleep(self._plan.idle_seconds)
        for name, group in groups.items():
            spent = {
                process: 100 * (processes.cpu_seconds([process]) - before[name][process])
                for process in group
                if process.is_running()
            }
            percent = sum(spent.values()) / self._plan.idle_seconds
            self._results.add(name, {figures.IDLE_CPU: [percent]})
            if percent > BUSY_PERCENT:
                worst = max(spent, key=spent.__getitem__)
                reason = f"most of the CPU time was used by {describe_process(worst)}"
                self._results.failures.append((name, figures.IDLE_CPU, reason))
        for worker, pids in managers.items():
            used = self._cpu(pids) - manager_before[worker]
            names = [v.name for v in shared if v.worker == worker]
            percent = 100 * used / self._plan.idle_seconds / len(names)
            for name in names:
                self._results.add(name, {figures.IDLE_BRIDGE_CPU: [percent]})
        for variant in self._variants:
            if variant.name in groups:
                self._trips(variant, figures.TRIP_WOKEN, 1)
                self.ask(variant, "run", cell=figures.IMPORTS)
                time.sleep(SETTLE_SECONDS)
                held = processes.memory(groups[variant.name])
                self._remember(variant, figures.MEMORY_IMPORTED, held, 1)
            self.close(variant)

    def _run_notebooks(self) -> None:
        """Run the notebooks of ours, from the first cell and in steady state."""
        variants = [v for v in self._variants if self._is_in(v, self._plan.notebooks)]
        notebooks, left_out = find_notebooks([OWN])
        self._results.run["notebooks left out"] = left_out
        with provide(notebooks) as provisions:
            runs = Runs(self, variants, notebooks, provisions, self._results, STEADY_PASSES)
            runs.warm_up()
            for number in range(self._rounds(figures.NOTEBOOKS)):
                runs.measure(number)
            runs.measure_memory(self._plan.notebook_rest_seconds)

    def _crowd(self, variant: Variant) -> None:
        """Measure the memory of many kernels of one variant, and round trips of one of them."""
        group: set[psutil.Process] = set()
        sizes = {}
        count = 0
        for wanted in self._plan.counts:
            self.tell(f"{wanted} kernels: {variant.name}")
            more = self.open(variant, wanted - count)
            if more is None:
                self.close(variant)
                return
            group |= more
            count = wanted
            time.sleep(SETTLE_SECONDS)
            self._remember(variant, figures.MEMORY.format(wanted), processes.memory(group), wanted)
            manager = self.worker(variant).process.pid
            sizes[wanted] = processes.memory([psutil.Process(manager)]).mib
            if wanted == 1:
                self._trips(variant, figures.TRIP_ALONE)
        if count > 1:
            per_kernel = (sizes[count] - sizes[1]) / (count - 1)
            self._results.add(variant.name, {figures.BRIDGE_MEMORY: [per_kernel]})
        if count == 30 and self.open(variant, 1) is not None:
            self._trips(variant, figures.TRIP_CROWDED)
        self.close(variant)

    def _trips(self, variant: Variant, figure: str, count: int = 60) -> None:
        try:
            samples = self.ask(variant, "measure", figure="trips", count=count)
            self._results.add(variant.name, {figure: samples[figures.TRIP]})
        except WorkerError as error:
            self.fail(variant, figure, error)

    # -- one variant -----------------------------------------------------------------------------

    def warm_up(self, variant: Variant) -> None:
        """Start the variant, unmeasured, and check its kernel.

        :raises WorkerError: when it does not start, or is not as expected
        """
        self.tell(f"warming up: {variant.name}")
        reason = self._reason_against(variant)
        if reason is not None:
            raise WorkerError(reason)
        try:
            self.ask(variant, "start")
            self._opened.add(variant.code)
            self.ask(variant, "open", count=1)
            facts = json.loads(self.ask(variant, "run", cell=FACTS))
            self._results.facts[variant.name] = facts
            if variant.kind == "ours" and facts["mode"] != variant.mode:
                raise WorkerError(f"its kernel runs in {facts['mode']} mode")
            if variant.snapshot:
                facts["restored"] = self._await_snapshot(variant)
        finally:
            self.close(variant)

    def _reason_against(self, variant: Variant) -> str | None:
        if variant.other_user and self._workers.no_user:
            return self._workers.no_user
        if variant.kind == "ours" and not variant.other_user and os.geteuid() != 0:
            return "only root can measure root's variants"
        if not variant.oci_runtime:
            return None
        if isinstance(self._engine, EngineError):
            return str(self._engine)
        try:
            self._engine.require(variant.oci_runtime)
        except EngineError as error:
            return str(error)
        return None

    def _await_snapshot(self, variant: Variant) -> bool:
        """Wait for a snapshot; return whether a start uses it.

        A kernel is open meanwhile: as for a user, the snapshot is made beside it.

        :raises WorkerError: when no snapshot appears
        """
        wait, self._patience = self._patience, SHORT_SNAPSHOT_SECONDS
        restored = self.ask(variant, "await_snapshot", wait + 60, wait=wait)
        self._patience = SNAPSHOT_SECONDS
        return bool(restored)

    def worker(self, variant: Variant) -> WorkerProcess:
        worker = self._workers.get(variant.worker)
        key = (worker.process.pid, variant.code)
        if key not in self._defined:
            worker.ask(
                "define",
                code=variant.code,
                spec=kernelspec(variant, IMAGE),
                transport=variant.transport,
                resend=variant.resend,
            )
            self._defined.add(key)
        return worker

    def ask(self, variant: Variant, do: str, seconds: float = 300.0, **arguments: Any) -> Any:
        return self.worker(variant).ask(do, seconds, code=variant.code, **arguments)

    def _measure(self, variant: Variant, stage: str, do: str, **arguments: Any) -> bool:
        try:
            self._results.add(variant.name, self.ask(variant, do, **arguments))
        except WorkerError as error:
            self.fail(variant, stage, error)
            return False
        finally:
            if do != "measure":
                self.clean(variant)
        return True

    def open(self, variant: Variant, count: int) -> set[psutil.Process] | None:
        """Start ``count`` more kernels; return their processes, or None if they did not start."""
        try:
            self.worker(variant)  # so that the worker does not count as a kernel's process
            before, contained = processes.descendants(), self._containers()
            self._opened.add(variant.code)
            self.ask(variant, "open", count=count)
        except WorkerError as error:
            self.fail(variant, "open", error)
            self.close(variant)
            return None
        group = processes.descendants() - before
        for name, members in self._containers().items():
            if name not in contained:
                group |= members
        return group

    def close(self, variant: Variant) -> None:
        if variant.code in self._opened and self._workers.running(variant.worker):
            self._opened.discard(variant.code)
            try:
                self.ask(variant, "close")
            except WorkerError as error:
                self.fail(variant, "close", error)
        self.clean(variant)

    def clean(self, variant: Variant) -> None:
        """Reap adopted children; remove containers that a peer left behind."""
        processes.bury_orphans(self._workers.pids())
        if variant.oci_runtime and isinstance(self._engine, Engine):
            left = self._engine.remove_containers()
            if left:
                facts = self._results.facts.setdefault(variant.name, {})
                facts["containers left after a shutdown"] = (
                    facts.get("containers left after a shutdown", 0) + left
                )

    # -- helpers ---------------------------------------------------------------------------------

    def _rounds(self, figure: str) -> int:
        return self._plan.rounds.get(figure, 0)

    @staticmethod
    def _is_in(variant: Variant, names: Sequence[str]) -> bool:
        return not names or variant.name in names

    def _turn(self, number: int, what: str) -> list[Variant]:
        """Return the variants in this round's order; every round starts with another one."""
        self.tell(f"round {number + 1}: {what}")
        at = number * 5 % max(len(self._variants), 1)
        return self._variants[at:] + self._variants[:at]

    def _containers(self) -> dict[str, set[psutil.Process]]:
        return self._engine.containers() if isinstance(self._engine, Engine) else {}

    @staticmethod
    def _cpu(pids: set[int]) -> float:
        return processes.cpu_seconds([psutil.Process(pid) for pid in pids])

    def _remember(
        self, variant: Variant, figure: str, memory: processes.Memory, count: int
    ) -> None:
        if memory.unseen:
            reason = f"this user may not read {memory.unseen} processes"
            self._results.failures.append((variant.name, figure, reason))
        else:
            self._results.add(variant.name, {figure: [memory.mib / count]})

    def fail(self, variant: Variant, figure: str, error: Exception) -> None:
        self.tell(f"failed: {variant.name}: {figure}: {error}")
        self._results.failures.append((variant.name, figure, str(error)))

    def tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._begin:6.0f} s  {text}")


def describe_process(process: psutil.Process) -> str:
    try:
        return f"{process.name()} ({' '.join(process.cmdline())[:200]})"
    except psutil.Error:
        return "a process that has ended"
