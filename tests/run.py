"""Run tests in parallel, then those that need the whole machine: ``python -m tests.run``.

Arguments go to pytest; ``TEST_WORKERS`` sets the number of processes, by default two more than
there are cores: tests of nodes, engines and servers mostly wait. With ``GK_TEST_AGAIN=1``, as in
continuous integration, tests that fail in the parallel part run once more by themselves. No test
should need that: the output says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ALONE = "pytest.mark.alone"
"""Text of the files that have tests for the second part: pytest need not read all others again."""
PASSED, FAILED, NONE = 0, 1, 5
"""pytest's exit statuses: all tests passed, some failed, none was selected."""


def find_alone(arguments: list[str]) -> list[str]:
    """Return the tests among ``arguments``, or of all, whose files have some that run alone."""
    root = TESTS.parent
    chosen = [word for word in arguments if word.startswith("tests/")]
    if not chosen:
        chosen = [str(path.relative_to(root)) for path in sorted(TESTS.rglob("test_*.py"))]
    return [word for word in chosen if ALONE in (root / word.partition("::")[0]).read_text()]


def run(part: str, options: list[str], tests: list[str]) -> int:
    """Run the tests of ``part``, and those that failed again if that is wanted; return the status.

    ``tests``: names of files or tests; empty is all.
    """
    first = [*options, *tests, "--part", part, "--durations", "15"]
    if part == "beside":
        first += ["-n", os.environ.get("TEST_WORKERS") or str((os.cpu_count() or 1) + 2)]
    status = subprocess.run(first, check=False).returncode
    if status == FAILED and os.environ.get("GK_TEST_AGAIN") == "1":
        print("==> Running the failed tests once more, by themselves", flush=True)
        # Without names: pytest leaves out files without failures, and then misses their tests.
        again = [*options, "--part", part, "--last-failed", "--last-failed-no-failures", "none"]
        status = subprocess.run(again, check=False).returncode
        if status == PASSED:
            print("==> They passed. A test that needs a second try must be mended", flush=True)
    return status


def main(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("tests/")]
    options = [sys.executable, "-m", "pytest", *words]
    chosen = [word for word in arguments if word.startswith("tests/")]
    status = run("beside", options, chosen)
    tests = find_alone(arguments)
    if not tests:
        return status
    print("==> Running the tests that need the whole machine", flush=True)
    other = run("alone", options, tests)
    return status if status not in (PASSED, NONE) or other == NONE else other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
