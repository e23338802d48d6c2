"""A process that owns a pod and does nothing else, for tests that kill it.

    python -m tests.kubernetes.owner FOLDER [WAY]

Prints the sandbox's directory once its kernel has written a file, and waits. ``WAY``: as in
``tests/world.py``; without it the pod is one of the tests' own cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ..jupyter.helpers import execute, running_kernel
from ..world import PROJECT, WAYS
from .conftest import SETTINGS


def run_owner(folder: Path, way: str = "") -> tuple[subprocess.Popen[str], Path]:
    """Start such a process; return it and its sandbox's directory."""
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.kubernetes.owner", str(folder), way],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(folder.parent)},
    )
    assert owner.stdout is not None
    directory = Path(owner.stdout.readline().strip())
    assert directory.is_dir()
    return owner, directory


def kill_owner(owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.communicate(timeout=60)


def main(folder: str, way: str = "") -> None:
    settings = WAYS[way] if way else SETTINGS
    with running_kernel(settings=settings, start={"cwd": folder}) as (manager, client):
        assert execute(client, "open('/mnt/user-data/outputs/kept', 'w').write('x')").status == "ok"
        print(manager.provisioner._kernel.sandbox.directory, flush=True)  # type: ignore[union-attr]
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
