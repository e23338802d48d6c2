"""Read workbooks with openpyxl: their sheets as rows or records, and what is wrong with them.

    from read_xlsx import read_records, read_rows
    records = read_records("in.xlsx", "Sales")      # without a name the first sheet

As a program:

    python read_xlsx.py show FILE.xlsx [SHEET]      sheets, formulas, the first rows
    python read_xlsx.py csv FILE.xlsx OUT.csv [SHEET]
    python read_xlsx.py check FILE.xlsx             errors, and formulas without a value
"""

from __future__ import annotations

import csv
import sys
import zipfile
from typing import Any

try:
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package openpyxl is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

SHOWN = 20


def read_rows(path: str, sheet: str | None = None, formulas: bool = False) -> list[list[Any]]:
    """The cells of a sheet, without empty rows at its end.

    Of a formula the value that a spreadsheet program last saved, or None if none did; the formula
    itself if ``formulas``. Raises ValueError for a sheet that is not there.
    """
    book = load_workbook(path, data_only=not formulas, read_only=True)
    try:
        names = [page.title for page in book.worksheets]
        if sheet is not None and sheet not in names:
            raise ValueError(f"there is no sheet {sheet!r}; there are: {', '.join(names)}")
        page = book[sheet] if sheet else book.worksheets[0]
        page.reset_dimensions()  # some programs save wrong ones
        rows = [list(row) for row in page.iter_rows(values_only=True)]
    finally:
        book.close()
    while rows and all(value is None for value in rows[-1]):
        rows.pop()
    columns = max(map(len, rows), default=0)
    return [row + [None] * (columns - len(row)) for row in rows]


def read_records(path: str, sheet: str | None = None) -> list[dict[str, Any]]:
    """One dict for each row below the first, which has their keys."""
    rows = read_rows(path, sheet)
    header = [str(value) for value in rows[0]] if rows else []
    return [dict(zip(header, row)) for row in rows[1:]]


def check(path: str) -> list[str]:
    """Cells that show an error, and formulas that no program has computed yet."""
    written, computed = load_workbook(path), load_workbook(path, data_only=True)
    found = []
    for page in written.worksheets:
        missing = 0
        for row in page.iter_rows():
            for cell in row:
                value = computed[page.title][cell.coordinate].value
                if (
                    isinstance(value, str)
                    and value.startswith("#")
                    and value.endswith(("!", "?", "A"))
                ):
                    found.append(f"{page.title}!{cell.coordinate} is {value}.")
                missing += cell.data_type == "f" and value is None
        if missing:
            found.append(f"{page.title} has {missing} formulas without a computed value.")
    return found


def show(path: str, only: str | None = None) -> str:
    """Sheets with their sizes, and the first rows of each, formulas as they are."""
    book = load_workbook(path, read_only=True)
    names = [page.title for page in book.worksheets if only in (None, page.title)]
    book.close()
    lines = []
    for name in names:
        rows = read_rows(path, name, formulas=True)
        lines.append(f"# {name}: {len(rows)} rows, {len(rows[0]) if rows else 0} columns")
        lines += ["\t".join("" if v is None else str(v) for v in row) for row in rows[:SHOWN]]
        if len(rows) > SHOWN:
            lines.append(f"... {len(rows) - SHOWN} rows more")
    return "\n".join(lines)


def write_csv(path: str, output: str, sheet: str | None = None) -> None:
    """A sheet's values as a CSV file, in UTF-8."""
    with open(output, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(read_rows(path, sheet))


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "show" and len(rest) in (1, 2):
            print(show(*rest))
        elif command == "csv" and len(rest) in (2, 3):
            write_csv(*rest)
        elif command == "check" and len(rest) == 1:
            print("\n".join(check(*rest)) or "Nothing was found.")
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (OSError, ValueError, zipfile.BadZipFile, InvalidFileException) as error:
        print(f"{rest[0]} cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
