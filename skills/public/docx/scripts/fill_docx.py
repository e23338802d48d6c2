"""Fill in a Word document: put values in place of {{names}}, and keep the formats around them.

    from fill_docx import fill
    left = fill("letter.docx", "out.docx", {"customer": "Ada"})    # names that have no value

As a program: python fill_docx.py TEMPLATE.docx OUT.docx NAME=VALUE...
"""

from __future__ import annotations

import re
import sys
from typing import Any, Iterator, Mapping

try:
    import docx
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package python-docx is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

NAME = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")


def fill(template: str, path: str, values: Mapping[str, Any]) -> list[str]:
    """Write ``path``; return the names that have no value, which stay as they are."""
    document = docx.Document(template)
    left = set()
    for paragraph in _paragraphs(document):
        left |= _fill_paragraph(paragraph, values)
    document.save(path)
    return sorted(left)


def _paragraphs(document: Any) -> Iterator[Any]:
    """Those of the body, of tables in tables, and of each section's header and footer."""
    places = [document]
    for section in document.sections:
        for place in (section.header, section.footer):
            if not place.is_linked_to_previous:
                places.append(place)
    while places:
        place = places.pop()
        yield from place.paragraphs
        for table in place.tables:
            places += [cell for row in table.rows for cell in row.cells]


def _fill_paragraph(paragraph: Any, values: Mapping[str, Any]) -> set[str]:
    """Word cuts a text into runs as it likes, also within a name: the first run takes the value."""
    left = set()
    text = "".join(run.text for run in paragraph.runs)
    for found in reversed(list(NAME.finditer(text))):
        if found[1] not in values:
            left.add(found[1])
            continue
        value, start = str(values[found[1]]), 0
        for run in paragraph.runs:
            end = start + len(run.text)
            low, high = max(found.start(), start), min(found.end(), end)
            if low < high:
                new = value if low == found.start() else ""
                run.text = run.text[: low - start] + new + run.text[high - start :]
            start = end
    return left


def main(arguments: list[str]) -> int:
    if len(arguments) < 3 or not all("=" in word for word in arguments[2:]):
        print(__doc__, file=sys.stderr)
        return 2
    values = dict(word.split("=", 1) for word in arguments[2:])
    left = fill(arguments[0], arguments[1], values)
    print(arguments[1])
    if left:
        print("without a value: " + ", ".join(left), file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
