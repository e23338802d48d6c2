"""Skipped tests of a whole run and why, in a few lines: ``python tests/skips.py FILE``.

Each pytest of the run appends to the file that GK_TEST_SKIPS names (``tests/conftest.py``).
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GK_TEST_SKIPS"
MAX_LINES = 20


def append(reasons: Mapping[str, int]) -> None:
    """Add ``reasons`` with their counts to the run's file, if there is one."""
    path = os.environ.get(VARIABLE)
    if path:
        # It exists, and may be another user's: O_CREAT would be refused in a sticky directory.
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with os.fdopen(fd, "w") as file:
            file.write(json.dumps(dict(reasons)) + "\n")


def sum_up(lines: list[str]) -> list[str]:
    """Return at most MAX_LINES lines: the counts by reason, the most frequent first."""
    reasons: Counter[str] = Counter()
    for line in lines:
        reasons.update(json.loads(line))
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:5} x {reason[:100]}" for reason, count in ordered]
    if len(shown) > MAX_LINES:
        left = sum(count for _, count in ordered[MAX_LINES - 1 :])
        shown = [*shown[: MAX_LINES - 1], f"{left:5} x other reasons: see above"]
    return shown


if __name__ == "__main__":
    print("\n".join(sum_up(Path(sys.argv[1]).read_text().splitlines())))
