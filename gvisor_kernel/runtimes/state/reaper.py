"""What the lifeline's shell becomes: a program that waits for an owner's end, and sweeps.

python -m gvisor_kernel.runtimes.state.reaper PID START_TIME
"""

from __future__ import annotations

import sys
import time

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.processes import ProcessId, is_alive, wait_until_gone
from gvisor_kernel.runtimes.state.sweep import sweep_orphans

OWNER_SECONDS = 30.0
"""A large process takes a while to die after its pipes have ended."""


def main(pid: int, started: int) -> int:
    owner = ProcessId(pid, started)
    if is_alive(owner):
        wait_until_gone([pid], time.monotonic() + OWNER_SECONDS)
    try:
        sweep_orphans()
    except GvisorKernelError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
