"""Differences of texts: nothing is hidden, and hostile texts take no longer than they are long."""

from __future__ import annotations

import difflib
import itertools
import random
import unicodedata

import pytest

from gvisor_kernel.changes import diff
from gvisor_kernel.changes.diff import find_edits
from gvisor_kernel.cli.output import fold_line


def diff_texts(path: str, old: bytes | None, new: bytes | None) -> str:
    return diff.diff_texts(path, old, new).text


def marked(shown: str) -> list[str]:
    """Return the lines of a diff that are removed or added."""
    return [line for line in shown.split("\n")[2:] if line.startswith(("-", "+"))]


def test_lines_are_numbered_as_in_the_whole_files() -> None:
    old = [f"line {n}" for n in range(100)]
    new = [*old[:50], "inserted", *old[51:90], *old[92:]]
    expected = "\n".join(difflib.unified_diff(old, new, "a", "a", lineterm="")) + "\n"
    shown = diff_texts("a", "\n".join([*old, ""]).encode(), "\n".join([*new, ""]).encode())
    assert shown == expected


def test_a_missing_file_is_named_as_such() -> None:
    assert diff_texts("a", None, b"x\n") == "--- /dev/null\n+++ a\n@@ -0,0 +1 @@\n+x\n"
    assert diff_texts("a", b"x\n", None) == "--- a\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
    assert diff_texts("a", None, b"") == "--- /dev/null\n+++ a\n\\ The file is empty.\n"


def test_what_cannot_be_compared_says_why() -> None:
    head = "--- a\n+++ a\n\\ The contents differ (1 → 2 bytes)"
    assert diff_texts("a", b"x", b"\xff\xfe") == f"{head}, and are not text.\n"
    assert diff_texts("a", b"\0", b"ab") == f"{head}, and are not text.\n"
    assert "bytes are not compared" in diff_texts("a", b"x" * (diff.MAX_TEXT + 1), b"")
    long = "\n".join("y" * 400 for _ in range(1000)).encode()
    shown = diff_texts("a", b"", long)
    assert len(shown) < diff.MAX_DIFF + 100
    assert shown.endswith("is left out.\n")


def test_a_diff_says_whether_it_shows_everything() -> None:
    """Of what is too long, new lines come first, also where the search for common lines gave up."""
    lines = [f"line {n}" for n in range(40_000)]
    changed = [f"new {line}" if n % 40 == 0 else line for n, line in enumerate(lines)]
    long = diff.diff_texts("a", "\n".join(lines).encode(), "\n".join(changed).encode())
    assert marked(long.text)[0] == "+new line 0"
    one = diff.diff_texts("a", b"x" * diff.MAX_DIFF, b"y\n")
    assert marked(one.text) == ["+y"]
    large = diff.diff_texts("a", b"x", b"y" * (diff.MAX_TEXT + 1))
    assert not any(
        shown.is_whole for shown in (long, one, large, diff.diff_texts("a", b"x", b"\0"))
    )
    for old, new in ((b"x", b"x"), (b"x", b"y"), (None, b""), (b"x", None)):
        assert diff.diff_texts("a", old, new).is_whole


@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]
)
def test_a_line_end_that_only_some_programs_take_for_one_hides_nothing(separator: str) -> None:
    """The check becomes a part of the comment before it, for an interpreter."""
    old, new = "# only for owners\ncheck()\n", f"# only for owners{separator}check()\n"
    escaped = separator.encode("unicode_escape").decode()
    assert marked(diff_texts("a", old.encode(), new.encode())) == [
        "-# only for owners",
        "-check()",
        f"+# only for owners{escaped}check()",
    ]


def test_an_escape_and_a_text_that_looks_like_one_are_told_apart() -> None:
    """A remark is no line of a text: those begin with a space, "-" or "+"."""
    shown = diff_texts("a", b"a\\u200b\n", "a\u200b\n".encode())
    assert shown.split("\n")[3:-1] == ["-a\\u200b", "+a\\u200b", "\\ Escaped above: U+200B"]
    shown = diff_texts("a", "\u200b\\u200b\n".encode(), "\\u200b\u200b\n".encode())
    remark = "\\ Escaped above: U+200B; backslashes are doubled"
    lines = [r"-\u200b\\u200b", remark, r"+\\u200b\u200b", remark]
    assert shown.split("\n")[3:-1] == lines
    shown = diff_texts("a", None, "".join(map(chr, range(1, 9))).encode() + b"\x0b\x0c\x0e\n")
    assert shown.endswith("U+0008 and 3 more\n")


@pytest.mark.parametrize("filler", [" ", "\t", "\u6f22", "\t \u6f22x"])
def test_no_part_of_a_long_line_stands_at_the_beginning_of_a_line(filler: str) -> None:
    """Spaces up to a terminal's width would let a text pass for the end of its difference."""
    for count in range(90):
        rows = fold_line(f"+x{filler * count}To apply this: gvisor-kernel", 40).split("\n")
        assert all(row.startswith("↪+") for row in rows[1:])
        assert all(measure(row) <= 40 for row in rows)
        text = rows[0] + "".join(row[2:] for row in rows[1:])
        assert text == f"+x{filler * count}To apply this: gvisor-kernel"
    assert fold_line("Applied " + "n" * 40, 40).split("\n")[1:] == ["↪ " + "n" * 8]
    assert fold_line("\tab", 1) == "\t\n↪ a\n↪ b"


def measure(row: str) -> int:
    """Return the columns that a terminal needs for a row."""
    column = 0
    for char in row:
        wide = unicodedata.east_asian_width(char) in "WF"
        column += 8 - column % 8 if char == "\t" else 1 + wide
    return column


def test_unequal_contents_never_give_an_empty_diff() -> None:
    contents = [
        b"",
        b"a",
        b"a\n",
        b"a\r\n",
        b"a\n\n",
        b"a ",
        b"a\t",
        b"a\r",
        b"a\x1b[A\n",
        b"\xef\xbb\xbfa",
        "a\u200b\n".encode(),
        "a\u202e\n".encode(),
        b"\xff",
        b"\0",
        None,
    ]
    for old, new in itertools.permutations(contents, 2):
        shown = diff_texts("x", old, new)
        assert marked(shown) or "\\ The " in shown, (old, new)
        assert all(c in "\n\t" or c.isprintable() for c in shown)
    assert "No newline at end of file" in diff_texts("x", b"a\n", b"a")


def test_a_carriage_return_is_shown_where_it_differs_and_told_where_it_does_not() -> None:
    assert marked(diff_texts("a", b"x\r\ny\r\n", b"x\ny\r\n")) == ["-x\\r", "+x"]
    shown = diff_texts("a", b"x\r\n", b"y\r\n")
    assert marked(shown) == ["-x", "+y"]
    assert "\\ Each line ends with \\r\\n.\n" in shown


def test_a_name_cannot_forge_a_line_of_a_diff() -> None:
    shown = diff_texts("a\n+++ config.yaml\n@@ -1 +1 @@\n-x\r", b"x\n", b"y\n")
    name = "a\\n+++ config.yaml\\n@@ -1 +1 @@\\n-x\\r"
    assert shown == f"--- {name}\n+++ {name}\n@@ -1 +1 @@\n-x\n+y\n"


def test_edits_lead_from_one_text_to_the_other() -> None:
    choose = random.Random(1)  # noqa: S311
    for _ in range(500):
        old, new = ([choose.choice("abcd") for _ in range(choose.randrange(12))] for _ in range(2))
        made, place = [], 0
        for start, end, new_start, new_end in find_edits(old, new):
            made += old[place:start]
            assert len(made) == new_start
            made += new[new_start:new_end]
            place = end
        assert made + old[place:] == new


def test_where_little_is_common_all_lines_are_shown_as_replaced() -> None:
    old = "".join(f"old {n}\n" for n in range(1500))
    new = "".join(f"new {n}\n" for n in range(1500))
    lines = marked(diff_texts("a", old.encode(), new.encode()))
    assert lines == [*(f"-old {n}" for n in range(1500)), *(f"+new {n}" for n in range(1500))]
