"""Draw posters, cards and covers as SVG: shapes and text at places in millimetres.

    from canvas import Canvas
    canvas = Canvas("A3", ground="#f4efe6")
    canvas.circle(150, 160, 90, fill="#c8401f")
    canvas.text(24, 380, "Autumn", size=42)
    canvas.save("/mnt/user-data/outputs/poster.svg")

Shown in a notebook when it is the last value of a cell. Needs Python's standard library alone.
"""

from __future__ import annotations

import math
import unicodedata
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator

SVG = "http://www.w3.org/2000/svg"
SIZES = {
    "A3": (297, 420), "A4": (210, 297), "A5": (148, 210), "A6": (105, 148),
    "square": (210, 210), "screen": (338.67, 190.5),
}  # fmt: skip
"""Width and height in millimetres, upright; ``screen`` is 16:9."""
FONTS = {
    "sans": ("Helvetica Neue, Arial, Liberation Sans, sans-serif", 0.54),
    "serif": ("Georgia, Palatino, DejaVu Serif, serif", 0.52),
    "mono": ("Menlo, Consolas, DejaVu Sans Mono, monospace", 0.61),
}
"""Families, and how wide a letter is on average, as a part of its size."""


class Canvas:
    """A sheet. x grows to the right, y downwards. ``found`` has what sticks out of the sheet."""

    def __init__(
        self, size: str | tuple[float, float] = "A4", ground: str = "#ffffff", title: str = ""
    ) -> None:
        self.width, self.height = SIZES[size] if isinstance(size, str) else size
        self.found: list[str] = []
        ElementTree.register_namespace("", SVG)
        self._root = ElementTree.Element(
            f"{{{SVG}}}svg", width=f"{self.width}mm", height=f"{self.height}mm",
            viewBox=f"0 0 {self.width} {self.height}", role="img",
        )  # fmt: skip
        if title:
            ElementTree.SubElement(self._root, f"{{{SVG}}}title").text = title
        self._definitions = ElementTree.SubElement(self._root, f"{{{SVG}}}defs")
        self._into = self._root
        self.rect(0, 0, self.width, self.height, fill=ground)

    def rect(self, x: float, y: float, width: float, height: float, **style: Any) -> Canvas:
        return self._add("rect", style, x=x, y=y, width=width, height=height)

    def circle(self, x: float, y: float, radius: float, **style: Any) -> Canvas:
        return self._add("circle", style, cx=x, cy=y, r=radius)

    def line(self, x1: float, y1: float, x2: float, y2: float, **style: Any) -> Canvas:
        style = {"stroke": "#000000", "stroke_width": 0.5, **style}
        return self._add("line", style, x1=x1, y1=y1, x2=x2, y2=y2)

    def polygon(self, points: Iterable[tuple[float, float]], **style: Any) -> Canvas:
        return self._add("polygon", style, points=" ".join(f"{x:.3f},{y:.3f}" for x, y in points))

    def path(self, d: str, **style: Any) -> Canvas:
        """Any shape, in the words of SVG: ``M 0 0 L 10 0 C 20 0 20 10 10 10 Z``."""
        return self._add("path", {"fill": "none", **style}, d=d)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 5,
        font: str = "sans",
        align: str = "start",
        spacing: float = 0,
        **style: Any,
    ) -> Canvas:
        """One line on the base line y; ``size`` in millimetres, ``align`` start, middle or end."""
        family, _ = FONTS[font]
        width = self.measure(text, size, font, spacing)
        left = x - {"start": 0, "middle": width / 2, "end": width}[align]
        if left < 0 or left + width > self.width or y - size < 0 or y > self.height:
            self.found.append(f"The text {text!r} is about {width:.0f} mm wide and sticks out.")
        style = {"fill": "#111111", **style}
        self._add(
            "text", style, x=x, y=y, font_family=family, font_size=size, text_anchor=align,
            letter_spacing=spacing,
        )  # fmt: skip
        self._into[-1].text = text
        return self

    def paragraph(
        self, x: float, y: float, text: str, width: float, size: float = 4, **style: Any
    ) -> float:
        """Lines of at most ``width`` from the base line y on; returns that of a next line."""
        line = ""
        font = style.get("font", "sans")
        for word in [*text.split(), ""]:
            longer = f"{line} {word}".strip()
            if line and (not word or self.measure(longer, size, font) > width):
                self.text(x, y, line, size, **style)
                y += size * 1.45
                line = word
            else:
                line = longer
        return y

    def gradient(self, *colours: str, angle: float = 90) -> str:
        """A fill that goes from one colour to the next; by 90 degrees from top to bottom."""
        name = f"gradient{len(self._definitions) + 1}"
        across, down = math.cos(math.radians(angle)) / 2, math.sin(math.radians(angle)) / 2
        places = {"x1": 0.5 - across, "y1": 0.5 - down, "x2": 0.5 + across, "y2": 0.5 + down}
        given = {key: f"{value:.4f}" for key, value in places.items()}
        into = ElementTree.SubElement(
            self._definitions, f"{{{SVG}}}linearGradient", {"id": name, **given}
        )
        for i, colour in enumerate(colours):
            place = {"offset": f"{i / max(len(colours) - 1, 1):.4f}", "stop-color": colour}
            ElementTree.SubElement(into, f"{{{SVG}}}stop", place)
        return f"url(#{name})"

    def grid(
        self, columns: int, rows: int, margin: float, gutter: float = 0
    ) -> list[list[tuple[float, float, float, float]]]:
        """Cells (x, y, width, height) within the margins, row by row: places for everything."""
        wide = (self.width - 2 * margin - (columns - 1) * gutter) / columns
        high = (self.height - 2 * margin - (rows - 1) * gutter) / rows
        return [
            [(margin + j * (wide + gutter), margin + i * (high + gutter), wide, high)
             for j in range(columns)] for i in range(rows)
        ]  # fmt: skip

    @contextmanager
    def group(self, **style: Any) -> Iterator[None]:
        """What is drawn meanwhile shares a style, such as ``opacity`` or ``transform``."""
        before = self._into
        self._into = ElementTree.SubElement(before, f"{{{SVG}}}g", _attributes(style))
        try:
            yield
        finally:
            self._into = before

    @staticmethod
    def measure(text: str, size: float, font: str = "sans", spacing: float = 0) -> float:
        """About how wide a line will be. What fonts a reader has is not known: leave room."""
        wide = sum(1.8 if unicodedata.east_asian_width(sign) in "WF" else 1.0 for sign in text)
        return wide * size * FONTS[font][1] + spacing * len(text)

    def svg(self) -> str:
        return ElementTree.tostring(self._root, encoding="unicode")

    def _repr_svg_(self) -> str:
        return self.svg()

    def save(self, path: str | Path) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(self.svg(), encoding="utf-8")
        return Path(path)

    def _add(self, tag: str, style: dict[str, Any], **places: Any) -> Canvas:
        ElementTree.SubElement(self._into, f"{{{SVG}}}{tag}", _attributes({**places, **style}))
        return self


def _attributes(values: dict[str, Any]) -> dict[str, str]:
    """Python's names and numbers as SVG has them: ``stroke_width=0.5`` is ``stroke-width``."""
    return {
        key.rstrip("_").replace("_", "-"): f"{value:.3f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else str(value)
        for key, value in values.items()
    }
