"""The program that the lifeline's shell executes: waits until the owner has ended, then sweeps.

python -m gvisor_kernel.runtimes.state.reaper PID START_TIME
"""

from __future__ import annotations

import sys
import time

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.processes import ProcessId, is_alive, wait_until_gone
from gvisor_kernel.runtimes.state.sweep import sweep_orphans

OWNER_SECONDS = 30.0
"""Seconds to wait for the owner: a large process needs time to end after its pipes are closed."""


def main(pid: int, started: int) -> int:
    """Wait until the owner has ended, then remove what it left. Return 1 if that fails, else 0.

    ``started``: the owner's start time, see ``ProcessId``. ``lifeline`` starts this program.
    """
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
