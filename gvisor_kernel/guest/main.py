"""Where PID 1 begins: make the working directory, say hello, serve the link, end everything."""

from __future__ import annotations

import os
import platform
import sys

import gvisor_kernel
from gvisor_kernel.guest import identity, linux, process
from gvisor_kernel.guest.forked_kernel import import_ahead
from gvisor_kernel.guest.supervisor import HostGone, Supervisor
from gvisor_kernel.guest.workspace import mount_workspace, own_scratch
from gvisor_kernel.link import Connection, Hello
from gvisor_kernel.link.state import Role

DMESG = 200
"""Bytes of the kernel's log that are told: gVisor's begins by saying whose it is."""


def hello() -> Hello:
    """Who this is, for the host's log."""
    system = os.uname()
    return Hello(
        facts=(
            ("release", gvisor_kernel.__version__),
            ("python", platform.python_version()),
            ("kernel", f"{system.sysname} {system.release} {system.version}"),
            ("dmesg", linux.read_kernel_log(DMESG)),
        )
    )


def main(*ahead: str) -> None:
    """Run as PID 1 of a sandbox, the link on stdin and stdout. Does not return.

    ``ahead``: modules that a kernel will need, imported while nobody waits for them.
    """
    status = 0
    try:
        identity.learn()
        own_scratch()
        mount_workspace()
        supervisor = Supervisor(Connection(Role.GUEST, hello()), link_in=0, link_out=1)
        supervisor.greet()
        supervisor.imported = import_ahead(ahead)
        identity.be_init()
        supervisor.run()
    except HostGone as reason:
        print(f"The sandbox ends: {reason}.", file=sys.stderr)
    except Exception as error:  # last words: the host shows stderr when a sandbox ends
        print(f"The sandbox ends: {type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    finally:
        process.kill_everything()
        os._exit(status)
