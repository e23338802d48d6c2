"""Write slides with python-pptx: a title, bullets, tables, pictures, charts, notes.

    from write_pptx import Deck
    Deck().title("Sales", "2026").bullets("Result", ["Sales grew"]).save("sales.pptx")

As a program, each heading of a text in Markdown a slide: python write_pptx.py TEXT.md OUT.pptx
"""

from __future__ import annotations

import io
import numbers
import re
import sys
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

try:
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE, XL_LEGEND_POSITION
    from pptx.enum.text import PP_ALIGN
    from pptx.util import Cm, Pt
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package python-pptx is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

WIDTH, HEIGHT = Cm(33.867), Cm(19.05)
"""16:9, as new files of PowerPoint have it."""
MARGIN, TOP, FOOT = Cm(1.7), Cm(4.2), Cm(1.2)
TITLE, BULLETS, TITLE_ONLY = 0, 1, 5
"""Places of the layouts in python-pptx's own template."""
CHARTS = {
    "bars": XL_CHART_TYPE.COLUMN_CLUSTERED,
    "rows": XL_CHART_TYPE.BAR_CLUSTERED,
    "lines": XL_CHART_TYPE.LINE_MARKERS,
    "pie": XL_CHART_TYPE.PIE,
}


def is_missing(value: Any) -> bool:
    """Whether it is one of the values by which numpy and pandas say that there is none."""
    return not isinstance(value, str) and str(value) in ("nan", "NaT", "<NA>")


def fill_up(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """``rows`` as lists of one length; what is missing is None. Raises ValueError for none."""
    lists = [[None if is_missing(value) else value for value in row] for row in rows]
    if not lists or not max(map(len, lists)):
        raise ValueError("a table has at least its header")
    columns = max(map(len, lists))
    return [row + [None] * (columns - len(row)) for row in lists]


def find_numbers(rows: list[list[Any]]) -> list[bool]:
    """Of each column, whether it has numbers below its header and nothing else."""
    columns = [[row[j] for row in rows[1:] if row[j] is not None] for j in range(len(rows[0]))]
    return [
        bool(column) and all(isinstance(value, numbers.Number) for value in column)
        for column in columns
    ]


class Deck:
    """Slides, one after the other. Methods return the deck; ``presentation`` is python-pptx's."""

    def __init__(self, font: str = "Calibri") -> None:
        self.presentation = Presentation()
        self.font = font
        self.presentation.slide_width, self.presentation.slide_height = WIDTH, HEIGHT
        self._inner = (MARGIN, TOP, WIDTH - 2 * MARGIN, HEIGHT - TOP - FOOT)

    def title(self, title: str, subtitle: str = "") -> Deck:
        """The first slide, or one that begins a part."""
        slide = self.presentation.slides.add_slide(self.presentation.slide_layouts[TITLE])
        for shape, text, size, top in (
            (slide.shapes.title, title, 44, Cm(6)),
            (slide.placeholders[1], subtitle, 24, Cm(10.5)),
        ):
            self._place(shape, (MARGIN, top, WIDTH - 2 * MARGIN, Cm(4)))
            self._write(shape.text_frame, text, size)
        if not subtitle:
            self._remove(slide.placeholders[1])
        self.presentation.core_properties.title = self.presentation.core_properties.title or title
        return self

    def bullets(self, title: str, items: Iterable[str]) -> Deck:
        """One line for each item; two spaces before its text put it below the one above."""
        items = list(items)
        slide = self._slide(title, BULLETS if items else TITLE_ONLY)
        if not items:
            return self
        body = slide.placeholders[1]
        self._place(body, self._inner)
        frame = body.text_frame
        for i, item in enumerate(items):
            paragraph = frame.paragraphs[0] if i == 0 else frame.add_paragraph()
            level = min((len(item) - len(item.lstrip())) // 2, 4)
            paragraph.level, paragraph.space_after = level, Pt(8)
            run = paragraph.add_run()
            run.text, run.font.size, run.font.name = item.strip(), Pt(24 - 4 * level), self.font
        return self

    def table(self, title: str, rows: Iterable[Sequence[Any]]) -> Deck:
        """The first row is the header. Raises ValueError for more rows than fit."""
        rows = fill_up(rows)
        right, columns = find_numbers(rows), len(rows[0])
        height = Cm(1.1)
        if height * len(rows) > self._inner[3]:
            raise ValueError(f"{len(rows)} rows: a slide shows {self._inner[3] // height} at most")
        left, top, width, _ = self._inner
        shapes = self._slide(title).shapes
        table = shapes.add_table(len(rows), columns, left, top, width, height * len(rows)).table
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                frame = table.cell(i, j).text_frame
                self._write(frame, "" if value is None else str(value), 16)
                if right[j]:
                    frame.paragraphs[0].alignment = PP_ALIGN.RIGHT
        return self

    def picture(self, title: str, source: Any, description: str = "") -> Deck:
        """A PNG or JPEG (path or bytes), as large as fits. Screen readers say ``description``."""
        source = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        left, top, width, height = self._inner
        picture = self._slide(title).shapes.add_picture(source, left, top)
        scale = min(width / picture.width, height / picture.height)
        across, down = int(picture.width * scale), int(picture.height * scale)
        self._place(picture, (left + (width - across) // 2, top, across, down))
        picture._element.nvPicPr.cNvPr.set("descr", description or title)
        return self

    def figure(self, title: str, figure: Any, description: str = "") -> Deck:
        """A figure of matplotlib."""
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=200)
        return self.picture(title, data.getvalue(), description)

    def chart(
        self,
        title: str,
        names: Iterable[Any],
        series: Mapping[str, Iterable[float | None]],
        kind: str = "bars",
    ) -> Deck:
        """A chart that PowerPoint can change: ``bars``, ``rows``, ``lines`` or ``pie``."""
        data = CategoryChartData()
        data.categories = [str(name) for name in names]
        for name, values in series.items():
            data.add_series(name, list(values))
        shapes = self._slide(title).shapes
        chart = shapes.add_chart(CHARTS[kind], *self._inner, data).chart
        chart.font.size, chart.font.name = Pt(14), self.font
        chart.has_title = False  # the slide's title says it
        chart.has_legend = len(series) > 1 or kind == "pie"
        if chart.has_legend:
            chart.legend.position, chart.legend.include_in_layout = XL_LEGEND_POSITION.BOTTOM, False
        return self

    def notes(self, text: str) -> Deck:
        """What the speaker says to the last slide."""
        self.presentation.slides[-1].notes_slide.notes_text_frame.text = text
        return self

    def save(self, path: str | Path) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.presentation.save(str(path))
        return Path(path)

    def _slide(self, title: str, layout: int = TITLE_ONLY) -> Any:
        slide = self.presentation.slides.add_slide(self.presentation.slide_layouts[layout])
        self._place(slide.shapes.title, (MARGIN, Cm(0.9), WIDTH - 2 * MARGIN, Cm(2.8)))
        self._write(slide.shapes.title.text_frame, title, 32)
        slide.shapes.title.text_frame.paragraphs[0].alignment = PP_ALIGN.LEFT
        return slide

    @staticmethod
    def _remove(shape: Any) -> None:
        """An empty placeholder says "Click to add text" to whoever edits the slide."""
        shape._element.getparent().remove(shape._element)

    @staticmethod
    def _place(shape: Any, place: tuple[int, int, int, int]) -> None:
        shape.left, shape.top, shape.width, shape.height = place

    def _write(self, frame: Any, text: str, size: int) -> None:
        frame.text = text
        frame.word_wrap = True
        for paragraph in frame.paragraphs:
            paragraph.font.size, paragraph.font.name = Pt(size), self.font


def from_markdown(text: str) -> Deck:
    """``#`` begins a part, ``##`` a slide; ``-`` lines are its bullets, all others its notes."""
    deck = Deck()
    for part in re.split(r"^(?=##? )", text, flags=re.MULTILINE):
        lines = part.strip().splitlines()
        if not lines or not lines[0].startswith("#"):
            continue
        head, rest = lines[0].lstrip("# "), [line for line in lines[1:] if line.strip()]
        items = [
            re.sub(r"[-*] ", "", line, count=1) for line in rest if re.match(r"\s*[-*] ", line)
        ]
        notes = [line.strip() for line in rest if not re.match(r"\s*[-*] ", line)]
        if lines[0].startswith("## "):
            deck.bullets(head, items)
            if notes:
                deck.notes("\n".join(notes))
        else:
            deck.title(head, "\n".join(notes))
    return deck


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    print(from_markdown(Path(arguments[0]).read_text(encoding="utf-8")).save(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
