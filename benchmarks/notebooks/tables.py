"""Results of notebooks as Markdown: ratios to the local kernel, the worst cells, differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks import figures
from benchmarks.notebooks import calls
from benchmarks.notebooks.cells import Notebook
from benchmarks.notebooks.runs import name_cell
from benchmarks.results import Results
from benchmarks.variants import BASELINE

PARTS = (figures.WALL, figures.CPU_TIME, figures.CELLS, figures.STEADY, figures.FAULTS)
WORST = 12
LEAST_SECONDS = 0.005
"""What a cell must lose to be named: less is the noise of a message."""
SHOWN_LINES = 6


def mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean; None if there are no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def notebook_tables(results: Results) -> Iterator[str]:
    """Yield a table of the notebooks for each variant, and one of the cells that have a title."""
    names = _find_names(results)
    walls = [figures.NOTEBOOK.format(name, figures.WALL) for name in names]
    for variant in results.variants:
        if variant != BASELINE and any(results.values(wall, variant) for wall in walls):
            yield _one_table(results, variant, names)
    yield from _cell_table(results)


def _find_names(results: Results) -> list[str]:
    before, after = figures.NOTEBOOK.format("\0", figures.WALL).split("\0")
    return [
        figure.removeprefix(before).removesuffix(after)
        for figure in results.samples
        if figure.startswith(before) and figure.endswith(after)
    ]


def _one_table(results: Results, variant: str, names: Sequence[str]) -> str:
    parts = [p for p in PARTS if figures.NOTEBOOK.format(names[0], p) in results.samples]
    counted = results.facts.get(BASELINE, {}).get("calls", {})
    lines = [
        f"### Notebooks: {variant}",
        "",
        "Ratios of medians to the local kernel's.",
        "",
        f"| | local cells, s | system calls | {' | '.join(parts)} |",
        "|---|" + "---|" * (len(parts) + 2),
    ]
    found: dict[str, list[float]] = {part: [] for part in parts}
    for name in names:
        local = results.value(figures.NOTEBOOK.format(name, figures.CELLS), BASELINE)
        asked = sum((sum(cell.values()) for cell in counted.get(name, [])), 0)
        row = [name, _show(local), f"{asked:,}" if name in counted else "-"]
        for part in parts:
            ratio = results.ratio(figures.NOTEBOOK.format(name, part), variant)
            row.append(_show(ratio))
            if ratio:
                found[part].append(ratio)
        lines.append(f"| {' | '.join(row)} |")
    for title, choose in (("geometric mean", mean), ("largest", lambda v: max(v, default=None))):
        row = [_show(choose(found[part])) for part in parts]
        lines.append(f"| **{title}** | | | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell_table(results: Results) -> Iterator[str]:
    before = figures.NOTEBOOK_CELL.format("")
    cells = [figure for figure in results.samples if figure.startswith(before)]
    if cells:
        others = [v for v in results.variants if results.values(cells[0], v) and v != BASELINE]
        lines = ["### Cells in steady state", ""]
        lines += [f"| | local, ms | {' | '.join(others)} |", "|---|---|" + "---|" * len(others)]
        for figure in cells:
            local = results.value(figure, BASELINE)
            row = [figure.removeprefix(before), _show(local and 1000 * local)]
            row += [_show(results.ratio(figure, variant)) for variant in others]
            lines.append(f"| {' | '.join(row)} |")
        yield "\n".join(lines)


def worst_cells(results: Results, variant: str, notebooks: Sequence[Notebook]) -> str:
    """Return the cells that lose most: what they lose in seconds, times their ratio."""
    found = []
    for notebook in notebooks:
        for number, cell in enumerate(notebook.cells):
            times = dict(_compare(results, variant, notebook.name, number))
            losses = [(there - here) * there / here for here, there in times.values()]
            if losses:
                found.append((max(losses), notebook.name, number, times, cell.source))
    lines = [f"### Worst cells: {variant}", ""]
    for _, name, number, times, source in sorted(found, key=lambda each: -each[0])[:WORST]:
        spans = [
            f"{what.removeprefix(figures.CELLS).strip(', ') or 'first time'}: {1000 * here:.0f} → "
            f"{1000 * there:.0f} ms (**{there / here:.2f}**)"
            for what, (here, there) in times.items()
        ]
        facts = _describe_counts(results, name, number)
        lines += [f"{name}, cell {number + 1}, {'; '.join([*spans, *facts])}", ""]
        lines += [*(f"    {line[:110]}" for line in source.splitlines()[:SHOWN_LINES]), ""]
    return "\n".join(lines).rstrip()


def _compare(
    results: Results, variant: str, name: str, number: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the local seconds of a cell and the variant's, where it loses some."""
    for what in (figures.CELLS, figures.STEADY):
        figure = figures.NOTEBOOK.format(name, name_cell(number, what))
        here, there = results.value(figure, BASELINE), results.value(figure, variant)
        if here and there and there - here > LEAST_SECONDS:
            yield what, (here, there)


def _describe_counts(results: Results, name: str, number: int) -> Iterator[str]:
    facts = results.facts.get(BASELINE, {})
    if name in facts.get("calls", {}):
        asked = calls.describe(Counter(facts["calls"][name][number]))
        yield f"locally {asked}, {facts['faults'][name][number]:,} page faults"


def differences(results: Results, variant: str) -> list[str]:
    """Name the cells whose outputs are of other kinds than the local kernel's."""
    found = []
    local = results.facts.get(BASELINE, {}).get("outputs", {})
    for name, cells in results.facts.get(variant, {}).get("outputs", {}).items():
        for number, (here, there) in enumerate(zip(local.get(name, []), cells, strict=False)):
            if here != there:
                found.append(
                    f"{name}, cell {number + 1}: local: {_join(here)}; {variant}: {_join(there)}"
                )
    return found


def _join(kinds: list[Any]) -> str:
    return ", ".join(map(str, kinds)) or "nothing"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
