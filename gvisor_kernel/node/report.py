"""A node's report when it is asked: whether it can run sandboxes, and what it has removed."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
from gvisor_kernel.runtimes.state.sweep import sweep_orphans


def check() -> dict[str, Any]:
    """Return what decides whether this node can run sandboxes."""
    try:
        runsc = find_runsc()
        found = {"runsc": runsc.version, "error": ""}
    except GvisorKernelError as error:
        found = {"runsc": "", "error": str(error)}
    return {
        "node": socket.gethostname(),
        "uid": os.geteuid(),
        "sh": bool(shutil.which("sh")),
        **found,
    }


def sweep() -> dict[str, Any]:
    """Remove what dead helpers of this user have left on this node."""
    from gvisor_kernel.node.files import sweep_copies

    try:
        sweep_copies()
        return {"node": socket.gethostname(), "removed": sweep_orphans("runsc"), "error": ""}
    except (GvisorKernelError, OSError) as error:
        return {"node": socket.gethostname(), "removed": [], "error": str(error)}
