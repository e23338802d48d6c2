"""An apply, and an undo, that is killed at any of its steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..sweeps import needs_all


@pytest.mark.parametrize("what", ["apply", "undo"])
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=needs_all)])
def test_a_killed_process_leaves_each_file_old_or_new(what: str, step: int, tmp_path: Path) -> None:
    options = [what, str(tmp_path / "shown"), str(step)]
    program = [sys.executable, "-m", "tests.changes.killed", *options]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100  # calls before which it was killed
