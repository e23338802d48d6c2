"""Write a Word document with python-docx: headings, text, tables, pictures, page numbers.

    from write_docx import Writer
    Writer("Sales").text("Sales **grew**.").table(rows, "By month").save("sales.docx")

As a program: python write_docx.py TEXT.md OUT.docx [TITLE]
"""

from __future__ import annotations

import io
import numbers
import re
import sys
from pathlib import Path
from typing import Any, Iterable, Sequence

try:
    import docx
    from docx.enum.text import WD_ALIGN_PARAGRAPH
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn
    from docx.shared import Cm, Pt
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package python-docx is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

PAPER = {"A4": (Cm(21), Cm(29.7)), "Letter": (Cm(21.59), Cm(27.94))}
INLINE = re.compile(r"\*\*(.+?)\*\*|(?<!\w)\*(\S|\S.*?\S)\*(?!\w)|`(.+?)`")
"""Bold, italic and code, as Markdown has them."""


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


class Writer:
    """A document that grows downwards. Methods return the writer; ``document`` is python-docx's."""

    def __init__(self, title: str = "", paper: str = "A4", font: str = "Calibri") -> None:
        self.document = docx.Document()
        section = self.document.sections[0]
        section.page_width, section.page_height = PAPER[paper]
        section.left_margin = section.right_margin = Cm(2.5)
        section.top_margin = section.bottom_margin = Cm(2.5)
        self.text_width = section.page_width - section.left_margin - section.right_margin
        normal = self.document.styles["Normal"]
        normal.font.name, normal.font.size = font, Pt(11)
        normal.paragraph_format.space_after = Pt(6)
        if title:
            self.document.core_properties.title = title
            self.document.add_heading(title, 0)

    def heading(self, text: str, level: int = 1) -> Writer:
        """A heading of level 1 to 9. Word's contents and its navigation are made of these."""
        self.document.add_heading(text, level)
        return self

    def text(self, markdown: str) -> Writer:
        """Paragraphs, lists (``-`` or ``1.``) and headings (``#``), with bold, italic and code."""
        paragraph: list[str] = []
        number = None
        for line in [*markdown.splitlines(), ""]:
            heading = re.match(r"(#{1,6})\s+(.*)", line)
            item = re.match(r"\s*(?:[-*]|(\d+)[.)])\s+(.*)", line)
            if (heading or item or not line.strip()) and paragraph:
                self._add_runs(self.document.add_paragraph(), " ".join(paragraph))
                paragraph = []
            if heading:
                self.heading(heading[2], len(heading[1]))
            elif item:
                style = "List Number" if item[1] else "List Bullet"
                added = self.document.add_paragraph(style=style)
                self._add_runs(added, item[2])
                if item[1]:
                    number = self._new_list() if number is None else number
                    self._number(added, number)
            elif line.strip():
                paragraph.append(line.strip())
            if heading or (line.strip() and not item):
                number = None
        return self

    def table(self, rows: Iterable[Sequence[Any]], caption: str = "") -> Writer:
        """The first row is the header, repeated on each page. Numbers stand at the right."""
        rows = fill_up(rows)
        right, columns = find_numbers(rows), len(rows[0])
        if caption:
            before = self.document.add_paragraph(caption, style="Caption")
            before.paragraph_format.keep_with_next = True
        table = self.document.add_table(len(rows), columns, style="Table Grid")
        # table.cell() and row.cells look through the whole table each time: ask once.
        cells = table._cells
        for i, row in enumerate(rows):
            properties = table.rows[i]._tr.get_or_add_trPr()
            properties.append(OxmlElement("w:cantSplit"))
            if i == 0:
                properties.append(OxmlElement("w:tblHeader"))
            for j, value in enumerate(row):
                cell = cells[i * columns + j]
                paragraph = cell.paragraphs[0]
                run = paragraph.add_run("" if value is None else str(value))
                paragraph.paragraph_format.space_after = Pt(2)
                if right[j]:
                    paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT
                if i == 0:
                    run.bold = True
                    self._shade(cell, "E7ECF2")
        self.document.add_paragraph()
        return self

    def picture(self, source: Any, caption: str = "", width: float = 1.0) -> Writer:
        """A PNG or JPEG (path or bytes). ``width`` is the part of the text's width."""
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        elif not hasattr(source, "read"):
            source = str(source)
        paragraph = self.document.add_paragraph()
        paragraph.alignment = WD_ALIGN_PARAGRAPH.CENTER
        paragraph.paragraph_format.keep_with_next = bool(caption)
        shape = paragraph.add_run().add_picture(source, width=int(self.text_width * width))
        shape._inline.docPr.set("descr", caption or "picture")  # for those who cannot see it
        if caption:
            added = self.document.add_paragraph(caption, style="Caption")
            added.alignment = WD_ALIGN_PARAGRAPH.CENTER
        return self

    def figure(self, figure: Any, caption: str = "", width: float = 1.0) -> Writer:
        """A figure of matplotlib."""
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=200)
        return self.picture(data.getvalue(), caption, width)

    def page_break(self) -> Writer:
        self.document.add_page_break()
        return self

    def page_numbers(self) -> Writer:
        """The number of each page, in the middle of its foot."""
        paragraph = self.document.sections[0].footer.paragraphs[0]
        paragraph.alignment = WD_ALIGN_PARAGRAPH.CENTER
        field = OxmlElement("w:fldSimple")
        field.set(qn("w:instr"), "PAGE")
        paragraph._p.append(field)
        return self

    def save(self, path: str | Path) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.document.save(str(path))
        return Path(path)

    @staticmethod
    def _add_runs(paragraph: Any, text: str) -> None:
        end = 0
        for found in INLINE.finditer(text):
            paragraph.add_run(text[end : found.start()])
            bold, italic, code = found.groups()
            run = paragraph.add_run(bold or italic or code)
            run.bold, run.italic = bool(bold) or None, bool(italic) or None
            if code:
                run.font.name = "Consolas"
            end = found.end()
        paragraph.add_run(text[end:])

    def _new_list(self) -> int:
        """A numbering that begins at 1: the style's own goes on through the whole document."""
        style = self.document.styles["List Number"].element.pPr.numPr.numId.val
        numbering = self.document.part.numbering_part.element
        added = numbering.add_num(numbering.num_having_numId(style).abstractNumId.val)
        added.add_lvlOverride(ilvl=0).add_startOverride(1)
        return int(added.numId)

    @staticmethod
    def _number(paragraph: Any, number: int) -> None:
        properties = paragraph._p.get_or_add_pPr().get_or_add_numPr()
        properties.get_or_add_ilvl().val = 0
        properties.get_or_add_numId().val = number

    @staticmethod
    def _shade(cell: Any, colour: str) -> None:
        shading = OxmlElement("w:shd")
        for name, value in (("val", "clear"), ("color", "auto"), ("fill", colour)):
            shading.set(qn(f"w:{name}"), value)
        cell._tc.get_or_add_tcPr().append(shading)


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    text = Path(arguments[0]).read_text(encoding="utf-8")
    print(Writer(*arguments[2:]).text(text).page_numbers().save(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
