"""What every command prints with. Text from a sandbox reaches a terminal through ``printable``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from gvisor_kernel.errors import GvisorKernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

UNFOLDED = 2000
"""Columns of what is no terminal."""


def printable(text: str) -> str:
    """``text`` with everything that could steer a terminal, or reorder what is read, escaped.

    Line ends and tabs stay. Escape sequences, other control characters, bidirectional
    overrides and lone surrogates become ``\\\\x1b``, ``\\\\u202e`` and the like.
    """
    return "".join(
        char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def make_console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup, no highlighting of what others wrote."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_json(document: object) -> None:
    """One JSON document on standard output, for programs: keys are kept once released."""
    print(json.dumps(document, indent=2))


def print_error(error: GvisorKernelError) -> None:
    """A failure on standard error: the fact, what to do, the evidence."""
    print(f"gvisor-kernel: {printable(str(error))}", file=sys.stderr)


def describe_size(size: int) -> str:
    """Bytes for a person: 4.0 GiB, 512 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def describe_age(seconds: float) -> str:
    """A time span for a person: 42 s, 17 min, 5 h, 3 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def print_table(
    left: Sequence[str], right: Sequence[str], last: str, rows: Iterable[Sequence[str]]
) -> None:
    """What a command lists, under its titles; a row has a cell for each.

    ``left`` and ``right``: how the cells of a column stand; only those of ``last`` are folded.
    Cells may be what others wrote. Programs that read lines get one a row, however long.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in left:
        table.add_column(title, no_wrap=True)
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(last, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(printable(cell).replace("\n", "\\n")) for cell in cells))
    console = make_console()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(table)
