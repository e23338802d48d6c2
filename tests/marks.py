"""Marks beside code: a comment that says why a line may do what a rule forbids elsewhere.

A mark stands at the end of a line, or in the comment above it. One at the margin holds for the
whole module, where the rule says so.
"""

from __future__ import annotations

from pathlib import Path


def find_marks(path: Path, mark: str) -> dict[int, int]:
    """Return for each line with a mark of this kind, such as ``# by path: ``, the line it is for.

    A mark at the margin is for line 0: the module.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found = {}
    for number, line in enumerate(lines, 1):
        if line.startswith(mark):
            found[number] = 0
        elif line.lstrip().startswith(mark):
            below = number
            while lines[below].lstrip().startswith("#"):
                below += 1
            found[number] = below + 1
        elif mark in line:
            found[number] = number
    return found
