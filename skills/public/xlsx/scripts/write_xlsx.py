"""Write a workbook with openpyxl from records: formats, formulas, totals, charts.

    from write_xlsx import Book
    Book().sheet("Sales", [{"month": "May", "sum": 1250.5}], total=["sum"]).save("sales.xlsx")

As a program, each CSV file with a header a sheet: python write_xlsx.py OUT.xlsx FILE.csv...
"""

from __future__ import annotations

import csv
import datetime
import re
import sys
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

try:
    from openpyxl import Workbook
    from openpyxl.chart import BarChart, LineChart, PieChart, Reference
    from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
    from openpyxl.utils import get_column_letter
    from openpyxl.worksheet.properties import PageSetupProperties
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package openpyxl is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

CHARTS = {"bars": BarChart, "lines": LineChart, "pie": PieChart}
BOLD = Font(name="Calibri", size=11, bold=True)
HEADER = PatternFill("solid", fgColor="E7ECF2")
NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?")
"""What of a CSV file is a number. 007, and more than 15 digits, are names and stay text."""


class Formula(str):
    """A cell that is computed: ``Formula("=B2*C2")``. A plain text is one also if it begins so."""


class Book:
    """A workbook, sheet by sheet. Methods return the book; ``workbook`` is openpyxl's."""

    def __init__(self) -> None:
        self.workbook = Workbook()
        self.workbook.remove(self.workbook.active)

    def sheet(
        self,
        name: str,
        records: Iterable[Mapping[str, Any]],
        formats: Mapping[str, str] | None = None,
        formulas: Mapping[str, str] | None = None,
        total: Sequence[str] = (),
    ) -> Book:
        """One row for each record, below a header of their keys.

        ``formats`` has a number format for a column (``"0.0%"``). ``formulas`` adds columns:
        ``{"sum": "={price}*{pieces}"}``, where a name in braces is that column's cell of the row.
        ``total`` names the columns to be summed up in a last row.
        """
        records = list(records)
        formats, formulas = dict(formats or {}), dict(formulas or {})
        names = list(dict.fromkeys([*(key for record in records for key in record), *formulas]))
        letters = {key: get_column_letter(i) for i, key in enumerate(names, 1)}
        sheet = self.workbook.create_sheet(name)
        for i, key in enumerate(names, 1):
            cell = self._put(sheet, 1, i, key)
            cell.font, cell.fill = BOLD, HEADER
            cell.alignment = Alignment(wrap_text=True, vertical="top")
        for row, record in enumerate(records, 2):
            places = {key: f"{letter}{row}" for key, letter in letters.items()}
            for i, key in enumerate(names, 1):
                value = record.get(key)
                if key in formulas:
                    value = Formula(formulas[key].format(**places))
                cell = self._put(sheet, row, i, value)
                if key in formats:
                    cell.number_format = formats[key]
        last = len(records) + 1
        sheet.freeze_panes = "A2"
        sheet.page_setup.orientation, sheet.page_setup.fitToHeight = "landscape", 0
        sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
        if names:
            sheet.auto_filter.ref = f"A1:{get_column_letter(len(names))}{last}"
        if total and records:
            self._put(sheet, last + 1, 1, "Total")
            for key in total:
                place = f"{letters[key]}2:{letters[key]}{last}"
                cell = self._put(sheet, last + 1, names.index(key) + 1, Formula(f"=SUM({place})"))
                cell.number_format = formats.get(key, "General")
            for cell in sheet[last + 1]:
                cell.font, cell.border = BOLD, Border(top=Side("thin"))
        self._set_widths(sheet)
        return self

    def chart(
        self,
        sheet: str,
        names: str,
        values: Sequence[str],
        kind: str = "bars",
        title: str = "",
        at: str | None = None,
    ) -> Book:
        """A chart (``bars``, ``lines``, ``pie``) of columns of a sheet, beside them or ``at``."""
        page = self.workbook[sheet]
        header = [cell.value for cell in page[1]]
        last = page.auto_filter.ref.split(":")[1].lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        chart = CHARTS[kind]()
        chart.title, chart.width, chart.height = title or None, 18, 9  # in cm
        for value in values:
            column = header.index(value) + 1
            data = Reference(page, min_col=column, min_row=1, max_row=int(last))
            chart.add_data(data, titles_from_data=True)
        column = header.index(names) + 1
        chart.set_categories(Reference(page, min_col=column, min_row=2, max_row=int(last)))
        if kind != "pie":
            chart.x_axis.delete = chart.y_axis.delete = False  # else some programs hide them
        if len(values) == 1 and kind != "pie":
            chart.legend = None
        page.add_chart(chart, at or f"{get_column_letter(len(header) + 2)}2")
        return self

    def save(self, path: str | Path) -> Path:
        """Raises ValueError for a book without a sheet."""
        if not self.workbook.worksheets:
            raise ValueError("a workbook has at least one sheet")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.workbook.save(path)
        return Path(path)

    @staticmethod
    def _put(sheet: Any, row: int, column: int, value: Any) -> Any:
        """openpyxl takes a text with an equals sign for a formula: here only a Formula is one."""
        if isinstance(value, datetime.datetime) and value.tzinfo is not None:
            value = value.replace(tzinfo=None)  # a workbook knows no time zones
        if hasattr(value, "item"):
            value = value.item()  # a number of numpy's
        if not isinstance(value, str) and str(value) in ("nan", "NaT", "<NA>"):
            value = None  # as numpy and pandas say that there is none
        cell = sheet.cell(row, column)
        if isinstance(value, Formula):
            cell.value = str(value)
        elif isinstance(value, str):
            cell.value, cell.data_type = value, "s"
        else:
            cell.value = value
        return cell

    @staticmethod
    def _set_widths(sheet: Any) -> None:
        """As wide as the longest text, within limits: a file has no automatic width."""
        for column in sheet.columns:
            longest = max(len(str(cell.value)) for cell in column if cell.value is not None)
            formula = any(cell.data_type == "f" for cell in column)
            width = min(max(longest + 2, 8), 14 if formula else 50)
            sheet.column_dimensions[column[0].column_letter].width = width


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """The records of a CSV file with a header; numbers as numbers, empty fields as None."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [
            {key: _read_value(value or "") for key, value in row.items() if key is not None}
            for row in csv.DictReader(file)
        ]


def _read_value(text: str) -> Any:
    found = NUMBER.fullmatch(text)
    if not found:
        return text or None
    return float(text) if found[2] else int(text)


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    book = Book()
    for path in arguments[1:]:
        book.sheet(re.sub(r"[][:*?/\\]", " ", Path(path).stem)[:31], read_csv(path))
    print(book.save(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
