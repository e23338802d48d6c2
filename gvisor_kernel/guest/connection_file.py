"""The connection file that a kernel reads inside its sandbox. Needs no pyzmq."""

from __future__ import annotations

import json
import os
import shutil
import socket
from typing import Dict, Tuple, Union

from gvisor_kernel.link.frames import DATA_CHANNELS, Channel

DIRECTORY = "/run/gvisor-kernel/kernel"
LOOPBACK = "127.0.0.1"
FILE_WORD = "{connection_file}"
"""In a START's argv: stands for the path of the kernel's connection file."""
TCP_FILE_WORD = "{tcp_connection_file}"
"""Likewise, of one that names ports of the sandbox's own loopback, for kernels without Unix
sockets."""

SocketAddress = Union[str, Tuple[str, int]]
"""The path of a Unix socket, or address and port."""


def socket_prefix(run: int) -> str:
    """What, with ``-N`` for channel N, is the path of a socket of kernel number ``run``."""
    return f"{DIRECTORY}/{run}/s"


def unix_addresses(run: int) -> Dict[Channel, SocketAddress]:
    """Where kernel number ``run`` listens, if it is told to by Unix sockets."""
    prefix = socket_prefix(run)
    return {Channel(number): f"{prefix}-{int(number)}" for number in DATA_CHANNELS}


def free_ports() -> Dict[Channel, SocketAddress]:
    """Ports of the loopback that are free now. Nobody else is in the sandbox to take them."""
    sockets = {Channel(number): socket.socket() for number in DATA_CHANNELS}
    try:
        for bound in sockets.values():
            bound.bind((LOOPBACK, 0))
        return {channel: bound.getsockname() for channel, bound in sockets.items()}
    finally:
        for bound in sockets.values():
            bound.close()


def write_connection_file(
    run: int, addresses: Dict[Channel, SocketAddress], key: str, scheme: str
) -> str:
    """Make a fresh directory for kernel number ``run``; returns its connection file's path."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    directory = f"{DIRECTORY}/{run}"
    os.makedirs(directory, mode=0o700)
    path = f"{directory}/connection.json"
    tcp = isinstance(addresses[Channel.SHELL], tuple)
    info: Dict[str, object] = {
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
