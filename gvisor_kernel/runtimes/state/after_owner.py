"""Removes what a process has left that was killed, saves its kernels, and keeps their packages.

python -m gvisor_kernel.runtimes.state.after_owner PID START_TIME
"""

from __future__ import annotations

import sys
import time

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.processes import ProcessId, is_alive, wait_until_gone
from gvisor_kernel.runtimes.state.kept_packages import begin_to_keep, wait_until_kept
from gvisor_kernel.runtimes.state.sweep import sweep_orphans

OWNER_SECONDS = 30.0
"""Seconds to wait for the owner: a large process needs time to end after its pipes are closed."""
KEEP_SECONDS = 86400.0
"""Seconds to wait until packages are kept. Each step of that has a limit of its own; whoever does
not wait leaves another such process, which begins again."""


def main(pid: int, started: int) -> int:
    """Wait until the owner has ended, then do it. Return 1 if that fails, else 0.

    ``started``: the owner's start time, see ``ProcessId``. The shell of ``lifeline`` executes this.
    """
    owner = ProcessId(pid, started)
    if is_alive(owner):
        wait_until_gone([pid], time.monotonic() + OWNER_SECONDS)
    try:
        sweep_orphans()
        begin_to_keep()
        wait_until_kept(KEEP_SECONDS)
    except GvisorKernelError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
