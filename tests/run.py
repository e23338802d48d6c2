"""Run tests in parallel, then those that need the whole machine: ``python -m tests.run``.

A test that failed in parallel runs once more by itself. Waits are scaled (``tests/patience.py``),
so this should not happen; the output says when it did. Arguments go to pytest. ``TEST_WORKERS`` is
the number of processes; the default is one more than there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys

PASSED, FAILED, NONE = 0, 1, 5
"""Exit statuses of pytest: all tests passed, some failed, none were selected."""


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", *arguments]
    workers = os.environ.get("TEST_WORKERS") or str((os.cpu_count() or 1) + 1)
    beside = [*pytest, "--part", "beside", "-n", workers, "--durations", "15"]
    status = subprocess.run(beside, check=False).returncode
    if status == FAILED:
        print("==> Running the failed tests once more, one at a time", flush=True)
        again = [*pytest, "--part", "beside", "--last-failed", "--last-failed-no-failures", "none"]
        status = subprocess.run(again, check=False).returncode
        if status == PASSED:
            print(
                "==> They passed now. Fix these tests: a test must not need a second try",
                flush=True,
            )
    print("==> Running the tests that need the whole machine", flush=True)
    alone = [*pytest, "--part", "alone", "--durations", "15"]
    other = subprocess.run(alone, check=False).returncode
    return status if status not in (PASSED, NONE) or other == NONE else other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
