"""A server with odd limits or signals: a start works, or says in words what stands in its way."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.host.cgroups import can_bound_memory

from ..world import PROJECT


def start(folder: Path, preexec: Callable[[], object]) -> str:
    """The error of a start in a process that has called ``preexec``; empty if it worked."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.odd_process", str(folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        preexec_fn=preexec,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


def test_start_with_sigchld_ignored_names_the_signal(tmp_path: Path) -> None:
    """What started the server may have ignored it; the default returns no exit status then."""
    error = start(tmp_path, lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert "ignores the signal SIGCHLD" in error
    assert "SIG_DFL" in error


@pytest.mark.skipif(can_bound_memory(), reason="a cgroup bounds memory here, not a file's size")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may raise the limit")
def test_start_below_a_file_size_limit_names_the_limit(tmp_path: Path) -> None:
    limit = 20 * 1024 * 1024
    error = start(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert f"at most {limit} bytes" in error
    assert "ulimit -H -f" in error
