"""Plots of one consistent style with matplotlib, saved as files.

    from plots import new_plot, save
    fig, ax = new_plot("Sales fell in May", "month", "EUR")
    ax.plot([1, 2, 3], [10, 12, 9], label="2025")
    save(fig, "/mnt/user-data/outputs/sales.png")

As a program, for a CSV file with a header, its first column along the x axis:

    python plots.py FILE.csv OUT.png [lines|bars|points] [TITLE]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any, Iterable, Sequence

try:
    import matplotlib

    if __name__ == "__main__":
        matplotlib.use("agg")
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package matplotlib is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Told apart also by people who are colour-blind (the palette of Okabe and Ito)."""
STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 13,
    "axes.titlepad": 12,
    "font.size": 11,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "figure.dpi": 100,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "plots",  # the same plot gives the same file
}


def new_plot(
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[float, float] = (8, 4.5),
    **options: Any,
) -> tuple[Any, Any]:
    """A figure and its axes in our style; ``size`` is in inches, ``options`` go to ``subplots``.

    With ``nrows`` or ``ncols`` the axes are an array, and ``title`` is that of the whole figure.
    """
    matplotlib.rcParams.update(STYLE)
    fig, axes = plt.subplots(figsize=size, layout="constrained", **options)
    if hasattr(axes, "set_title"):
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
    else:
        fig.suptitle(title, fontweight="bold")
        fig.supxlabel(x_label)
        fig.supylabel(y_label)
    return fig, axes


def bars(ax: Any, names: Sequence[Any], values: Iterable[float], show_values: bool = True) -> Any:
    """Bars that lie, the longest at the top: names can be read, sizes compared."""
    pairs = sorted(zip(values, map(str, names)))
    drawn = ax.barh([name for _, name in pairs], [value for value, _ in pairs])
    ax.grid(visible=False)
    if show_values:
        ax.bar_label(drawn, padding=4, fmt="{:,.6g}")
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(bottom=False, labelbottom=False)
        ax.margins(x=0.12)
    return drawn


def label_lines(ax: Any) -> None:
    """The name of each line at its end, in its colour: easier to read than a legend."""
    for line in ax.get_lines():
        if len(line.get_xdata()) and not line.get_label().startswith("_"):
            end = (line.get_xdata()[-1], line.get_ydata()[-1])
            ax.annotate(
                line.get_label(), end, xytext=(6, 0), textcoords="offset points",
                va="center", color=line.get_color(),
            )  # fmt: skip


def save(fig: Any, path: str | Path, dpi: int = 150) -> Path:
    """Write the figure, by its name's end as PNG, SVG or PDF; it can still be shown afterwards."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    fig.savefig(path, dpi=dpi, metadata=dates.get(path.suffix))
    return path


def plot_csv(path: str, output: str, kind: str = "lines", title: str = "") -> Path:
    """All columns of numbers in a CSV file over its first. Raises ValueError if there are none."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    columns = list(zip(*rows))
    series = {name: _numbers(column) for name, column in list(zip(header, columns))[1:]}
    series = {name: values for name, values in series.items() if values is not None}
    if not series:
        raise ValueError(f"{path} has no column of numbers but its first")
    fig, ax = new_plot(title or Path(path).stem, header[0])
    x = _numbers(columns[0]) or columns[0]
    if kind == "bars":
        width = 0.8 / len(series)
        for i, (name, values) in enumerate(series.items()):
            ax.bar([n + i * width for n in range(len(x))], values, width, label=name)
        ax.set_xticks([n + 0.4 - width / 2 for n in range(len(x))], columns[0])
    else:
        for name, values in series.items():
            ax.plot(x, values, "o" if kind == "points" else "-", label=name)
    if len(series) == 1:
        ax.set_ylabel(next(iter(series)))
    else:
        ax.legend()
    return save(fig, output)


def _numbers(column: Sequence[str]) -> list[float] | None:
    """A column's numbers, NaN for empty fields; None if it has others."""
    try:
        return [float(value) if value.strip() else float("nan") for value in column]
    except ValueError:
        return None


def main(arguments: list[str]) -> int:
    kinds = ("lines", "bars", "points")
    if not 2 <= len(arguments) <= 4 or (len(arguments) > 2 and arguments[2] not in kinds):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(plot_csv(*arguments))
    except (OSError, ValueError) as error:
        print(f"No plot was made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
