"""A report as a PDF: headings, text, tables, code and pictures, from code or from a notebook.

    from report import Report, from_notebook
    report = Report("Sales in 2026")
    report.heading("Result").text("...").table([["month", "sum"], ["May", 12.5]])
    report.image("/mnt/user-data/outputs/plot.png", "Sales by month")
    report.save("/mnt/user-data/outputs/report.pdf")

As a program: python report.py NOTEBOOK.ipynb OUT.pdf [--code]

Needs nothing but Python's standard library (3.9 or newer), and pdf.py beside this file.
"""

import base64
import datetime
import html
import json
import os
import re
import sys
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pdf import Pdf, Picture, fit, read_picture, text_width

MARGIN = 60
LINE = 1.35
"""The distance of lines, in sizes of their text."""
LINES_OF_OUTPUT = 200
"""Of one output of a notebook; longer ones end with how much is left out."""


class Report:
    """Grows from top to bottom; new pages come by themselves. Methods return the report."""

    def __init__(self, title: str, subtitle: Optional[str] = None) -> None:
        """``subtitle`` is today's date unless it is given; "" is none."""
        self.pdf = Pdf(title=title)
        self._width = self.pdf.width - 2 * MARGIN
        self._new_page()
        self._lines(title, "bold", 20)
        if subtitle is None:
            subtitle = datetime.date.today().isoformat()
        if subtitle:
            self._lines(subtitle, "plain", 10)
        self._y -= 12

    def heading(self, text: str, level: int = 1) -> "Report":
        size = {1: 15, 2: 12.5}.get(level, 11)
        self._need(4 * size)
        self._y -= size * 0.8
        self._lines(text, "bold", size)
        self._y -= 3
        return self

    def text(self, text: str) -> "Report":
        """Paragraphs, parted by empty lines; lines that begin with "- " are a list."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            for item in _items(paragraph):
                if item.startswith("- "):
                    self._lines(item[2:], "plain", 10, indent=14, mark="\u2022")
                else:
                    self._lines(item, "plain", 10)
            self._y -= 6
        return self

    def code(self, text: str) -> "Report":
        """Text as it is, in a grey box; long lines go on in the next."""
        size = 8.5
        room = int((self._width - 12) / (0.6 * size))
        self._y -= 3
        for line in text.expandtabs(4).rstrip("\n").split("\n"):
            for start in range(0, max(len(line), 1), room):
                self._need(size * LINE)
                self._y -= size * LINE
                self.pdf.box(MARGIN, self._y - size * 0.3, self._width, size * LINE, 0.95)
                self.pdf.text(MARGIN + 6, self._y, line[start : start + room], "code", size)
        self._y -= 9
        return self

    def table(self, rows: Iterable[Sequence[Any]], header: bool = True) -> "Report":
        """Rows of values; numbers stand on the right. The header is repeated on each page.

        A DataFrame ``df`` is ``[list(df.columns), *df.values.tolist()]``.
        """
        cells = [[_shown(value) for value in row] for row in rows]
        columns = max((len(row) for row in cells), default=0)
        if not columns:
            return self
        cells = [row + [""] * (columns - len(row)) for row in cells]
        size = 9.0 if columns <= 8 else 7.0
        widths = self._column_widths(cells, header, size)
        body = cells[1:] if header else cells
        right = [
            all(re.fullmatch(r"[-+]?[\d,.]+(e[-+]?\d+)?%?|nan|", row[n]) for row in body)
            for n in range(columns)
        ]
        self._y -= 2
        for number, row in enumerate(cells):
            bold = header and number == 0
            height = self._row_height(row, widths, size, bold)
            if self._need(height) and header and not bold:
                self._row(cells[0], widths, right, size, True)
            self._row(row, widths, right, size, bold)
        self._y -= 12
        return self

    def image(self, picture: Union[str, bytes], caption: str = "", width: float = 1.0) -> "Report":
        """A PNG or JPEG: a path or the bytes; ``width`` as a part of the text's."""
        if isinstance(picture, str):
            with open(picture, "rb") as file:
                picture = file.read()
        return self._image(read_picture(picture), caption, width)

    def figure(self, figure: Any, caption: str = "", width: float = 1.0) -> "Report":
        """A figure of matplotlib."""
        import io

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
        return self.image(buffer.getvalue(), caption, width)

    def save(self, path: str) -> "Report":
        """Write the PDF, with page numbers. Says so if characters could not be shown."""
        for page in range(self.pdf.pages):
            text = "%d / %d" % (page + 1, self.pdf.pages)
            x = self.pdf.width - MARGIN - text_width(text, "plain", 8)
            self.pdf.text(x, MARGIN / 2, text, "plain", 8, page)
        self.pdf.save(path)
        if self.pdf.unknown:
            unknown = "".join(sorted(self.pdf.unknown))[:60]
            print("These characters are shown as ? in the PDF:", unknown, file=sys.stderr)
        return self

    def _new_page(self) -> None:
        self.pdf.add_page()
        self._y = self.pdf.height - MARGIN

    def _need(self, height: float) -> bool:
        """Begin a new page unless there is room for ``height``; whether it did."""
        if self._y - height >= MARGIN or self._y >= self.pdf.height - MARGIN:
            return False
        self._new_page()
        return True

    def _lines(self, text: str, font: str, size: float, indent: float = 0, mark: str = "") -> None:
        for line in _wrap(text, font, size, self._width - indent):
            self._need(size * LINE)
            self._y -= size * LINE
            if mark:
                self.pdf.text(MARGIN + 3, self._y, mark, font, size)
                mark = ""
            self.pdf.text(MARGIN + indent, self._y, line, font, size)

    def _column_widths(self, cells: List[List[str]], header: bool, size: float) -> List[float]:
        wanted = [
            max(
                text_width(row[n], "bold" if header and row is cells[0] else "plain", size)
                for row in cells
            )
            + 10
            for n in range(len(cells[0]))
        ]
        if sum(wanted) <= self._width:
            return wanted
        # Narrow columns keep what they want; the wide ones share what is left.
        widths, left, open_columns = list(wanted), self._width, list(range(len(wanted)))
        for n in sorted(open_columns, key=lambda n: wanted[n]):
            widths[n] = min(wanted[n], left / len(open_columns))
            left -= widths[n]
            open_columns.remove(n)
        return widths

    def _row_height(self, row: List[str], widths: List[float], size: float, bold: bool) -> float:
        font = "bold" if bold else "plain"
        lines = max(len(_wrap(text, font, size, w - 8)) for text, w in zip(row, widths))
        return lines * size * 1.25 + 4

    def _row(
        self, row: List[str], widths: List[float], right: List[bool], size: float, bold: bool
    ) -> None:
        font = "bold" if bold else "plain"
        height = self._row_height(row, widths, size, bold)
        x = float(MARGIN)
        for n, text in enumerate(row):
            y = self._y - size - 1
            for line in _wrap(text, font, size, widths[n] - 8):
                if y < MARGIN / 2 + 10:
                    break  # a row that is longer than a page
                shift = widths[n] - 8 - text_width(line, font, size) if right[n] else 0
                self.pdf.text(x + 4 + shift, y, line, font, size)
                y -= size * 1.25
            x += widths[n]
        self._y -= height
        self.pdf.line(MARGIN, self._y, MARGIN + sum(widths), self._y, 0.3 if bold else 0.8)

    def _image(self, picture: Picture, caption: str, width: float) -> "Report":
        most = self.pdf.height - 2 * MARGIN - 40
        size = fit(picture.width, picture.height, self._width * min(max(width, 0.05), 1), most)
        self._need(size[1] + (24 if caption else 6))
        self._y -= size[1] + 4
        self.pdf.picture(MARGIN, self._y, size[0], size[1], picture)
        if caption:
            self._y -= 4
            self._lines(caption, "plain", 8.5)
        self._y -= 8
        return self


def _items(paragraph: str) -> List[str]:
    """The lines of a paragraph joined, but for the items of a list."""
    items: List[str] = []
    for line in paragraph.split("\n"):
        line = re.sub(r"^\s*[*+-]\s+", "- ", line)
        if line.startswith("- ") or not items:
            items.append(line.strip())
        else:
            items[-1] += " " + line.strip()
    return items


def _wrap(text: str, font: str, size: float, width: float) -> List[str]:
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = line + " " + word if line else word
            if text_width(longer, font, size) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while text_width(word, font, size) > width and len(word) > 1:
                fitting = max(1, int(len(word) * width / text_width(word, font, size)) - 1)
                lines.append(word[:fitting])
                word = word[fitting:]
            line = word
        lines.append(line)
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "%.6g" % value
    return " ".join(str(value).split())


# From a notebook.


def from_notebook(path: str, title: str = "", code: bool = False) -> Report:
    """A report of a notebook's text and outputs, as they were saved; with its code if asked for."""
    with open(path, encoding="utf-8") as file:
        notebook = json.load(file)
    cells = notebook.get("cells", [])
    name = os.path.splitext(os.path.basename(path))[0]
    first = _joined(cells[0].get("source")) if cells else ""
    match = re.match(r"#\s+(.+)", first)
    report = Report(title or (match[1].strip() if match else name))
    for number, cell in enumerate(cells):
        source = _joined(cell.get("source"))
        if cell.get("cell_type") == "markdown":
            if number == 0 and match and not title:
                source = source[match.end() :]
            _markdown(report, source)
        elif cell.get("cell_type") == "code":
            if code and source.strip():
                report.code(source)
            for output in cell.get("outputs", []):
                _output(report, output)
    return report


def _joined(source: Any) -> str:
    return "".join(source) if isinstance(source, list) else str(source or "")


def _markdown(report: Report, source: str) -> None:
    """Headings, paragraphs, lists, tables and fenced code; the rest of Markdown as plain text."""
    paragraph: List[str] = []
    table: List[List[str]] = []
    fence: Optional[List[str]] = None

    def flush() -> None:
        if table:
            report.table(table)
        if "".join(paragraph).strip():
            report.text(_plain("\n".join(paragraph)))
        paragraph.clear()
        table.clear()

    for line in source.split("\n"):
        heading = re.match(r"(#{1,6})\s+(.+)", line)
        if line.lstrip().startswith("```"):
            if fence is None:
                flush()
                fence = []
            else:
                report.code("\n".join(fence))
                fence = None
        elif fence is not None:
            fence.append(line)
        elif heading:
            flush()
            report.heading(_plain(heading[2]), len(heading[1]))
        elif line.lstrip().startswith("|"):
            if paragraph:
                flush()
            if not re.fullmatch(r"[\s|:-]+", line):
                table.append([_plain(cell.strip()) for cell in line.strip().strip("|").split("|")])
        else:
            if table:
                flush()
            paragraph.append(line)
    if fence:
        report.code("\n".join(fence))
    flush()


def _plain(text: str) -> str:
    """Text without Markdown's marks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(\*\*|__|`)(.+?)\1", r"\2", text)
    return html.unescape(text)


def _output(report: Report, output: Dict[str, Any]) -> None:
    kind = output.get("output_type")
    if kind == "stream":
        report.code(_cut(_joined(output.get("text"))))
    elif kind == "error":
        report.code("%s: %s" % (output.get("ename"), output.get("evalue")))
    elif kind in ("execute_result", "display_data"):
        data = output.get("data", {})
        for type_ in ("image/png", "image/jpeg"):
            if type_ in data:
                try:
                    report.image(base64.b64decode(_joined(data[type_])))
                    return
                except (ValueError, KeyError):
                    break  # a picture of another kind: its text stands for it
        report.code(_cut(_joined(data.get("text/plain"))))


def _cut(text: str) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).rstrip("\n").split("\n")
    if len(lines) > LINES_OF_OUTPUT:
        lines[LINES_OF_OUTPUT:] = ["... %d lines more" % (len(lines) - LINES_OF_OUTPUT)]
    return "\n".join(lines)


def main(arguments: List[str]) -> int:
    code = "--code" in arguments
    arguments = [word for word in arguments if word != "--code"]
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    from_notebook(arguments[0], code=code).save(arguments[1])
    print("Wrote", arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
