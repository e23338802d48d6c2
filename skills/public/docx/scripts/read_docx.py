"""Read a Word document with python-docx: its text and tables in their order, as Markdown.

    from read_docx import read_markdown, read_tables
    print(read_markdown("in.docx"))

As a program: python read_docx.py FILE.docx
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any, Iterator

try:
    import docx
    from docx.opc.exceptions import PackageNotFoundError
    from docx.table import Table
    from docx.text.paragraph import Paragraph
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package python-docx is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None


def read_markdown(path: str | Path) -> str:
    """Headings, paragraphs, lists and tables of the body; no headers, footers, comments."""
    parts = []
    for block in docx.Document(str(path)).iter_inner_content():
        lines = list(_table_lines(block) if isinstance(block, Table) else _lines(block))
        if lines:
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def read_tables(path: str | Path) -> list[list[list[str]]]:
    """All tables of the body, each as rows of texts. A merged cell is there once for each part."""
    return [_rows(table) for table in docx.Document(str(path)).tables]


def _rows(table: Table) -> list[list[str]]:
    return [[cell.text.strip() for cell in row.cells] for row in table.rows]


def _lines(paragraph: Paragraph) -> Iterator[str]:
    text, style = paragraph.text.strip(), str(paragraph.style.name if paragraph.style else "")
    if not text:
        return
    if style == "Title":
        yield f"# {text}"
    elif style.startswith("Heading ") and style[8:].isdigit():
        yield f"{'#' * (int(style[8:]) + 1)} {text}"
    elif style.startswith("List Number"):
        yield f"1. {text}"
    elif style.startswith("List"):
        yield f"- {text}"
    else:
        yield text


def _table_lines(table: Any) -> Iterator[str]:
    for i, row in enumerate(_rows(table)):
        yield "| " + " | ".join(text.replace("\n", " ").replace("|", "\\|") for text in row) + " |"
        if i == 0:
            yield "|" + "---|" * len(row)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(read_markdown(arguments[0]))
    except (OSError, ValueError, zipfile.BadZipFile, PackageNotFoundError) as error:
        print(f"{arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
