"""Markdown: tables, and texts of the code in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"([\\`*_<>\[\]|$&])")


def escape(text: str) -> str:
    """Return a text of the code as one line of Markdown that shows just this text."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return a text as code in a cell of a table; "" stays empty."""
    if not text:
        return ""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table without its empty columns, or "" if it has no rows. Cells are Markdown."""
    filled = [*rows]
    if not filled:
        return ""
    kept = [number for number in range(len(head)) if any(row[number] for row in filled)]
    lines = [" | ".join(row[number] for number in kept) for row in (head, *filled)]
    lines.insert(1, " | ".join("---" for _ in kept))
    return "".join(f"| {line} |\n" for line in lines)
