"""Charts as SVG with Python's standard library alone (3.9 or newer): lines, points, bars.

    from svgplot import Chart
    chart = Chart("Sales", x_label="month", y_label="EUR")
    chart.line([1, 2, 3], [10, 12, 9], "2025").points([1, 2, 3], [11, 13, 10], "2026")
    chart.save("/mnt/user-data/outputs/sales.svg")

    Chart("By product").bars(["a", "b"], [3, 5]).save("/mnt/user-data/outputs/products.svg")

Shown in a notebook when it is the last value of a cell. As a program, for a CSV file with a
header, its first column along the x axis: python svgplot.py IN.csv OUT.svg [line|points|bars]
"""

import csv
import math
import os
import sys
from typing import Any, Iterable, List, Optional, Sequence, Tuple
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart also by people who are colour-blind (Okabe and Ito)."""
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 56


class Chart:
    """One pair of axes. Methods return the chart. None and NaN leave a gap."""

    def __init__(
        self,
        title: str = "",
        x_label: str = "",
        y_label: str = "",
        width: int = 720,
        height: int = 420,
    ) -> None:
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.width, self.height = width, height
        self._series: List[Tuple[str, List[float], List[float], str]] = []
        self._names: List[str] = []

    def line(self, x: Iterable[Any], y: Iterable[Any], label: str = "") -> "Chart":
        return self._add("line", list(x), y, label)

    def points(self, x: Iterable[Any], y: Iterable[Any], label: str = "") -> "Chart":
        return self._add("points", list(x), y, label)

    def bars(self, names: Iterable[Any], y: Iterable[Any], label: str = "") -> "Chart":
        """A bar for each name; called again with the same names, bars stand side by side."""
        names = [str(name) for name in names]
        if self._names and names != self._names:
            raise ValueError("all bars of a chart have the same names")
        self._names = names
        return self._add("bars", range(len(names)), y, label)

    def histogram(self, values: Iterable[Any], bins: int = 20, label: str = "") -> "Chart":
        """How many of ``values`` lie in each of ``bins`` equal ranges."""
        numbers = [n for n in map(_number, values) if n is not None]
        if not numbers:
            raise ValueError("there are no values")
        low, high = min(numbers), max(numbers)
        size = (high - low) / bins or 1.0
        counts = [0] * bins
        for number in numbers:
            counts[min(int((number - low) / size), bins - 1)] += 1
        return self.bars(["%.4g" % (low + size * (n + 0.5)) for n in range(bins)], counts, label)

    def _add(self, kind: str, x: Sequence[Any], y: Iterable[Any], label: str) -> "Chart":
        ys = [_number(value) for value in y]
        xs = [_number(value) for value in x]
        if len(xs) != len(ys):
            raise ValueError("%d values of x, %d of y" % (len(xs), len(ys)))
        if kind != "bars" and any(value is None for value in xs):
            raise ValueError("x has values that are no numbers: use bars, or number them")
        missing = [math.nan if value is None else value for value in ys]
        self._series.append((kind, [float(value or 0) for value in xs], missing, label))
        return self

    def save(self, path: str) -> "Chart":
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg())
        return self

    def _repr_svg_(self) -> str:
        return self.svg()

    def svg(self) -> str:
        xs = [x for _, values, _, _ in self._series for x in values]
        ys = [y for _, _, values, _ in self._series for y in values if math.isfinite(y)]
        top = TOP + (22 if any(label for *_, label in self._series) else 0)
        bars = [n for n, series in enumerate(self._series) if series[0] == "bars"]
        if bars:
            xs = [-0.5, max(len(self._names) - 0.5, 0.5), *xs]
            ys.append(0.0)
        x_ticks, y_ticks = _ticks(xs), _ticks(ys)
        low_x, high_x = (xs[0], xs[1]) if bars else _range(xs, x_ticks)
        low_y, high_y = _range(ys, y_ticks)

        def at(x: float, y: float) -> Tuple[float, float]:
            across = self.width - LEFT - RIGHT
            up = self.height - top - BOTTOM
            return (
                LEFT + (x - low_x) / (high_x - low_x) * across,
                self.height - BOTTOM - (y - low_y) / (high_y - low_y) * up,
            )

        parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d"'
            ' font-family="sans-serif" font-size="12">'
            % (self.width, self.height, self.width, self.height),
            '<rect width="100%" height="100%" fill="white"/>',
            _text(self.width / 2, 24, self.title, "middle", 'font-size="16"'),
            _text(self.width / 2, self.height - 10, self.x_label, "middle"),
            _text(
                16,
                0,
                self.y_label,
                "middle",
                'transform="translate(0 %.0f) rotate(-90 16 0)"' % (self.height / 2),
            ),
        ]
        left, right = LEFT, self.width - RIGHT
        for tick in y_ticks:
            y = at(low_x, tick)[1]
            parts.append(_line(left, y, right, y, "#ddd"))
            parts.append(_text(left - 8, y + 4, "%.6g" % tick, "end"))
        if bars:
            step = max(1, math.ceil(len(self._names) / 16))
            for n, name in list(enumerate(self._names))[::step]:
                shown = name if len(name) <= 14 else name[:13] + "\u2026"
                parts.append(_text(at(n, low_y)[0], self.height - BOTTOM + 18, shown, "middle"))
        else:
            for tick in x_ticks:
                x = at(tick, low_y)[0]
                parts.append(_line(x, self.height - BOTTOM, x, self.height - BOTTOM + 5, "#333"))
                parts.append(_text(x, self.height - BOTTOM + 18, "%.6g" % tick, "middle"))
        for n, (kind, x_values, y_values, _) in enumerate(self._series):
            colour = COLOURS[n % len(COLOURS)]
            pairs = list(zip(x_values, y_values))
            if kind == "bars":
                size = 0.8 / len(bars)
                shift = -0.4 + size * bars.index(n)
                for x, y in pairs:
                    if math.isfinite(y):
                        x0, y0 = at(x + shift, max(y, 0.0))
                        x1, y1 = at(x + shift + size, min(y, 0.0))
                        parts.append(
                            '<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>'
                            % (x0, y0, x1 - x0, y1 - y0, colour)
                        )
            elif kind == "line":
                for run in _runs(pairs):
                    path = " ".join("%.1f,%.1f" % at(x, y) for x, y in run)
                    parts.append(
                        '<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>'
                        % (path, colour)
                    )
            else:
                for x, y in pairs:
                    if math.isfinite(y):
                        parts.append(
                            '<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>' % (*at(x, y), colour)
                        )
        base = at(low_x, max(low_y, 0.0) if bars else low_y)[1]
        parts.append(_line(left, base, right, base, "#333"))
        parts.append(_line(left, top, left, self.height - BOTTOM, "#333"))
        parts.extend(self._legend())
        return "\n".join([*(part for part in parts if part), "</svg>\n"])

    def _legend(self) -> List[str]:
        parts = []
        x = float(LEFT)
        for n, (_, _, _, label) in enumerate(self._series):
            if label:
                colour = COLOURS[n % len(COLOURS)]
                box = '<rect x="%.1f" y="%d" width="12" height="12" fill="%s"/>'
                parts.append(box % (x, TOP - 2, colour))
                parts.append(_text(x + 18, TOP + 8, label, "start"))
                x += 36 + 7 * len(label)  # what its text takes, about
        return parts


def _number(value: Any) -> Optional[float]:
    """A finite number, or None. Understands text, NumPy and Decimal."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _ticks(values: Sequence[float]) -> List[float]:
    """Four to ten round numbers that cover the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next((m for m in (1, 2, 5) if (high - low) / (step * m) <= 8), 10)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _range(values: Sequence[float], ticks: Sequence[float]) -> Tuple[float, float]:
    return min([*values, ticks[0]]), max([*values, ticks[-1]])


def _runs(pairs: Iterable[Tuple[float, float]]) -> List[List[Tuple[float, float]]]:
    runs: List[List[Tuple[float, float]]] = [[]]
    for x, y in pairs:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>' % (
        *(x, y, to_x, to_y),
        colour,
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    if not text:
        return ""
    clean = "".join(char if char.isprintable() else " " for char in str(text))
    return '<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>' % (
        *(x, y, anchor, more),
        escape(clean),
    )


def main(arguments: List[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    kind = arguments[2] if len(arguments) == 3 else "line"
    with open(arguments[0], newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    chart = Chart(os.path.splitext(os.path.basename(arguments[0]))[0], x_label=header[0])
    x = [row[0] for row in rows]
    if any(_number(value) is None for value in x):
        kind = "bars"  # names, not numbers
    for n, label in enumerate(header[1:], 1):
        y = [row[n] if n < len(row) else None for row in rows]
        getattr(chart, kind)(x, y, label)
    chart.save(arguments[1])
    print("Wrote", arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
