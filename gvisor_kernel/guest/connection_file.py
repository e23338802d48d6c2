"""The connection file that a kernel reads inside its sandbox. Needs no pyzmq."""

from __future__ import annotations

import json
import os
import shutil
from typing import Dict

from gvisor_kernel.link.frames import DATA_CHANNELS, Channel

DIRECTORY = "/run/gvisor-kernel/kernel"


def socket_prefix(run: int) -> str:
    """What, with ``-N`` for channel N, is the path of a socket of kernel number ``run``."""
    return f"{DIRECTORY}/{run}/s"


def write_connection_file(run: int, key: str, scheme: str) -> str:
    """Make a fresh directory for kernel number ``run``; returns its connection file's path."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    directory = f"{DIRECTORY}/{run}"
    os.makedirs(directory, mode=0o700)
    path = f"{directory}/connection.json"
    info: Dict[str, object] = {
        "transport": "ipc",
        "ip": socket_prefix(run),
        "key": key,
        "signature_scheme": scheme,
        "kernel_name": "",
    }
    for number in DATA_CHANNELS:
        info[f"{Channel(number).name.lower()}_port"] = int(number)
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(info, file)
    return path
