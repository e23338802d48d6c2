"""Read slides with python-pptx: their texts, tables, numbers of charts and notes, as Markdown.

    from read_pptx import read_markdown
    print(read_markdown("in.pptx"))

As a program: python read_pptx.py FILE.pptx [--check]

With --check it tells instead what sticks out of a slide, is empty, or has no title.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any, Iterator

try:
    from pptx import Presentation
    from pptx.exc import PackageNotFoundError
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package python-pptx is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None


def read_markdown(path: str | Path) -> str:
    """All slides in their order; of a picture there is its description."""
    lines = []
    for number, slide in enumerate(Presentation(str(path)).slides, 1):
        title = slide.shapes.title
        lines.append(f"## {number}. {title.text_frame.text if title is not None else ''}\n")
        for shape in _walk(slide.shapes):
            if title is None or shape.shape_id != title.shape_id:
                lines += _lines(shape)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            lines.append(f"\nNotes: {slide.notes_slide.notes_text_frame.text}")
        lines.append("")
    return "\n".join(lines)


def check(path: str | Path) -> list[str]:
    """What a look at the slides would find, in one sentence each."""
    presentation, found = Presentation(str(path)), []
    for number, slide in enumerate(presentation.slides, 1):
        title = slide.shapes.title
        if title is None or not title.text_frame.text.strip():
            found.append(f"Slide {number} has no title.")
        for shape in slide.shapes:
            if shape.is_placeholder and shape.has_text_frame and not shape.text_frame.text.strip():
                found.append(f"Slide {number}: {shape.name!r} is empty.")
            if None in (shape.left, shape.top, shape.width, shape.height):
                continue  # where its layout has it
            right, bottom = shape.left + shape.width, shape.top + shape.height
            outside = right > presentation.slide_width or bottom > presentation.slide_height
            if outside or shape.left < 0 or shape.top < 0:
                found.append(f"Slide {number}: {shape.name!r} sticks out.")
    return found


def _walk(shapes: Any) -> Iterator[Any]:
    """The shapes, and those within groups."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _walk(shape.shapes)
        else:
            yield shape


def _lines(shape: Any) -> Iterator[str]:
    if shape.has_text_frame:
        for paragraph in shape.text_frame.paragraphs:
            if paragraph.text.strip():
                yield "  " * paragraph.level + f"- {paragraph.text.strip()}"
    elif getattr(shape, "has_table", False):
        for row in shape.table.rows:
            yield "| " + " | ".join(cell.text.replace("\n", " ") for cell in row.cells) + " |"
    elif getattr(shape, "has_chart", False):
        for plot in shape.chart.plots:
            names = [str(name) for name in plot.categories]
            for series in plot.series:
                values = ", ".join(f"{name} {value}" for name, value in zip(names, series.values))
                yield f"- Chart, {series.name}: {values}"
    elif hasattr(shape, "image"):
        yield f"- Picture: {shape._element.nvPicPr.cNvPr.get('descr', '') or shape.name}"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if not arguments[1:]:
            print(read_markdown(arguments[0]))
            return 0
        found = check(arguments[0])
    except (OSError, ValueError, zipfile.BadZipFile, PackageNotFoundError) as error:
        print(f"{arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 1
    print("\n".join(found) or "Nothing was found.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
