"""An apply, and an undo, that is killed, or has an error of the disk, at any of its steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..sweeps import needs_all


def run(what: str, fault: str, step: int, place: Path) -> int:
    """Return the number of the first call that there is none of."""
    options = [what, fault, str(place / "shown"), str(step)]
    program = [sys.executable, "-m", "tests.changes.killed", *options]
    done = subprocess.run(program, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


few_or_all = pytest.mark.parametrize("step", [13, pytest.param(1, marks=needs_all)])


@pytest.mark.parametrize("what", ["apply", "undo"])
@few_or_all
def test_a_killed_process_leaves_each_file_old_or_new(what: str, step: int, tmp_path: Path) -> None:
    assert run(what, "KILL", step, tmp_path) > 100  # calls before which it was killed


@pytest.mark.parametrize("what", ["apply", "undo"])
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "EDQUOT", "EROFS"])
@few_or_all
def test_a_disk_that_fails_at_any_call_leaves_each_file_old_or_new(
    what: str, fault: str, step: int, tmp_path: Path
) -> None:
    if step != 1 and fault in ("EDQUOT", "EROFS"):
        step *= 3
    run(what, fault, step, tmp_path)
