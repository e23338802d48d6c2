"""Blocking client for kernels that this process started. Not for servers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any, cast

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.bridge.deaths import End, describe_end, describe_exit
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.link import Channel
from gvisor_kernel.runtimes.hints import ASK_DOCTOR, find_hint

CHANNELS = {
    "shell_port": Channel.SHELL,
    "iopub_port": Channel.IOPUB,
    "stdin_port": Channel.STDIN,
    "control_port": Channel.CONTROL,
    "hb_port": Channel.HB,
}


def new_key() -> bytes:
    """Return a random key for messages between a kernel's clients and the bridge."""
    return secrets.token_hex(32).encode()


def private_connection_info() -> dict[str, Any]:
    """Return connection info for a kernel that only this process uses: the bridge chooses paths."""
    return {"transport": "ipc", "ip": "", "key": new_key().decode()}


def read_address(info: dict[str, Any]) -> Address:
    """Return the address in ``info``, the content of a connection file. Ports may be missing."""
    public, secret = (
        info[name].encode() if info.get(name) else None
        for name in ("curve_publickey", "curve_secretkey")
    )
    ports = {channel: info[name] for name, channel in CHANNELS.items() if name in info}
    return Address(info["transport"], info.get("ip", "127.0.0.1"), ports, public, secret)


def describe_address(address: Address, identity: KernelIdentity) -> KernelConnectionInfo:
    """Return the content of a connection file, with the key as bytes, as Jupyter's managers do."""
    info: dict[str, Any] = {
        "transport": address.transport,
        "ip": address.ip,
        "key": identity.key,
        "signature_scheme": identity.signature_scheme,
    }
    for name, channel in CHANNELS.items():
        info[name] = address.ports[channel]
    if address.curve_publickey is not None and address.curve_secretkey is not None:
        info["curve_publickey"] = address.curve_publickey.decode()
        info["curve_secretkey"] = address.curve_secretkey.decode()
    return cast(KernelConnectionInfo, info)


REPLY_SECONDS = 120.0
"""Seconds that a reply may take: a module to preload may be large."""
POLL_SECONDS = 0.5
"""Seconds between two checks that the kernel is still alive."""


class OwnClient(BlockingKernelClient):
    """Client that can ask ``find_end`` why the kernel has ended: None while it lives."""

    find_end: Callable[[], End | None] = staticmethod(lambda: None)


@contextmanager
def connect(
    address: Address, plan: KernelPlan, find_end: Callable[[], End | None]
) -> Iterator[OwnClient]:
    """Yield a client that is connected to the kernel of ``plan`` at ``address`` meanwhile."""
    client = OwnClient()
    client.find_end = find_end
    client.load_connection_info(describe_address(address, plan.identity))
    client.start_channels(hb=False)
    try:
        yield client
    finally:
        client.stop_channels()


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
                raise make_end_error(end) from None
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"The kernel did not answer within {REPLY_SECONDS:g} s.", ASK_DOCTOR
                ) from None
            continue
        if message["parent_header"].get("msg_id") == message_id:
            content: dict[str, Any] = message["content"]
            return content


def make_end_error(end: End) -> LaunchError:
    """Return the error for a kernel that has ended before it answered."""
    fact = "The kernel ended before it answered"
    if isinstance(end, str) or end.kind not in ("exit", "signal"):
        return LaunchError(f"{fact}. {describe_end(end)}", ASK_DOCTOR)
    # What else the kernel wrote says nothing of this machine.
    lacks_module = "No module named" in end.last_line
    hint = find_hint(end.last_line) if lacks_module else ASK_DOCTOR
    return LaunchError(f"{fact}, {describe_exit(end)}", hint)
