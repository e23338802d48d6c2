"""The socket for the streams of a kernel's run, which its plan's routes serve.

Opens nothing itself: the bridge does, when a program in the sandbox connects first.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from gvisor_kernel.bridge import KernelBridge
from gvisor_kernel.bridge.egress import OpenEgress
from gvisor_kernel.egress import audit
from gvisor_kernel.egress.process import EgressWorker, Grant
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.runtimes.base import Sandbox


def make_egress(
    kernel: KernelBridge,
    plan: KernelPlan,
    sandbox: Sandbox,
    in_worker: Callable[..., Awaitable[socket.socket]],
) -> OpenEgress | None:
    """Return what opens a socket for the streams of a run by ``plan``; None without routes.

    ``in_worker``: calls a function that blocks in a worker. Called on the bridge's loop.
    """
    if not plan.routes:
        return None
    loop = asyncio.get_running_loop()

    def write_log(line: str) -> None:
        loop.call_soon_threadsafe(kernel.note_egress, line)

    def show_refused(text: str) -> None:
        loop.call_soon_threadsafe(kernel.show_refused, text)

    record = sandbox.log_path.with_name(audit.FILE)
    grant = Grant(plan.identity.name, plan.routes, record, plan.door, show_refused)

    async def open_egress() -> socket.socket:
        return await in_worker(EgressWorker.instance().open, grant, write_log)

    return open_egress


def open_beside(sandbox: Sandbox) -> socket.socket:
    """Return one more socket that the routes of the kernel in ``sandbox`` serve. Blocks.

    It ends at once if no kernel with routes runs there.

    :raises LaunchError: when the process for routes cannot be started
    """
    record = sandbox.log_path.with_name(audit.FILE)
    return EgressWorker.instance().open(Grant("", (), record, is_beside=True), lambda _: None)
