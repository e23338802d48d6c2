"""Take PDFs apart and put them together with pypdf; read their text and data.

    python pages.py info FILE.pdf
    python pages.py text FILE.pdf [PAGES]
    python pages.py merge OUT.pdf FILE.pdf...
    python pages.py split FILE.pdf FOLDER            one file for each page
    python pages.py take FILE.pdf OUT.pdf PAGES      PAGES is such as 1-3,7,9-
    python pages.py rotate FILE.pdf OUT.pdf DEGREES [PAGES]

Pages are counted from 1. The functions of the same names can be imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Iterable

try:
    from pypdf import PdfReader, PdfWriter
    from pypdf.errors import PyPdfError
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package pypdf is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None


def read_range(text: str, count: int) -> list[int]:
    """The pages that ``1-3,7,9-`` means, in a file of ``count`` pages. Raises ValueError."""
    pages = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low = int(first or 1)
        high = int(last or count) if dash else low
        if not 1 <= low <= high <= count:
            raise ValueError(f"there are no pages {part.strip()!r} in a file of {count} pages")
        pages += range(low, high + 1)
    return pages


def info(path: str) -> dict[str, Any]:
    """What can be told about a file without its password: pages, size, title, fields, text."""
    reader = PdfReader(path)
    if reader.is_encrypted:
        return {"encrypted": True}
    width, height = reader.pages[0].mediabox[2:]
    return {
        "pages": len(reader.pages),
        "size in cm": f"{float(width) / 72 * 2.54:.1f} x {float(height) / 72 * 2.54:.1f}",
        "title": str((reader.metadata or {}).get("/Title", "")),
        "fields": len(reader.get_fields() or {}),
        "has text": any(page.extract_text().strip() for page in reader.pages[:5]),
    }


def text(path: str, pages: str = "1-") -> str:
    """The text, a form feed between two pages. A scan has none."""
    reader = PdfReader(path)
    wanted = read_range(pages, len(reader.pages))
    return "\f".join(reader.pages[number - 1].extract_text() for number in wanted)


def merge(output: str, paths: Iterable[str]) -> None:
    """All pages of ``paths`` in this order, with a bookmark for each file."""
    writer = PdfWriter()
    for path in paths:
        writer.append(path, outline_item=Path(path).stem)
    _write(writer, output)


def split(path: str, folder: str) -> list[Path]:
    """Each page as a file of its own, named by its number."""
    reader = PdfReader(path)
    digits = len(str(len(reader.pages)))
    written = []
    for number, page in enumerate(reader.pages, 1):
        writer = PdfWriter()
        writer.add_page(page)
        written.append(Path(folder, f"{Path(path).stem}-{number:0{digits}}.pdf"))
        _write(writer, written[-1])
    return written


def take(path: str, output: str, pages: str) -> None:
    """These pages, in this order."""
    reader, writer = PdfReader(path), PdfWriter()
    for number in read_range(pages, len(reader.pages)):
        writer.add_page(reader.pages[number - 1])
    _write(writer, output)


def rotate(path: str, output: str, degrees: str, pages: str = "1-") -> None:
    """The whole file, some pages turned clockwise by a multiple of 90."""
    writer = PdfWriter(clone_from=path)
    for number in read_range(pages, len(writer.pages)):
        writer.pages[number - 1].rotate(int(degrees))
    _write(writer, output)


def _write(writer: PdfWriter, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer.write(str(path))


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "info" and len(rest) == 1:
            print("\n".join(f"{name}: {value}" for name, value in info(*rest).items()))
        elif command == "text" and len(rest) in (1, 2):
            print(text(*rest))
        elif command == "merge" and len(rest) > 1:
            merge(rest[0], rest[1:])
        elif command == "split" and len(rest) == 2:
            print("\n".join(map(str, split(*rest))))
        elif command == "take" and len(rest) == 3:
            take(*rest)
        elif command == "rotate" and len(rest) in (3, 4):
            rotate(*rest)
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (OSError, ValueError, PyPdfError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
