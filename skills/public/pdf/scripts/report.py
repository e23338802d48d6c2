"""Write a report as a PDF with reportlab: headings, text, tables, pictures, page numbers.

    from report import Report
    Report("Sales").text("Sales **grew**.").table(rows, "By month").save("sales.pdf")

As a program: python report.py TEXT.md OUT.pdf [TITLE]
"""

from __future__ import annotations

import io
import numbers
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterable, Sequence
from xml.sax.saxutils import escape

try:
    from reportlab.lib import colors, pagesizes
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.lib.units import cm
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.platypus import (
        Image,
        KeepTogether,
        ListFlowable,
        ListItem,
        PageBreak,
        Paragraph,
        Preformatted,
        SimpleDocTemplate,
        Spacer,
        Table,
    )
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package reportlab is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

PAPER = {"A4": pagesizes.A4, "Letter": pagesizes.LETTER}
MARGIN = 2 * cm
GREY, LIGHT = colors.HexColor("#5a6472"), colors.HexColor("#e7ecf2")


def find_fonts() -> tuple[str, str, str]:
    """Names of a plain, a bold and a monospaced font.

    matplotlib's DejaVu, which has Latin, Greek, Cyrillic and more; without matplotlib those that
    every PDF reader has, which know Western European letters only.
    """
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return "Helvetica", "Helvetica-Bold", "Courier"
    folder = Path(spec.origin).parent / "mpl-data/fonts/ttf"
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono")
    for name in (*names, "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"):
        pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))
    pdfmetrics.registerFontFamily(
        "DejaVuSans",
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSans-BoldOblique",
    )
    return names


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


class Report:
    """A report that grows downwards. Methods return it; ``story`` is reportlab's list of parts."""

    def __init__(self, title: str = "", subtitle: str = "", paper: str = "A4") -> None:
        self.title, self.paper = title, PAPER[paper]
        self.width = self.paper[0] - 2 * MARGIN
        self.plain, self.bold, self.mono = find_fonts()
        self.story: list[Any] = []
        base = ParagraphStyle("text", fontName=self.plain, fontSize=10, leading=14, spaceAfter=6)
        self.styles = {
            "text": base,
            "title": ParagraphStyle("title", base, fontName=self.bold, fontSize=20, leading=26),
            "caption": ParagraphStyle("caption", base, fontSize=8.5, leading=11, textColor=GREY),
            "item": ParagraphStyle("item", base, spaceAfter=2),
            "cell": ParagraphStyle("cell", base, fontSize=9, leading=11, spaceAfter=0),
            "code": ParagraphStyle("code", base, fontName=self.mono, fontSize=8, leading=10),
        }
        for level, size in enumerate((15, 12.5, 10.5), 1):
            self.styles[f"heading {level}"] = ParagraphStyle(
                f"heading {level}", base, fontName=self.bold, fontSize=size, leading=size * 1.3,
                spaceBefore=size * 0.8, spaceAfter=4, keepWithNext=True,
            )  # fmt: skip
        if title:
            self._add(title, "title")
        if subtitle:
            self._add(subtitle, "caption")

    def heading(self, text: str, level: int = 1) -> Report:
        """A heading of level 1 to 3."""
        return self._add(text, f"heading {min(level, 3)}")

    def text(self, markdown: str) -> Report:
        """Paragraphs, lists (``-`` or ``1.``) and headings (``#``), with bold, italic and code."""
        paragraph: list[str] = []
        items: list[Any] = []
        kind = "bullet"
        for line in [*markdown.splitlines(), "", "end"]:
            heading = re.match(r"(#{1,6})\s+(.*)", line)
            item = re.match(r"\s*(?:[-*]|(\d+)[.)])\s+(.*)", line)
            if (heading or item or not line.strip()) and paragraph:
                self._add(" ".join(paragraph), "text")
                paragraph = []
            if items and line.strip() and (not item or kind != ("1" if item[1] else "bullet")):
                start, form = ("1", "%s.") if kind == "1" else ("\u2022", None)
                self.story.append(ListFlowable(
                    items, bulletType=kind, start=start, bulletFontName=self.plain, leftIndent=16,
                    bulletFontSize=10, bulletFormat=form,
                ))  # fmt: skip
                self.story.append(Spacer(1, 6))
                items = []
            if heading:
                self.heading(heading[2], len(heading[1]))
            elif item:
                kind = "1" if item[1] else "bullet"
                items.append(ListItem(Paragraph(self._markup(item[2]), self.styles["item"])))
            elif line.strip():
                paragraph.append(line.strip())
        return self

    def table(self, rows: Iterable[Sequence[Any]], caption: str = "") -> Report:
        """The first row is the header, repeated on each page. Numbers stand at the right."""
        rows = fill_up(rows)
        style = [
            ("BACKGROUND", (0, 0), (-1, 0), LIGHT),
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, GREY),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ]
        right = find_numbers(rows)
        cells = [
            [self._cell(value, i == 0, right[j]) for j, value in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        table = Table(cells, colWidths=self._widths(rows), repeatRows=1, style=style, hAlign="LEFT")
        if caption:
            before = ParagraphStyle("before", self.styles["caption"], keepWithNext=True)
            self.story.append(Paragraph(self._markup(caption), before))
        self.story += [table, Spacer(1, 10)]
        return self

    def picture(self, source: Any, caption: str = "", width: float = 1.0) -> Report:
        """A PNG or JPEG (path or bytes). ``width`` is the part of the text's width."""
        source = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        across, down = ImageReader(source).getSize()
        wide = self.width * width
        high = wide * down / across
        most = self.paper[1] - 2 * MARGIN - 2 * cm
        if high > most:
            wide, high = wide * most / high, most
        parts: list[Any] = [Image(source, wide, high)]
        if caption:
            parts.append(Paragraph(self._markup(caption), self.styles["caption"]))
        self.story += [KeepTogether(parts), Spacer(1, 6)]
        return self

    def figure(self, figure: Any, caption: str = "", width: float = 1.0) -> Report:
        """A figure of matplotlib."""
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=200)
        return self.picture(data.getvalue(), caption, width)

    def code(self, text: str) -> Report:
        """Lines as they are, in a monospaced font; long ones go on in the next line."""
        most = int(self.width / pdfmetrics.stringWidth("m", self.mono, 8))
        self.story.append(Preformatted(text.expandtabs(4), self.styles["code"], maxLineLength=most))
        return self

    def page_break(self) -> Report:
        self.story.append(PageBreak())
        return self

    def save(self, path: str | Path) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        document = SimpleDocTemplate(
            str(path), pagesize=self.paper, title=self.title, leftMargin=MARGIN, rightMargin=MARGIN,
            topMargin=MARGIN, bottomMargin=MARGIN,
        )  # fmt: skip
        document.build(list(self.story), onFirstPage=self._foot, onLaterPages=self._foot)
        return Path(path)

    def _add(self, text: str, style: str) -> Report:
        self.story.append(Paragraph(self._markup(text), self.styles[style]))
        return self

    def _foot(self, canvas: Any, document: Any) -> None:
        canvas.setFont(self.plain, 8)
        canvas.setFillColor(GREY)
        canvas.drawString(MARGIN, MARGIN / 2, self.title)
        canvas.drawRightString(self.paper[0] - MARGIN, MARGIN / 2, str(document.page))

    def _markup(self, text: str) -> str:
        """reportlab's tags for Markdown's signs; all other signs of its XML are escaped."""
        text = escape(text)
        text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
        text = re.sub(r"(?<!\w)\*(\S|\S.*?\S)\*(?!\w)", r"<i>\1</i>", text)
        return re.sub(r"`(.+?)`", rf'<font name="{self.mono}">\1</font>', text)

    def _cell(self, value: Any, header: bool, right: bool) -> Paragraph:
        style = ParagraphStyle(
            "cell", self.styles["cell"], fontName=self.bold if header else self.plain,
            alignment=2 if right else 0,
        )  # fmt: skip
        return Paragraph(escape("" if value is None else str(value)), style)

    def _widths(self, rows: list[list[Any]]) -> list[float]:
        """As wide as the texts, and narrowed in proportion where that is too much for the page."""
        wanted = [24.0] * len(rows[0])
        for row in rows:
            for j, value in enumerate(row):
                width = pdfmetrics.stringWidth(str(value), self.bold, 9) + 14
                wanted[j] = max(wanted[j], min(width, self.width * 0.6))
        shrink = min(1.0, self.width / sum(wanted))
        return [width * shrink for width in wanted]


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    text = Path(arguments[0]).read_text(encoding="utf-8")
    print(Report(*arguments[2:]).text(text).save(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
