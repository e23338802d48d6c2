"""A theme for matplotlib's plots.

    from plot_theme import use_theme
    use_theme("harbour")                # all plots from now on
    use_theme("harbour", mode="dark", size=14)

As a program, a plot that shows it: python plot_theme.py NAME OUT.png [light|dark]
"""

from __future__ import annotations

import sys
from typing import Any

try:
    import matplotlib

    if __name__ == "__main__":
        matplotlib.use("agg")
    import matplotlib.font_manager
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package matplotlib is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

from themes import MODES, Colours, find_theme


def style(name: str, mode: str = "light", size: float = 11) -> dict[str, Any]:
    """Settings for ``matplotlib.rcParams``, ``plt.style.use`` or ``plt.style.context``.

    Of the theme's fonts only those that are here, as matplotlib warns of each other one. Raises
    ValueError, OSError.
    """
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no mode: there are {' and '.join(MODES)}")
    theme = find_theme(name)
    colours: Colours = getattr(theme, mode)
    here = set(matplotlib.font_manager.get_font_names())
    return {
        "figure.facecolor": colours.ground,
        "savefig.facecolor": colours.ground,
        "axes.facecolor": colours.ground,
        "axes.edgecolor": colours.quiet,
        "axes.labelcolor": colours.quiet,
        "axes.titlecolor": colours.ink,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": matplotlib.cycler(color=colours.series),
        "grid.color": colours.line,
        "text.color": colours.ink,
        "xtick.color": colours.quiet,
        "ytick.color": colours.quiet,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "font.size": size,
        "font.family": [font for font in theme.body if font in here] or ["DejaVu Sans"],
        "svg.fonttype": "none",
    }


def use_theme(name: str, mode: str = "light", size: float = 11) -> None:
    """Let all plots have the theme, until ``matplotlib.rcdefaults()``."""
    matplotlib.rcParams.update(style(name, mode, size))


def show(name: str, path: str, mode: str = "light") -> None:
    """Write a plot that shows the theme."""
    with plt.style.context(style(name, mode)):
        fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        count = len(getattr(find_theme(name), mode).series)
        for n in range(count):
            axes[0].plot([0, 1, 2, 3], [n, n + 1.5, n + 0.7, n + 2])
            axes[0].annotate(f" series {n + 1}", (3, n + 2), color=f"C{n}", va="center")
        axes[0].set(title=f"{name}, {mode}", xlabel="month", ylabel="EUR")
        axes[0].set_xlim(0, 3.8)
        axes[1].bar(range(count), range(2, count + 2), color=[f"C{n}" for n in range(count)])
        axes[1].set_title("The order of the colours")
        fig.savefig(path, dpi=120)
        plt.close(fig)


def main(arguments: list[str]) -> int:
    if not 2 <= len(arguments) <= 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        show(*arguments)
        print(arguments[1])
    except (OSError, ValueError) as error:
        print(f"No plot was made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
