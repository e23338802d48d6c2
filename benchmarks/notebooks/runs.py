"""The order of the runs: each notebook runs in every variant in turn, and each time another begins.

Every notebook runs once in each variant before, unmeasured, so that files are in the page cache and
modules are learned; the local kernel's system calls are counted then.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks import egress, figures, processes
from benchmarks.notebooks import calls, data, execution
from benchmarks.notebooks.cells import OWN, Notebook
from benchmarks.results import Results
from benchmarks.variants import BASELINE, Variant
from benchmarks.workers import WorkerError

if TYPE_CHECKING:
    from benchmarks.schedule import Schedule

WORKED = ("pandas_csv", "figures", "arrays")
"""Ours that one kernel runs before its memory is measured, when it has been idle."""


@dataclass(frozen=True)
class Provisions:
    """What notebooks of ours need: a folder of data, a port of a server, a place for a log."""

    folder: Path
    port: int | None
    log: Path | None


@contextmanager
def provide(notebooks: Sequence[Notebook]) -> Iterator[Provisions]:
    with ExitStack() as held:
        base = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gkn-")))
        base.chmod(0o755)
        folder = base / "data"
        if any(notebook.folder == OWN for notebook in notebooks):
            data.make(folder)
        asked = any(notebook.asks_server for notebook in notebooks)
        port = held.enter_context(egress.serving()) if asked else None
        yield Provisions(folder, port, base / "calls" if calls.may_count() else None)


class Runs:
    """``passes``: how often the cells run in one kernel; the last time is the steady state."""

    def __init__(
        self,
        schedule: Schedule,
        variants: Sequence[Variant],
        notebooks: Sequence[Notebook],
        provisions: Provisions,
        results: Results,
        passes: int = 1,
    ) -> None:
        self.notebooks = list(notebooks)
        self._schedule = schedule
        self._variants = list(variants)
        self._provisions = provisions
        self._results = results
        self._passes = passes
        self._failed: set[tuple[str, str]] = set()

    def warm_up(self) -> None:
        """Leave out a notebook where it cannot run, with the reason; if locally, everywhere."""
        for notebook in list(self.notebooks):
            self._schedule.tell(f"warming up: notebook {notebook.name}")
            for variant in self._variants:
                try:
                    if variant.name == BASELINE and self._provisions.log is not None:
                        self._count(variant, notebook, self._provisions.log)
                    else:
                        self._run(variant, notebook, 1)
                except WorkerError as error:
                    self._schedule.fail(variant, f"notebook {notebook.name}", error)
                    self._failed.add((variant.name, notebook.name))
                    if variant.name == BASELINE:
                        self.notebooks.remove(notebook)
                        break

    def measure(self, number: int) -> None:
        """Run every notebook in every variant. ``number``: of the round, from 0."""
        for at, notebook in enumerate(self.notebooks):
            self._schedule.tell(f"round {number + 1}: notebook {notebook.name}")
            first = (number + at) % len(self._variants)
            for variant in [*self._variants[first:], *self._variants[:first]]:
                if (variant.name, notebook.name) in self._failed:
                    continue
                try:
                    samples = self._run(variant, notebook, self._passes)
                except WorkerError as error:
                    self._schedule.fail(variant, f"notebook {notebook.name}", error)
                else:
                    self._results.add(variant.name, samples)

    def measure_memory(self, seconds: float) -> None:
        """Measure a kernel that ran the notebooks WORKED, after ``seconds`` of rest."""
        cells = [c.source for n in self.notebooks if n.name in WORKED for c in n.cells]
        for variant in self._variants:
            try:
                _, group = self._open(variant, self._provisions.folder, None)
                self._ask_cells(variant, cells)
                time.sleep(seconds)
                held = processes.memory(group | _below(group)).mib
                self._results.add(variant.name, {figures.MEMORY_WORKED: [held]})
            except WorkerError as error:
                self._schedule.fail(variant, figures.MEMORY_WORKED, error)
            finally:
                self._close(variant)

    def _run(self, variant: Variant, notebook: Notebook, passes: int) -> figures.Samples:
        """Run a notebook ``passes`` times in a new kernel.

        :raises WorkerError: when the kernel does not start, or dies
        """
        sources = [cell.source for cell in notebook.cells]
        try:
            started, group = self._begin(variant, notebook)
            done = [self._ask_cells(variant, sources)]
            spent = processes.usage(group)
            done += [self._ask_cells(variant, sources) for _ in range(passes - 1)]
            ended = self._schedule.ask(variant, "end_notebook")
        finally:
            self._close(variant)
        kinds = [cell["outputs"] for cell in done[0]["cells"]]
        self._note(variant, "outputs", notebook, kinds)
        values = {
            figures.WALL: started + done[0]["seconds"] + ended,
            figures.CPU_TIME: spent.cpu,
            figures.FAULTS: float(spent.faults),
        }
        for what, one in zip((figures.CELLS, figures.STEADY), (done[0], done[-1]), strict=True):
            if what == figures.CELLS or passes > 1:
                seconds = [cell["seconds"] for cell in one["cells"]]
                values[what] = sum(seconds)
                values |= {name_cell(n, what): took for n, took in enumerate(seconds)}
        named = {figures.NOTEBOOK.format(notebook.name, k): [v] for k, v in values.items()}
        titles = zip(notebook.cells, done[-1]["cells"], strict=True)
        steady = {
            figures.NOTEBOOK_CELL.format(c.title): [d["seconds"]] for c, d in titles if c.title
        }
        return named | (steady if passes > 1 else {})

    def _count(self, variant: Variant, notebook: Notebook, log: Path) -> None:
        """Run a notebook in a local kernel below strace, and note what each cell asked for."""
        traced = replace(variant, name=f"{BASELINE}, traced", prefix=(*calls.PREFIX, str(log)))
        try:
            self._begin(traced, notebook)
            done = self._ask_cells(traced, [cell.source for cell in notebook.cells], look=True)
            end = time.time()
            self._schedule.ask(traced, "end_notebook")
        finally:
            self._close(traced)
        found = calls.count(log, [cell["at"] for cell in done["cells"]], end)
        log.unlink()
        self._note(variant, "calls", notebook, [dict(each) for each in found])
        self._note(variant, "faults", notebook, [cell["faults"] for cell in done["cells"]])

    def _begin(self, variant: Variant, notebook: Notebook) -> tuple[float, set[psutil.Process]]:
        own = notebook.folder == OWN
        port = self._provisions.port if notebook.asks_server else None
        folder = self._provisions.folder if own else notebook.folder
        begun = self._open(variant, folder, port)
        if port is not None:
            at, path = egress.find_server(port, sandboxed=variant.kind == "ours")
            self._ask_cells(variant, [f"SERVER = 'http://127.0.0.1:{at}{path}'"])
        return begun

    def _open(
        self, variant: Variant, folder: Path, port: int | None
    ) -> tuple[float, set[psutil.Process]]:
        """Start a kernel; return the seconds and its processes."""
        self._schedule.worker(variant)  # so that it does not count as a kernel's process
        given = None if variant.kind == "local" else port
        before = processes.descendants()
        took = self._schedule.ask(variant, "open_notebook", folder=str(folder), port=given)
        return float(took), processes.descendants() - before

    def _ask_cells(self, variant: Variant, cells: list[str], look: bool = False) -> dict[str, Any]:
        seconds = 60 + execution.CELL_SECONDS * len(cells)
        found = self._schedule.ask(variant, "run_cells", seconds, cells=cells, look=look)
        return dict(found)

    def _close(self, variant: Variant) -> None:
        """End a kernel that is still there, and let snapshots be made while nothing is measured."""
        try:
            self._schedule.ask(variant, "close")
            if variant.kind == "ours":
                self._schedule.ask(variant, "await_quiet")
        except WorkerError as error:
            self._schedule.fail(variant, "close", error)
        self._schedule.clean(variant)

    def _note(self, variant: Variant, what: str, notebook: Notebook, value: list[Any]) -> None:
        facts = self._results.facts.setdefault(variant.name, {})
        facts.setdefault(what, {})[notebook.name] = value


def name_cell(number: int, what: str) -> str:
    return f"cell {number + 1}, {what}"


def _below(group: set[psutil.Process]) -> set[psutil.Process]:
    return {below for process in group for below in processes.descendants(process.pid)}
