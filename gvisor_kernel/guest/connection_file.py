"""The connection file that a kernel reads inside its sandbox: its addresses, and its place in argv.

Does not need pyzmq.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from typing import Union

from gvisor_kernel.guest.identity import as_kernel
from gvisor_kernel.link.frames import KERNEL_CHANNELS, Channel

DIRECTORY = "/run/gvisor-kernel/kernel"
LOOPBACK = "127.0.0.1"
FILE_PLACEHOLDER = "{connection_file}"
"""Placeholder in the argv of a START: the path of the kernel's connection file."""
TCP_FILE_PLACEHOLDER = "{tcp_connection_file}"
"""Placeholder for the path of a connection file with TCP ports of the sandbox's loopback, for
kernels that cannot use Unix sockets."""

SocketAddress = Union[str, tuple[str, int]]
"""The path of a Unix socket, or IP address and port."""


def socket_prefix(run: int) -> str:
    """Return the common prefix of the socket paths of kernel number ``run``.

    ``-N`` after it is the path for channel number N.
    """
    return f"{DIRECTORY}/{run}/s"


def unix_addresses(run: int) -> dict[Channel, SocketAddress]:
    """Return where kernel number ``run`` listens if its connection file names Unix sockets."""
    prefix = socket_prefix(run)
    return {Channel(number): f"{prefix}-{int(number)}" for number in KERNEL_CHANNELS}


def prepare_connection(
    argv: list[str], run: int, key: str, scheme: str
) -> tuple[list[str], dict[Channel, SocketAddress]]:
    """Write the connection file for kernel number ``run``, which owns it.

    Returns ``argv`` with the path in place of the placeholders, and where the kernel is to listen.

    :raises OSError: when it cannot be written, or no port is free
    """
    tcp = any(TCP_FILE_PLACEHOLDER in word for word in argv)
    addresses = free_ports() if tcp else unix_addresses(run)
    with as_kernel():
        path = write_connection_file(run, addresses, key, scheme)
    filled = [
        word.replace(TCP_FILE_PLACEHOLDER, path).replace(FILE_PLACEHOLDER, path) for word in argv
    ]
    return filled, addresses


def free_ports() -> dict[Channel, SocketAddress]:
    """Return free loopback ports. No other process of the sandbox runs that could take them."""
    sockets = {Channel(number): socket.socket() for number in KERNEL_CHANNELS}
    try:
        for bound in sockets.values():
            bound.bind((LOOPBACK, 0))
        return {channel: bound.getsockname() for channel, bound in sockets.items()}
    finally:
        for bound in sockets.values():
            bound.close()


def write_connection_file(
    run: int, addresses: dict[Channel, SocketAddress], key: str, scheme: str
) -> str:
    """Write a connection file for kernel number ``run`` in a new directory. Return its path."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    directory = f"{DIRECTORY}/{run}"
    os.makedirs(directory, mode=0o700)
    path = f"{directory}/connection.json"
    tcp = isinstance(addresses[Channel.SHELL], tuple)
    info: dict[str, object] = {
        "transport": "tcp" if tcp else "ipc",
        "ip": LOOPBACK if tcp else socket_prefix(run),
        "key": key,
        "signature_scheme": scheme,
        "kernel_name": "",
    }
    for channel, address in addresses.items():
        port = address[1] if isinstance(address, tuple) else int(channel)
        info[f"{channel.name.lower()}_port"] = port
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(info, file)
    return path
