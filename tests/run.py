"""Runs tests beside each other, then those that need the machine alone: ``-m tests.run``.

What failed beside others runs once more by itself. Waits are as long as the machine needs
(``tests/patience.py``), so that is to happen to none; it is told of at the end. Arguments go to
pytest; ``TEST_WORKERS`` says how many processes, else there is one more than there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys

PASSED, FAILED, NONE = 0, 1, 5
"""pytest's exit status: tests ran and passed, or some failed; there were none."""


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", *arguments]
    workers = os.environ.get("TEST_WORKERS") or str((os.cpu_count() or 1) + 1)
    beside = [*pytest, "--part", "beside", "-n", workers, "--durations", "15"]
    status = subprocess.run(beside, check=False).returncode
    if status == FAILED:
        print("==> What failed beside others runs once more, by itself", flush=True)
        again = [*pytest, "--part", "beside", "--last-failed", "--last-failed-no-failures", "none"]
        status = subprocess.run(again, check=False).returncode
        if status == PASSED:
            print("==> It passed. A test that needs a second try is to be mended", flush=True)
    print("==> Those that need the machine for themselves", flush=True)
    alone = [*pytest, "--part", "alone", "--durations", "15"]
    other = subprocess.run(alone, check=False).returncode
    return status if status not in (PASSED, NONE) or other == NONE else other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
