"""Blocking client for kernels that this process started. Not for servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from gvisor_kernel.bridge import Address
from gvisor_kernel.bridge.deaths import UNEXPECTED
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.kernel.connection_info import describe_address
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.runtimes.hints import ASK_DOCTOR, find_hint

REPLY_SECONDS = 120.0
"""How long a reply may take: a module to preload may be large."""
POLL_SECONDS = 0.5
"""How often to check that the kernel is still alive."""


class OwnClient(BlockingKernelClient):
    """Client that can ask ``find_end`` why the kernel has ended: None while it lives."""

    find_end: Callable[[], str | None] = staticmethod(lambda: None)


def connect(address: Address, plan: KernelPlan, find_end: Callable[[], str | None]) -> OwnClient:
    """Connect a client to the kernel of ``plan`` at ``address``; the caller stops its channels."""
    client = OwnClient()
    client.find_end = find_end
    client.load_connection_info(describe_address(address, plan.identity))
    client.start_channels(hb=False)
    return client


def wait_for_reply(client: OwnClient, message_id: str) -> dict[str, Any]:
    """Return the content of the reply to a request on shell. Blocks up to REPLY_SECONDS.

    :raises LaunchError: when the kernel ends or does not reply in time
    """
    deadline = time.monotonic() + REPLY_SECONDS
    while True:
        end = client.find_end()
        try:
            message = client.get_shell_msg(timeout=POLL_SECONDS)
        except Empty:
            if end is not None:
                # What else the kernel wrote says nothing of this machine.
                hint = find_hint(end) if "No module named" in end else ASK_DOCTOR
                how = end.removeprefix(UNEXPECTED)
                link = ". " if how == end else ", "
                raise LaunchError(f"The kernel ended before it answered{link}{how}", hint) from None
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"The kernel did not answer within {REPLY_SECONDS:g} s.", ASK_DOCTOR
                ) from None
            continue
        if message["parent_header"].get("msg_id") == message_id:
            content: dict[str, Any] = message["content"]
            return content
