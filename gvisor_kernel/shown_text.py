"""Escapes text of strangers for a terminal, a log, or a page that shows it as text.

Standard library only. Nothing else lives here: who shows a text decides how much of it.
"""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0000-\U000e0fff]"
)
"""Printable characters of Unicode that nobody sees, such as fillers and variation selectors; not
U+FE0E and U+FE0F, which say how an emoji looks."""


def printable(text: str) -> str:
    """Escape everything in ``text`` that could control a terminal or hide from a reader.

    Line ends and tabs stay. Escape sequences, other control characters and line separators,
    bidirectional overrides, invisible characters and lone surrogates become ``\\\\x1b``,
    ``\\\\u202e`` and so on. Takes time in proportion to the text.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _is_shown(char) else _escape(char) for char in text)


def printable_name(name: str) -> str:
    """Escape a name, such as that of a file, so that it stays in its line: see ``printable``.

    Also escapes line ends and tabs. Every name that may come from a sandbox is printed by this.
    """
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def _is_shown(char: str) -> bool:
    return char in "\n\t" or (char.isprintable() and not _UNSEEN.match(char))


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def describe_size(size: int) -> str:
    """Return a number of bytes with a unit: ``4 GiB``, ``1.5 GiB``, ``300 MiB``, ``17 B``."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
