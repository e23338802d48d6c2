"""Results as Markdown: a table of targets, a table for each group of figures, and notes.

``docs/performance.md`` has them between two markers; the text around them is written by hand.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.notebooks import tables
from benchmarks.results import Results
from benchmarks.variants import BASELINE

BEGIN = "<!-- results: written by `python -m benchmarks --write-docs` -->"
END = "<!-- end of results -->"
MORE = "more"


@dataclass(frozen=True)
class Column:
    """A quantile of a figure, shown in ``unit`` (a value times ``scale``)."""

    figure: str
    title: str
    share: float = 0.5
    unit: str = "s"

    @property
    def scale(self) -> float:
        return 1000.0 if self.unit == "ms" else 1.0


@dataclass(frozen=True)
class Group:
    title: str
    code: str
    columns: tuple[Column, ...]


def quantiles(figure: str, title: str) -> tuple[Column, ...]:
    return tuple(
        Column(figure, f"{title}, {name}", share, "ms")
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    )


GROUPS = (
    Group(
        "Starting and ending",
        "start",
        (
            Column(figures.INFO, "to kernel_info reply"),
            Column(figures.FIRST, "to first execute reply"),
            Column(figures.IMPORT, "numpy, pandas, pyplot in the second cell", unit="ms"),
            Column(figures.IMPORTED, "to these imported"),
            Column(figures.PROGRAM, "a program's start to its first cell's reply"),
            Column(figures.FIRST_READY, "with wait_for_ready, to first execute reply"),
            Column(figures.IMPORTED_READY, "with wait_for_ready, to imported"),
            Column(figures.SHUTDOWN, "shutdown"),
        ),
    ),
    Group(
        "Round trips",
        "trips",
        (
            *quantiles(figures.TRIP, "`1+1`"),
            Column(figures.TRIP_AT_ONCE, "`1+1`, right after the start, p50", unit="ms"),
            *quantiles(figures.PRINT_TRIP, "`print(1)`"),
        ),
    ),
    Group(
        "Output",
        "output",
        (
            Column(figures.OUTPUT_1, "1 MB", unit="ms"),
            Column(figures.OUTPUT_10, "10 MB", unit="ms"),
            Column(figures.OUTPUT_100, "100 MB"),
            Column(figures.FEWER_PRINTS, "5,000 small prints", unit="ms"),
            Column(figures.SMALL_PRINTS, "100,000 small prints"),
        ),
    ),
    Group(
        "Work",
        "work",
        (
            Column(figures.CPU_BOUND, "CPU-bound cell"),
            Column(figures.STATS, "100,000 `os.stat`"),
            Column(figures.ARRAYS_BOUND, "arrays of 5 MiB"),
            Column(figures.INTERRUPT, "time to interrupt", unit="ms"),
            Column(figures.FORK, "fork and exit", unit="ms"),
            Column(figures.SUBPROCESS, '`subprocess.run(["true"])`', unit="ms"),
            Column(figures.CSV, "`read_csv` of 50 MB"),
            Column(figures.GROUPED, "`groupby`, 5 times"),
            Column(figures.PARQUET_TRIP, "Parquet written and read"),
            Column(figures.FILES, "10,000 small files"),
        ),
    ),
    Group(
        "Memory and idling",
        "idle",
        (
            *(
                Column(figures.MEMORY.format(count), f"memory each, {count} idle", unit="MiB")
                for count in (1, 10, 30)
            ),
            Column(figures.MEMORY_IMPORTED, "with numpy, pandas, pyplot imported", unit="MiB"),
            Column(figures.MEMORY_WORKED, "a minute after three notebooks", unit="MiB"),
            Column(figures.BRIDGE_MEMORY, "manager's memory a kernel", unit="MiB"),
            Column(figures.IDLE_CPU, "idle CPU", unit="% of a core"),
            Column(figures.IDLE_BRIDGE_CPU, "manager's idle CPU a kernel", unit="% of a core"),
            Column(figures.TRIP_WOKEN, "first `1+1` after idling", unit="ms"),
            Column(figures.STALLED, "bridge's growth, 1 GB to a stalled client", unit="MiB"),
            Column(figures.LARGEST, "largest message of that", unit="MiB"),
            Column(figures.STALLED_FLUSHED, "growth with messages of 1 MB", unit="MiB"),
        ),
    ),
    Group(
        "Neighbours",
        "neighbours",
        (
            Column(figures.TRIP_ALONE, "`1+1` alone, p50", unit="ms"),
            Column(figures.TRIP_CROWDED, "`1+1` with 30 idle neighbours, p50", unit="ms"),
            Column(figures.TRIP_CROWDED, "the same, p90", 0.9, "ms"),
            Column(
                figures.TRIP_FLOODED, "`1+1`, a neighbour sends messages of 120 MB, p50", 0.5, "ms"
            ),
            Column(figures.TRIP_FLOODED, "the same, p99", 0.99, "ms"),
            Column(figures.LONGEST_TURN, "bridge's longest turn meanwhile, CPU", 1.0, "ms"),
        ),
    ),
)


@dataclass(frozen=True)
class Target:
    """A limit for a figure. ``variants``: names with {mode} and {who}; the first measured counts.

    ``base``: a figure of the same variant to divide by; empty: the baseline's same figure;
    None: the value itself is compared, in ``unit``; MORE: what it has more than the baseline's, in
    ``unit``. A * in ``figure``: the geometric mean of the ratios of all figures that it matches.
    """

    title: str
    figure: str
    variants: tuple[str, ...]
    limit: float
    share: float = 0.5
    base: str | None = ""
    unit: str = ""
    modes: tuple[str, ...] = ("direct", "relay")

    def reached(self, results: Results, mode: str, who: str) -> float | None:
        if mode not in self.modes:
            return None
        for pattern in self.variants:
            name = pattern.format(mode=mode, who=who)
            if "*" in self.figure:
                if (value := self._mean(results, name)) is not None:
                    return value
                continue
            value = results.value(self.figure, name, self.share)
            if value is None:
                continue
            if self.base == MORE:
                local = results.value(self.figure, BASELINE, self.share)
                return None if local is None else value - local
            if self.base is None:
                return value
            if self.base:
                alone = results.value(self.base, name, self.share)
                return value / alone if alone else None
            return results.ratio(self.figure, name, self.share)
        return None

    def _mean(self, results: Results, variant: str) -> float | None:
        matched = fnmatch.filter(results.samples, self.figure)
        return tables.mean(filter(None, (results.ratio(each, variant) for each in matched)))


ANY = ("snapshot, {mode}, {who}", "cold, {mode}, {who}")
LEARNED = ("learned, {mode}, {who}",)
SPARE = ("spare+learned, {mode}, {who}",)
DIRECT = ("direct",)


def of_notebooks(title: str, figure: str, limit: float, **more: Any) -> Target:
    return Target(title, figure, (*LEARNED, *ANY), limit, modes=DIRECT, **more)


def of_cell(title: str, limit: float) -> Target:
    return of_notebooks(f"{title}, steady state", figures.NOTEBOOK_CELL.format(title), limit)


TARGETS = (
    Target("numpy, pandas, pyplot in the second cell, nothing preloaded", figures.IMPORT, ANY, 1.6),
    Target("the same by default", figures.IMPORT, LEARNED, 0.2, modes=DIRECT),
    Target("start to first execute, with a spare", figures.FIRST, SPARE, 1.0, modes=DIRECT),
    Target("the same, restored, nothing preloaded", figures.FIRST, ANY[:1], 0.8),
    Target("the same, restored, by default", figures.FIRST, LEARNED, 0.8, modes=DIRECT),
    Target("the same, as nbclient waits (wait_for_ready)", figures.FIRST_READY, LEARNED, 0.8),
    Target("start to imports done, by default", figures.IMPORTED, LEARNED, 0.8, modes=DIRECT),
    Target("the same, with a spare", figures.IMPORTED, SPARE, 0.3, modes=DIRECT),
    Target("a program of its own, to its first cell", figures.PROGRAM, LEARNED, 1.0, modes=DIRECT),
    Target("cold start to first execute", figures.FIRST, ANY[1:], 2.0),
    Target("the same, as nbclient waits", figures.FIRST_READY, ANY[1:], 2.0),
    Target("`1+1`, direct, p50", figures.TRIP, ANY, 1.1, modes=DIRECT),
    Target("`1+1`, direct, p90", figures.TRIP, ANY, 1.2, 0.9, modes=DIRECT),
    Target("`1+1`, relay, p50", figures.TRIP, ANY, 2.5, modes=("relay",)),
    Target("fork and exit of an idle kernel", figures.FORK, ANY, 4.0),
    Target('`subprocess.run(["true"])`', figures.SUBPROCESS, ANY, 3.0),
    Target("`read_csv` of 50 MB", figures.CSV, ANY, 1.3),
    Target("`groupby`", figures.GROUPED, ANY, 1.3),
    Target("Parquet written and read", figures.PARQUET_TRIP, ANY, 1.3),
    Target("10,000 small files", figures.FILES, ANY, 3.0),
    Target("100 MB of output", figures.OUTPUT_100, ANY, 2.0),
    Target("5,000 small prints", figures.FEWER_PRINTS, ANY, 2.0),
    Target("100,000 small prints", figures.SMALL_PRINTS, ANY, 1.5),
    Target(
        "`1+1` with 30 idle neighbours, over alone, p50",
        figures.TRIP_CROWDED,
        ANY,
        1.1,
        base=figures.TRIP_ALONE,
    ),
    Target(
        "`1+1`, a neighbour sends 120 MB at a time, p99",
        figures.TRIP_FLOODED,
        ANY,
        0.1,
        0.99,
        base=None,
        unit="s",
    ),
    Target("memory of an idle kernel, one", figures.MEMORY.format(1), ANY, 1.8),
    Target("the same, each of thirty", figures.MEMORY.format(30), ANY, 1.5),
    Target("one that has imported numpy, pandas, pyplot", figures.MEMORY_IMPORTED, ANY, 1.8),
    Target("the same by default", figures.MEMORY_IMPORTED, LEARNED, 1.8, modes=DIRECT),
    Target("idle CPU", figures.IDLE_CPU, ANY, 0.2, base=None, unit="% of a core"),
    Target("bridge's growth, 1 GB stalled", figures.STALLED, ANY, 64, base=None, unit="MiB"),
    Target("the same in messages of 1 MB", figures.STALLED_FLUSHED, ANY, 64, base=None, unit="MiB"),
    of_notebooks("notebooks, wall, mean", figures.NOTEBOOK.format("*", figures.WALL), 1.15),
    of_notebooks("notebooks, cells, mean", figures.NOTEBOOK.format("*", figures.CELLS), 1.1),
    of_notebooks(
        "the same, third time in a kernel", figures.NOTEBOOK.format("*", figures.STEADY), 1.1
    ),
    of_cell("figure of four axes", 1.15),
    of_cell("groupby, sort, merge of 300,000 rows", 1.0),
    of_cell("np.ones of 64 MB", 1.2),
    of_cell("sum of four frames of 50,000 rows", 1.2),
    of_cell("200 small files", 8.0),
    of_cell("grid search", 1.15),
    of_cell("KNN", 1.15),
    of_cell("random forest", 1.15),
    of_cell("subprocess.run of true", 3.0),
    of_cell("!ls", 3.0),
    of_notebooks(
        "memory more than local, a minute after notebooks",
        figures.MEMORY_WORKED,
        60,
        base=MORE,
        unit="MiB",
    ),
)
COLUMNS = tuple((mode, who) for who in ("root", "user") for mode in ("direct", "relay"))


def number(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def render(results: Results) -> str:
    parts = [describe(results), targets_table(results)]
    parts += [group_table(results, group) for group in GROUPS]
    parts += tables.notebook_tables(results)
    parts.append(notes(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def describe(results: Results) -> str:
    machine, run = results.machine, results.run
    versions = ("runsc", "ipykernel", "jupyter-client", "pyzmq", "numpy", "pandas", "matplotlib")
    peers = ("dockernel", "gateway-provisioners", "docker")
    listed = [f"{name} {machine[name]}" for name in (*versions, *peers) if name in machine]
    rounds = ", ".join(f"{name} {count}" for name, count in run.get("rounds", {}).items() if count)
    return "\n".join(
        [
            f"Measured {machine['when']} at commit {machine['commit']}, in "
            f"{run.get('seconds', 0) / 60:.0f} minutes, all variants interleaved.",
            "",
            f"- Machine: {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB, "
            f"{machine['system']}, Linux {machine['kernel']}",
            f"- Load (1, 5, 15 min): {machine['load']} at the start, "
            f"{machine.get('load_at_end', '?')} at the end",
            f"- Python {machine['python']}, {', '.join(listed)}",
            f"- Rounds: {rounds}",
        ]
    )


def targets_table(results: Results) -> str:
    lines = [
        "### Targets",
        "",
        "Medians unless it says otherwise; ratios to the local kernel unless a unit is named.",
        "",
        "| | target | " + " | ".join(f"{mode}, {who}" for mode, who in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    shown = False
    for target in TARGETS:
        cells = []
        for mode, who in COLUMNS:
            value = target.reached(results, mode, who)
            shown = shown or value is not None
            mark = "" if value is None else " ✓" if value <= target.limit else " ✗"
            cells.append("-" if value is None else number(value) + mark)
        limit = f"≤ {number(target.limit)} {target.unit}".rstrip()
        lines.append(f"| {target.title} | {limit} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if shown else ""


def group_table(results: Results, group: Group) -> str:
    columns = [column for column in group.columns if results.samples.get(column.figure)]
    if not columns:
        return ""
    lines = [
        f"### {group.title}",
        "",
        "| | " + " | ".join(f"{column.title}, {column.unit}" for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for variant in results.variants:
        if variant in results.absent:
            lines.append(f"| {variant} | " + " | ".join("absent" for _ in columns) + " |")
        elif any(results.values(column.figure, variant) for column in columns):
            cells = (cell(results, column, variant) for column in columns)
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(results: Results, column: Column, variant: str) -> str:
    """Format the value, with its ratio to the baseline's in parentheses."""
    value = results.value(column.figure, variant, column.share)
    if value is None:
        return "-"
    shown = number(value * column.scale)
    ratio = results.ratio(column.figure, variant, column.share)
    return shown if ratio is None or variant == BASELINE else f"{shown} ({ratio:.2f})"


def notes(results: Results) -> str:
    lines = list(_notes(results))
    return "\n".join(["### Absent variants and failures", "", *lines]) if lines else ""


def _notes(results: Results) -> Iterator[str]:
    for name, reason in results.run.get("notebooks left out", {}).items():
        yield f"- The notebook {name} was left out: {shorten(reason)}"
    for variant, reason in results.absent.items():
        yield f"- {variant}: absent. {shorten(reason)}"
    for variant, figure, reason in results.failures:
        yield f"- {variant}: {figure}: {shorten(reason)}"
    for variant, facts in results.facts.items():
        if facts.get("restored") is False:
            yield f"- {variant}: a snapshot was made, but the next start did not use one."
        left = facts.get("containers left after a shutdown")
        if left:
            yield f"- {variant}: left {left} containers behind after shutdowns (removed each time)."


def shorten(reason: str, limit: int = 300) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= limit else text[:limit] + "…"


def write_docs(results: Results, path: Path) -> None:
    """Replace the text between the markers of ``path``.

    :raises ValueError: when the markers are missing
    """
    text = path.read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{path} does not have the markers {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{render(results).rstrip()}\n\n{END}{after}")
