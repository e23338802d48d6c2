"""Differences of texts, within bounds."""

from __future__ import annotations

import difflib

from gvisor_kernel.changes import diff
from gvisor_kernel.changes.diff import diff_texts


def test_lines_are_numbered_as_in_the_whole_files() -> None:
    old = [f"line {n}" for n in range(100)]
    new = [*old[:50], "inserted", *old[51:]]
    expected = "\n".join(difflib.unified_diff(old, new, "a", "a", lineterm="")) + "\n"
    shown = diff_texts("a", "\n".join(old).encode(), "\n".join(new).encode())
    assert shown == expected


def test_a_missing_file_is_named_as_such() -> None:
    assert diff_texts("a", None, b"x\n").startswith("--- /dev/null\n+++ a\n")
    assert "+++ /dev/null" in diff_texts("a", b"x\n", None)


def test_what_cannot_be_compared_says_why() -> None:
    assert diff_texts("a", b"\xff", b"") == "a: not text\n"
    assert diff_texts("a", b"\0", b"") == "a: not text\n"
    assert "bytes, not compared" in diff_texts("a", b"x" * (diff.MAX_TEXT + 1), b"")
    many = b"x\n" * (diff.MAX_LINES + 1)
    assert "lines, not compared" in diff_texts("a", many, b"y\n")
    long = "\n".join("y" * 400 for _ in range(1000)).encode()
    shown = diff_texts("a", b"", long)
    assert len(shown) < diff.MAX_DIFF + 100
    assert shown.endswith("left out\n")
