"""Plots of results: a PNG for each group of figures, with a panel for each figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.report import GROUPS, Column, Group, number
from benchmarks.results import Results
from benchmarks.variants import BASELINE

COLOURS = (
    ("local", "#555555"),
    ("cold", "#9ecae1"),
    ("snapshot+preload", "#08519c"),
    ("snapshot", "#4292c6"),
    ("spare+preload", "#00441b"),
    ("spare", "#41ab5d"),
    ("dockernel", "#fdae6b"),
    ("gateway", "#e6550d"),
)
PANELS_A_ROW = 3


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw a PNG for each measured group into ``folder``; return the paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawn = []
    for group in GROUPS:
        columns = [c for c in group.columns if results.samples.get(c.figure)]
        if columns:
            drawn.append(_draw_group(results, group, columns, folder))
    return drawn


def _draw_group(results: Results, group: Group, columns: list[Column], folder: Path) -> Path:
    from matplotlib import pyplot

    across = min(PANELS_A_ROW, len(columns))
    down = math.ceil(len(columns) / across)
    height = 0.9 + 0.27 * max(len(results.variants), 4)
    figure, axes = pyplot.subplots(
        down, across, figsize=(2.2 + 3.6 * across, height * down), squeeze=False, sharey=True
    )
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(axes.flat, columns, strict=False):
        _draw_panel(axis, results, column)
    machine = results.machine
    figure.suptitle(f"{group.title} · {machine['when'][:10]} · {machine['commit']}", fontsize=11)
    figure.tight_layout()
    path = folder / f"{group.code}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _draw_panel(axis: Any, results: Results, column: Column) -> None:
    """Draw a bar for each variant, a tick at its 90th percentile, and a line at the baseline."""
    names = results.variants
    for row, name in enumerate(names):
        value = results.value(column.figure, name, column.share)
        if value is None:
            text = "absent" if name in results.absent else "not measured"
            axis.text(0, row, f" {text}", va="center", fontsize=7, color="#999999")
            continue
        axis.barh(row, value * column.scale, color=_colour(name), height=0.7)
        label = f" {number(value * column.scale)}"
        axis.text(value * column.scale, row, label, va="center", fontsize=7)
        high = results.value(column.figure, name, 0.9)
        if (
            high is not None
            and column.share == 0.5
            and len(results.values(column.figure, name)) > 4
        ):
            axis.plot([high * column.scale] * 2, [row - 0.3, row + 0.3], color="black", lw=0.8)
    base = results.value(column.figure, BASELINE, column.share)
    if base is not None:
        axis.axvline(base * column.scale, color="#555555", lw=0.8, ls=":")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.margins(x=0.18)
    axis.set_title(f"{column.title}, {column.unit}", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _colour(variant: str) -> str:
    return next((colour for prefix, colour in COLOURS if variant.startswith(prefix)), "#31a354")
