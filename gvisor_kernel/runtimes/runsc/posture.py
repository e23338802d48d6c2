"""Checks how a sandbox's processes are isolated, by what the host's kernel reports of them."""

from __future__ import annotations

import os
from collections.abc import Callable

from gvisor_kernel.errors import IsolationError
from gvisor_kernel.host.processes import GOFER_NAME, SANDBOX_NAME, Posture, read_posture

SECCOMP_FILTER = 2
NAMESPACES = ("user", "mnt", "net", "ipc", "uts")


def check_posture(
    find_process: Callable[[str], int | None], stderr_tail: Callable[[], str]
) -> None:
    """Check that the sentry and the gofer run, and are isolated from the host.

    ``find_process(name)`` returns the pid of the sandbox's process of that name.

    :raises IsolationError: when one of them is missing or lacks isolation
    """
    own = read_posture(os.getpid())
    assert own is not None
    for name in (SANDBOX_NAME, GOFER_NAME):
        pid = find_process(name)
        posture = None if pid is None else read_posture(pid)
        if posture is None:
            raise IsolationError(
                f"The sandbox has no process {name}, so gVisor does not run the kernel.",
                "check that `runsc` on PATH is gVisor's: `gvisor-kernel doctor`.",
                stderr_tail(),
            )
        faults = find_faults(posture, own)
        if faults:
            raise IsolationError(
                f"The sandbox's process {name} is not isolated: {', '.join(faults)}.",
                "this runsc ignores flags that it was given; install another release.",
                stderr_tail(),
            )


def find_faults(posture: Posture, own: Posture) -> list[str]:
    """Return which isolation a process of the sandbox lacks, compared with ``own``, one outside."""
    faults = []
    if 0 in posture.uids:
        faults.append("it is root on the host")
    if posture.seccomp != SECCOMP_FILTER:
        faults.append("it has no seccomp filter")
    faults += [
        f"it shares the host's {name} namespace"
        for name in NAMESPACES
        if posture.namespaces[name] == own.namespaces[name]
    ]
    return faults
