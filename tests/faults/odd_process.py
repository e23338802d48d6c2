"""Starts a sandbox in a process with odd limits or signals, and prints the error that it gets.

    python -m tests.faults.odd_process FOLDER

An empty line means that the sandbox started.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gvisor_kernel.config.settings import SandboxSpec
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.base import LaunchRequest


def main(folder: Path) -> None:
    request = LaunchRequest("gvisor-python", "kernel", folder, sys.executable, {})
    try:
        get_runtime("runsc").start(SandboxSpec(), request).close()
    except GvisorKernelError as error:
        print(" ".join(str(error).split()))
    else:
        print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
