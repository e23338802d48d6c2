"""Undoes the start of a kernel that has failed, or that nobody waits for any more.

On the bridge's loop. What blocks is done in workers.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

from gvisor_kernel.bridge import KernelBridge
from gvisor_kernel.bridge.linked_sandbox import close_sandbox
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.kernel.restore import Restored
from gvisor_kernel.runtimes.base import Sandbox


async def give_up(kernel: KernelBridge, restored: Restored, error: BaseException) -> None:
    """End a restored sandbox after ``error``, and discard its snapshot if that is to blame."""
    await kernel.end_sandbox()
    await close_sandbox(restored.sandbox)  # in case the bridge has not taken it over
    if not isinstance(error, SandboxError):
        return  # not the snapshot's fault: for example, the start was cancelled
    with suppress(RuntimeError):  # this process is exiting
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, restored.discard, str(error))


async def close_started(starting: asyncio.Future[Any]) -> None:
    """Close what ``starting`` has started, once that is known: a sandbox, or a connection."""
    with suppress(Exception):  # if it fails, it has started nothing
        started = await starting
        sandbox = started.sandbox if isinstance(started, Restored) else started
        if isinstance(sandbox, Sandbox):
            await close_sandbox(sandbox)
        elif isinstance(sandbox, socket.socket):
            sandbox.close()
