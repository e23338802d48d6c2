"""Converts a kernel's address and keys to and from the content of a connection file."""

from __future__ import annotations

import secrets
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo

from gvisor_kernel.bridge import Address, KernelIdentity
from gvisor_kernel.link import Channel

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
