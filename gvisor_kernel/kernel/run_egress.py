"""The socket for the streams of a kernel's run, which its plan's routes serve.

Opens nothing itself: the bridge does, when a program in the sandbox connects first.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial

from gvisor_kernel.bridge import KernelBridge
from gvisor_kernel.bridge.link_streams import OpenEgress
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


def find_opener(sandbox: Sandbox) -> Callable[[], socket.socket]:
    """Return what opens one more socket that the routes of the kernel in ``sandbox`` serve; see
    ``EgressWorker.open``. The socket ends at once if no kernel with routes runs there."""
    grant = Grant("", (), sandbox.log_path.with_name(audit.FILE), is_beside=True)
    return partial(EgressWorker.instance().open, grant, lambda _: None)
