"""The difference of two texts, within bounds. A hostile text makes difflib slow, not endless."""

from __future__ import annotations

import difflib
import re

MAX_TEXT = 1024 * 1024
"""Bytes of a text that is compared."""
MAX_LINES = 2000
"""Lines between the first and the last difference: the time grows with the square of them."""
MAX_DIFF = 256 * 1024
"""Characters of a result."""
CONTEXT = 3
_HUNK = re.compile(r"@@ -(\d+)((?:,\d+)?) \+(\d+)((?:,\d+)?) @@")


def diff_texts(path: str, old: bytes | None, new: bytes | None) -> str:
    """Return a unified diff, or one line that says why there is none. None is a missing file.

    Control characters in names and lines are left as they are: whoever shows it cleans it.
    """
    texts = []
    for content in (old, new):
        if content is not None and len(content) > MAX_TEXT:
            return f"{path}: more than {MAX_TEXT} bytes, not compared\n"
        try:
            texts.append((content or b"").decode())
        except UnicodeDecodeError:
            return f"{path}: not text\n"
        if "\0" in texts[-1]:
            return f"{path}: not text\n"
    first, second = (text.splitlines() for text in texts)
    start = _count_equal(first, second)
    end = _count_equal(first[start:][::-1], second[start:][::-1])
    skipped = max(start - CONTEXT, 0)
    parts = [lines[skipped : len(lines) - max(end - CONTEXT, 0)] for lines in (first, second)]
    if max(map(len, parts)) > MAX_LINES:
        return f"{path}: differs in more than {MAX_LINES} lines, not compared\n"
    before = "/dev/null" if old is None else path
    after = "/dev/null" if new is None else path
    shown: list[str] = []
    size = 0
    for line in difflib.unified_diff(parts[0], parts[1], before, after, lineterm="", n=CONTEXT):
        size += len(line) + 1
        if size > MAX_DIFF:
            shown.append("… more is left out")
            break
        hunk = _HUNK.fullmatch(line)
        shown.append(line if hunk is None else _move(hunk, skipped))
    return "".join(f"{line}\n" for line in shown)


def _count_equal(first: list[str], second: list[str]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _move(hunk: re.Match[str], lines: int) -> str:
    old, new = int(hunk[1]) + lines, int(hunk[3]) + lines
    return f"@@ -{old}{hunk[2]} +{new}{hunk[4]} @@"
