"""Functions that commands print with."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.shown_text import printable, printable_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

UNFOLDED = 2000
"""Columns of a table when standard output is no terminal: each row is one line."""
FOLDED = "↪"
"""Begins what belongs to the line above."""
MAX_CUT_WIDTH = 100
"""Columns of a table with a cut column when standard output is no terminal."""


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged: no markup, no highlighting, no emoji codes."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_json(document: object) -> None:
    """Print a JSON document for programs. Released keys are not renamed or removed."""
    print(json.dumps(document, indent=2))


def print_error(error: GvisorKernelError) -> None:
    """Print an error to standard error: the fact, the hint, the evidence."""
    print(f"gvisor-kernel: {describe_error(error)}", file=sys.stderr)


def describe_error(error: GvisorKernelError) -> str:
    """Return an error for a terminal. Fact and hint have a line each, whatever names are in them;
    the lines of the evidence are indented, so that none passes for another one."""
    lines = [printable_name(error.fact)]
    if error.hint:
        lines.append(f"What to do: {printable_name(error.hint)}")
    lines += [f"  {printable(line)}" for line in error.detail.split("\n") if line]
    return "\n".join(lines)


def ask(question: str) -> str | None:
    """Return what a person answers, in lower case; None at the end of the input (Ctrl-D).

    Not by ``input``: a Ctrl-C between its question and its call of read() does not end that.
    """
    print(question, end="", flush=True)
    line = sys.stdin.readline()  # no timeout: a person answers, or presses Ctrl-C
    return line.strip().lower() if line else None


def describe_age(seconds: float) -> str:
    """Describe a time span in seconds: 42 s, 17 min, 5 h, 3 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def fold_line(line: str, width: int) -> str:
    """Return a line with line ends where a terminal of ``width`` columns would fold it.

    What follows such a line end begins with FOLDED and the mark of a difference that the line
    begins with: no text of a stranger stands at the beginning of a line. ``line``: escaped, without
    line ends. Characters beyond ASCII, which some terminals draw wide, count as two columns, and a
    tab as eight.
    """
    if len(line) <= width and line.isascii() and "\t" not in line:
        return line
    begin = FOLDED + (line[0] if line.startswith(("+", "-", "\\")) else " ")
    parts: list[str] = []
    column = 0
    for char in line:
        columns = 8 if char == "\t" else 1 if char.isascii() else 2
        if column and column + columns > width:
            parts.append(f"\n{begin}")
            column = 3
        parts.append(char)
        column += columns
    return "".join(parts)


def print_table(
    left: Sequence[str],
    right: Sequence[str],
    last: str,
    rows: Iterable[Sequence[str]],
    *,
    cut: bool = False,
) -> None:
    """Print ``rows`` under their titles; a row has a cell for each title. Cells are escaped here.

    ``left`` and ``right``: titles of left-aligned and of right-aligned columns. ``last``: the title
    of the last column; only its cells are folded. To a pipe or file, each row is one line.
    ``cut``: cells of the last column are cut instead of folded, also to a pipe or file.
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
        texts = [Text(printable_name(cell)) for cell in cells]
        if cut:
            texts[-1].no_wrap, texts[-1].overflow = True, "ellipsis"
        table.add_row(*texts)
    console = make_console()
    if not console.is_terminal:
        console.width = MAX_CUT_WIDTH if cut else UNFOLDED
    console.print(table)
