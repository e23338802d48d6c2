"""The entry point of PID 1: mount the workspace, send HELLO, serve the link, end everything."""

from __future__ import annotations

import os
import platform
import sys

import gvisor_kernel
from gvisor_kernel.guest import identity, linux, process
from gvisor_kernel.guest.forked_kernel import import_ahead
from gvisor_kernel.guest.supervisor import HostGone, Supervisor
from gvisor_kernel.guest.workspace import give_scratch_to_kernel, mount_workspace
from gvisor_kernel.link import Connection, Hello
from gvisor_kernel.link.state import Role

DMESG_SIZE = 200
"""Bytes of the kernel's log in the HELLO. The log of gVisor begins with its name."""


def hello() -> Hello:
    """Create the HELLO with facts about this sandbox for the host's log."""
    system = os.uname()
    return Hello(
        facts=(
            ("release", gvisor_kernel.__version__),
            ("python", platform.python_version()),
            ("kernel", f"{system.sysname} {system.release} {system.version}"),
            ("dmesg", linux.read_kernel_log(DMESG_SIZE)),
        )
    )


def main(*ahead: str) -> None:
    """Run as PID 1 of a sandbox, with the link on stdin and stdout. Does not return.

    ``ahead``: modules that a kernel will need, imported before the first kernel is started.
    """
    status = 0
    try:
        identity.learn_kernel_id()
        give_scratch_to_kernel()
        mount_workspace()
        supervisor = Supervisor(Connection(Role.GUEST, hello()), link_in=0, link_out=1)
        supervisor.send_hello()
        supervisor.imported = import_ahead(ahead)
        identity.become_init()
        supervisor.run()
    except HostGone as reason:
        print(f"The sandbox ends: {reason}.", file=sys.stderr)
    except Exception as error:  # the host shows stderr when a sandbox ends
        print(f"The sandbox ends: {type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    finally:
        process.kill_everything()
        os._exit(status)
