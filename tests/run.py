"""Runs tests in several processes, then what failed there once more by itself: ``-m tests.run``.

Beside each other, tests of sandboxes get so little of few cores that now and then one runs out of
time. It is told at the end of the first run, and what is wrong fails in the second. Arguments go
to pytest; ``TEST_WORKERS`` says how many processes, else there is one more than there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys

FAILED = 1
"""pytest's exit status: tests ran, and some failed."""


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", *arguments]
    workers = os.environ.get("TEST_WORKERS") or str((os.cpu_count() or 1) + 1)
    beside = [*pytest, "-n", workers, "--durations", "15"]
    status = subprocess.run(beside, check=False).returncode
    if status == FAILED:
        print("==> What failed beside others runs once more, by itself", flush=True)
        alone = [*pytest, "--last-failed", "--last-failed-no-failures", "none"]
        status = subprocess.run(alone, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
