"""The address of a kernel's client sockets, and for ipc the names in the file system that it means.

Binds sockets; reads and writes none of them. The directory of a process is made by ``endpoints``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import zmq

from gvisor_kernel.link import Channel

# by path: below the state directory, whose parents only this user can change

MAX_SOCKET_PATH = 107
"""Bytes in the path of a Unix socket (sun_path without its NUL)."""


@dataclass(frozen=True)
class Address:
    """The address that clients connect to, as in a connection file. Bind chooses ports of 0."""

    transport: str
    ip: str
    ports: dict[Channel, int] = field(default_factory=dict)
    curve_publickey: bytes | None = None
    curve_secretkey: bytes | None = None


class SocketNames:
    """The addresses of one kernel's sockets, and the names by which its clients know them.

    For ipc the sockets are in a directory of their own, and the names are symbolic links: a manager
    unlinks the names at each restart, but the sockets and their connections must stay.
    """

    def __init__(self, address: Address, base: Path) -> None:
        """``base``: the process's private directory, in which that of an ipc address is made."""
        self.address = address
        """The requested address until ``bind``, then the one that clients connect to."""
        self._base = base
        self._directory: Path | None = None

    def bind(self, sockets: Mapping[Channel, zmq.Socket[bytes]]) -> None:
        """Bind ``sockets``, and create their names.

        :raises OSError, ZMQError: when that fails; ``remove`` removes what was made
        """
        ip, ports = self.address.ip, dict(self.address.ports)
        if self.address.transport == "tcp":
            for channel, socket in sockets.items():
                wanted = ports.get(channel, 0)
                socket.bind(f"tcp://{ip}:{wanted or '*'}")
                endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
                assert isinstance(endpoint, bytes)
                ports[channel] = int(endpoint.rstrip(b"\0").rpartition(b":")[2])
        else:
            self._directory = self._base / secrets.token_hex(4)
            self._directory.mkdir(mode=0o700)
            ip = ip or f"{self._directory}/k"
            if len(f"{self._directory}/k-99".encode()) > MAX_SOCKET_PATH:
                raise OSError(f"the path {self._directory} is too long for a Unix socket")
            for channel, socket in sockets.items():
                ports[channel] = ports.get(channel) or int(channel)
                socket.bind(f"ipc://{self._directory}/l-{int(channel)}")
        self.address = replace(self.address, ip=ip, ports=ports)
        self.expose()

    def expose(self) -> None:
        """Create the names of ipc sockets, where they are missing.

        :raises OSError: when they cannot be created
        """
        if self._directory is None:
            return
        for channel, name in self._find_names():
            target = self._directory / f"l-{int(channel)}"
            if name.is_symlink():
                if name.readlink() == target:
                    continue
                name.unlink()  # left by an earlier kernel, whose process was killed
            name.symlink_to(target)

    def remove(self) -> None:
        """Remove the names and the directory of ipc sockets. Never raises."""
        if self._directory is None:
            return
        for _, name in self._find_names():
            with suppress(OSError):
                if name.readlink().parent == self._directory:
                    name.unlink()
        with suppress(OSError):
            for name in self._directory.iterdir():
                name.unlink(missing_ok=True)
            self._directory.rmdir()

    def _find_names(self) -> list[tuple[Channel, Path]]:
        ip, ports = self.address.ip, self.address.ports
        return [(channel, Path(f"{ip}-{port}")) for channel, port in ports.items()]
