"""Blocking client for kernels that this process started. Not for servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from gvisor_kernel.bridge import Address
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.kernel.connection_info import describe_address
from gvisor_kernel.kernel.plan import KernelPlan

STEP_SECONDS = 120.0
"""How long an answer may take: a module to preload may be large."""


LOOK_SECONDS = 0.5
"""How often to look whether it can come at all."""
HINT = "start one in a notebook, and see what it says: gvisor-kernel logs ID"


class OwnClient(BlockingKernelClient):
    """``lives``: whether there is still a kernel that may answer."""

    lives: Callable[[], bool] = staticmethod(lambda: True)


def connect(
    address: Address, plan: KernelPlan, lives: Callable[[], bool] = OwnClient.lives
) -> OwnClient:
    """A client of the kernel of ``plan`` at ``address``; whoever calls this stops its channels."""
    client = OwnClient()
    client.lives = lives
    client.load_connection_info(describe_address(address, plan.identity))
    client.start_channels(hb=False)
    return client


def wait_for_reply(client: OwnClient, message_id: str) -> dict[str, Any]:
    """The content of the reply to a request on shell. Raises LaunchError."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        lived = client.lives()
        try:
            message = client.get_shell_msg(timeout=LOOK_SECONDS)
        except Empty:
            if not lived:
                raise LaunchError("The kernel ended before it answered.", HINT) from None
            if time.monotonic() > deadline:
                raise LaunchError(f"The kernel did not answer within {STEP_SECONDS:g} s.") from None
            continue
        if message["parent_header"].get("msg_id") == message_id:
            content: dict[str, Any] = message["content"]
            return content
