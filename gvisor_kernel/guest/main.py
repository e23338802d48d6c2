"""The entry point of PID 1: mount the workspace, send HELLO, serve the link, end everything."""

from __future__ import annotations

import os
import platform
import select
import sys
from collections.abc import Sequence

import gvisor_kernel
from gvisor_kernel.guest import identity, interpreter, linux, process
from gvisor_kernel.guest.forked_kernel import import_ahead
from gvisor_kernel.guest.host_link import CarriedLink, HostGone, describe_network
from gvisor_kernel.guest.supervisor import Supervisor
from gvisor_kernel.guest.workspace import give_scratch_to_kernel, mount_workspace
from gvisor_kernel.link import Connection, Hello
from gvisor_kernel.link.state import Role

DMESG_SIZE = 200
"""Bytes of the kernel's log in the HELLO. The log of gVisor begins with its name."""


def hello(*more: tuple[str, str]) -> Hello:
    """Create the HELLO with facts about this sandbox for the host's log, and ``more`` facts."""
    system = os.uname()
    return Hello(
        facts=(
            ("release", gvisor_kernel.__version__),
            ("python", platform.python_version()),
            ("kernel", f"{system.sysname} {system.release} {system.version}"),
            ("dmesg", linux.read_kernel_log(DMESG_SIZE)),
            *more,
        )
    )


def main(*ahead: str) -> None:
    """Run as PID 1 of a sandbox, with the link on stdin and stdout. Does not return.

    ``ahead``: modules that a kernel will need, imported before the first kernel is started.
    """
    serve(ahead, None, 0)


def serve_pod(ahead: Sequence[str], secret: bytes, linger: float) -> None:
    """Do the same in a pod, whose stdio may be attached to again and again; see ``pod``.

    ``linger``: how many seconds the outputs can still be fetched after the host has gone.
    """
    os.set_blocking(1, False)
    serve(ahead, CarriedLink(secret, 0, 1), linger)


def serve(ahead: Sequence[str], carried: CarriedLink | None, linger: float) -> None:
    """Serve the link until the host is gone, then end everything. Does not return."""
    status = 0
    try:
        interpreter.prepare()
        identity.learn_kernel_id()
        give_scratch_to_kernel()
        mount_workspace()
        more = (("network", describe_network()),) if carried is not None else ()
        connection = Connection(Role.GUEST, hello(*more))
        supervisor = Supervisor(connection, link_in=0, link_out=1, carried=carried)
        supervisor.send_hello()
        supervisor.imported = import_ahead(ahead)
        identity.become_init()
        supervisor.run()
    except HostGone as reason:
        print(f"The sandbox ends: {reason}.", file=sys.stderr)
        if linger:
            process.kill_everything()
            select.select([], [], [], linger)
    except Exception as error:  # the host shows stderr when a sandbox ends
        print(f"The sandbox ends: {type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    finally:
        process.kill_everything()
        os._exit(status)
