"""The unified diff of two contents, as text that can be printed: nothing in it is hidden.

Lines end at ``\\n`` only; every other separator and control character is escaped. Texts come from
a sandbox, so the time is bounded whatever they are: it grows with their size, and the search for
what they have in common ends after STEPS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from gvisor_kernel.shown_text import printable, printable_name

MAX_TEXT = 1024 * 1024
"""Bytes of a text that is compared."""
STEPS = 300_000
"""Steps of the search for the shortest difference: some 700 edits, 0.1 s."""
MAX_DIFF = 256 * 1024
"""Characters of a result."""
MAX_ESCAPED = 8
"""Characters that are named as escaped in a line."""
CONTEXT = 3

Edit = tuple[int, int, int, int]
"""Lines ``[0]:[1]`` of the old text are replaced by ``[2]:[3]`` of the new one."""


@dataclass(frozen=True)
class Diff:
    """The shown text of a change. ``is_whole``: all that it would write is in ``text``."""

    text: str
    is_whole: bool


def diff_texts(path: str, old: bytes | None, new: bytes | None) -> Diff:
    """Return a unified diff, or a remark why there is none. None is a missing file.

    A carriage return at the end of a line is shown, unless all lines of both texts have one: then
    one remark says so. Of a difference that is too long, new lines come before those that they
    replace.
    """
    kind = "added" if old is None else "removed" if new is None else "changed"
    if old == new:
        return remark(path, "The contents are the same.", kind)
    sizes = [len(content) for content in (old, new) if content is not None]
    texts = []
    for content in (old, new):
        try:
            texts.append((content or b"")[: MAX_TEXT + 1].decode())
        except UnicodeDecodeError:
            texts.append("\0")
    words = f"The contents differ ({' → '.join(map(str, sizes))} bytes)"
    if max(sizes) > MAX_TEXT:
        words += f"; more than {MAX_TEXT} bytes are not compared."
        return remark(path, words, kind, is_whole=False)
    if any("\0" in text for text in texts):
        return remark(path, f"{words}, and are not text.", kind, is_whole=False)
    first, second = (_split(text) for text in texts)
    shown = [_make_header(path, kind)]
    if not any(sizes):
        shown.append("\\ The file is empty.\n")
    end = "\n"
    if all(line.endswith("\r\n") for line in (*first, *second)) and any(sizes):
        shown.append("\\ Each line ends with \\r\\n.\n")
        end = "\r\n"
    edits = find_edits(first, second)
    lines, is_whole = _render(_list_hunks(first, second, edits), end)
    if not is_whole:
        lines, _ = _render(_list_hunks(first, second, edits, new_first=True), end)
    return Diff("".join((*shown, *lines)), is_whole)


def remark(path: str, words: str, kind: str, *, is_whole: bool = True) -> Diff:
    """Return a diff that has a sentence in place of lines. ``kind``: of the change."""
    return Diff(f"{_make_header(path, kind)}\\ {printable_name(words)}\n", is_whole)


def _render(lines: Iterable[str], end: str) -> tuple[list[str], bool]:
    """Return lines of a diff as they are shown, and whether these are all of them."""
    shown: list[str] = []
    left = MAX_DIFF
    for line in lines:
        text = line[: left + 1]  # more would not be shown
        if not text.startswith("@"):
            text = _escape(text.removesuffix(end))
        if not line.endswith("\n"):
            text += "\\ No newline at end of file\n"
        left -= len(text)
        if left < 0:
            shown.append(f"\\ More than {MAX_DIFF} characters differ: the rest is left out.\n")
            return shown, False
        shown.append(text)
    return shown, True


def _escape(line: str) -> str:
    """Return a line as it is shown. A remark below says if something is escaped in it, and the
    line's own backslashes are doubled then: a text that looks like an escape is no escape.
    """
    if printable(line) == line:
        return f"{line}\n"
    escaped = [f"U+{ord(char):04X}" for char in sorted(set(line)) if printable(char) != char]
    words = ", ".join(escaped[:MAX_ESCAPED])
    words += f" and {len(escaped) - MAX_ESCAPED} more" if len(escaped) > MAX_ESCAPED else ""
    words += "; backslashes are doubled" if "\\" in line else ""
    doubled = line.replace("\\", "\\\\")
    return f"{printable(doubled)}\n\\ Escaped above: {words}\n"


def find_edits(first: Sequence[str], second: Sequence[str]) -> list[Edit]:
    """Return what differs, in order: the fewest lines, if that is found in STEPS; else one edit,
    from the first to the last line that differs.
    """
    start = _count_equal(first, second)
    end = _count_equal(first[start:][::-1], second[start:][::-1])
    a, b = first[start : len(first) - end], second[start : len(second) - end]
    moves = _search(a, b) if a and b else None
    if moves is None:
        return [(start, start + len(a), start, start + len(b))] if a or b else []
    edits: list[Edit] = []
    for x, y, dx, dy in moves:
        x, y = start + x, start + y
        if edits and edits[-1][1] == x and edits[-1][3] == y:
            edits[-1] = (edits[-1][0], x + dx, edits[-1][2], y + dy)
        else:
            edits.append((x, x + dx, y, y + dy))
    return edits


def _search(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int, int, int]] | None:
    """Return the single lines that are removed (1, 0) or added (0, 1), and where: Myers, "An O(ND)
    Difference Algorithm"; None if that takes more than STEPS.
    """
    numbers: dict[str, int] = {}
    old, new = ([numbers.setdefault(line, len(numbers)) for line in text] for text in (a, b))
    reached, rounds, steps = {1: 0}, [], STEPS
    for edits in range(len(old) + len(new) + 1):
        rounds.append({k: reached[k] for k in range(-edits - 1, edits + 2) if k in reached})
        steps -= 2 * edits + 1
        for k in range(-edits, edits + 1, 2):
            down = k == -edits or (k != edits and reached[k - 1] < reached[k + 1])
            x = begin = reached[k + 1] if down else reached[k - 1] + 1
            y = x - k
            while x < len(old) and y < len(new) and old[x] == new[y]:
                x, y = x + 1, y + 1
            reached[k] = x
            steps -= x - begin
            if x >= len(old) and y >= len(new):
                return _walk_back(rounds, x, y)
            if steps < 0:
                return None
    return None


def _walk_back(rounds: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int, int, int]]:
    moves = []
    for edits in range(len(rounds) - 1, 0, -1):
        reached, k = rounds[edits], x - y
        down = k == -edits or (k != edits and reached[k - 1] < reached[k + 1])
        k += 1 if down else -1
        x, y = reached[k], reached[k] - k
        moves.append((x, y, 0, 1) if down else (x, y, 1, 0))
    return moves[::-1]


def _list_hunks(
    first: Sequence[str], second: Sequence[str], edits: Sequence[Edit], *, new_first: bool = False
) -> Iterator[str]:
    """Yield the lines of a unified diff, with their marks."""
    while edits:
        count = 1
        while count < len(edits) and edits[count][0] - edits[count - 1][1] <= 2 * CONTEXT:
            count += 1
        hunk, edits = edits[:count], edits[count:]
        before = min(CONTEXT, hunk[0][0])
        after = min(CONTEXT, len(first) - hunk[-1][1])
        old = _make_range(hunk[0][0] - before, hunk[-1][1] + after)
        new = _make_range(hunk[0][2] - before, hunk[-1][3] + after)
        yield f"@@ -{old} +{new} @@\n"
        place = hunk[0][0] - before
        for old_start, old_end, new_start, new_end in hunk:
            yield from (f" {first[n]}" for n in range(place, old_start))
            removed = (f"-{first[n]}" for n in range(old_start, old_end))
            added = (f"+{second[n]}" for n in range(new_start, new_end))
            yield from chain(added, removed) if new_first else chain(removed, added)
            place = old_end
        yield from (f" {first[n]}" for n in range(place, place + after))


def _make_header(path: str, kind: str) -> str:
    name = printable_name(path)
    old, new = "/dev/null" if kind == "added" else name, "/dev/null" if kind == "removed" else name
    return f"--- {old}\n+++ {new}\n"


def _make_range(start: int, end: int) -> str:
    if end - start == 1:
        return f"{start + 1}"
    return f"{start + 1 if end > start else start},{end - start}"


def _split(text: str) -> list[str]:
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop().removesuffix("\n")
    return [*lines, last] if last else lines


def _count_equal(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
