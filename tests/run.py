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


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", *arguments]
    workers = os.environ.get("TEST_WORKERS") or str((os.cpu_count() or 1) + 2)
    parallel = [*pytest, "--part", "beside", "-n", workers, "--durations", "15"]
    status = subprocess.run(parallel, check=False).returncode
    if status == FAILED and os.environ.get("GK_TEST_AGAIN") == "1":
        print("==> Running the failed tests once more, by themselves", flush=True)
        # pytest leaves out files without failures, and then misses single tests of them by name.
        options = [word for word in pytest if not word.startswith("tests/")]
        again = [*options, "--part", "beside", "--last-failed", "--last-failed-no-failures", "none"]
        status = subprocess.run(again, check=False).returncode
        if status == PASSED:
            print("==> They passed. A test that needs a second try must be mended", flush=True)
    tests = find_alone(arguments)
    if not tests:
        return status
    print("==> Running the tests that need the whole machine", flush=True)
    options = [word for word in pytest if not word.startswith("tests/")]
    alone = [*options, *tests, "--part", "alone", "--durations", "15"]
    other = subprocess.run(alone, check=False).returncode
    return status if status not in (PASSED, NONE) or other == NONE else other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
