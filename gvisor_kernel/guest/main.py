"""Where PID 1 begins: make the working directory, say hello, serve the link, end everything."""

from __future__ import annotations

import os
import platform
import sys

import gvisor_kernel
from gvisor_kernel.guest import linux, process
from gvisor_kernel.guest.supervisor import HostGone, Supervisor
from gvisor_kernel.link import Connection, Hello
from gvisor_kernel.link.state import Role

UPLOADS = "/mnt/user-data/uploads"
WORKSPACE = "/workspace"
SCRATCH = "/run/gvisor-kernel/workspace"
"""A tmpfs of the disk limit's size: what is written to /workspace goes here."""


def mount_workspace() -> None:
    """Show the uploads in /workspace, copy-on-write."""
    upper, work = f"{SCRATCH}/upper", f"{SCRATCH}/work"
    os.makedirs(upper, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    options = f"lowerdir={UPLOADS},upperdir={upper},workdir={work}"
    linux.mount("overlay", WORKSPACE, "overlay", options)


def hello() -> Hello:
    """Who this is, for the host's log."""
    system = os.uname()
    return Hello(
        facts=(
            ("release", gvisor_kernel.__version__),
            ("python", platform.python_version()),
            ("kernel", f"{system.sysname} {system.release} {system.version}"),
        )
    )


def main() -> None:
    """Run as PID 1 of a sandbox, the link on stdin and stdout. Does not return."""
    status = 0
    try:
        mount_workspace()
        Supervisor(Connection(Role.GUEST, hello()), link_in=0, link_out=1).run()
    except HostGone as reason:
        print(f"The sandbox ends: {reason}.", file=sys.stderr)
    except Exception as error:  # last words: the host shows stderr when a sandbox ends
        print(f"The sandbox ends: {type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    finally:
        process.kill_everything()
        os._exit(status)
