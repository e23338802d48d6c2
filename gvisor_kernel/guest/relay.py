"""The kernel's five ZMQ sockets, seen from PID 1. No link, no process: messages in, messages out.

Shell and stdin share one identity: a kernel addresses its ``input_request`` to the sender of the
``execute_request``. Nothing here blocks, and nothing that a kernel has sent is dropped: the
supervisor stops a kernel that is too far ahead.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from typing import Deque, Dict, Iterator, List, Optional, Sequence, Tuple

from gvisor_kernel.guest.connection_file import SocketAddress
from gvisor_kernel.guest.identity import as_kernel
from gvisor_kernel.guest.zmtp import ZmtpConnection, ZmtpError
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import Part

SOCKET_TYPES = {
    Channel.SHELL: "DEALER",
    Channel.IOPUB: "SUB",
    Channel.STDIN: "DEALER",
    Channel.CONTROL: "DEALER",
    Channel.HB: "DEALER",
}
READ_SIZE = 256 * 1024
CONNECT_MS = 20
"""How often to look whether a kernel listens that did not yet."""
CONNECT_SECONDS = 1.0
"""The most that connecting to a port may take; on the loopback it is there or refused at once."""
RECONNECT_MS = 200
"""The same for one that has closed a connection."""


class RelayConnection:
    """To one of the kernel's sockets: not there yet, open, or closed by the kernel."""

    def __init__(self, address: SocketAddress, socket_type: str, identity: bytes) -> None:
        self._address = address
        self._type = socket_type
        self._identity = identity
        self._socket: Optional[socket.socket] = None
        self._zmtp = ZmtpConnection(socket_type, identity)
        self._unsent: Deque[memoryview] = deque()
        self._early: List[Sequence[Part]] = []
        self.was_open = False
        self.broken: Optional[str] = None
        """What rule the kernel broke; it is not talked to any more then."""

    @property
    def open(self) -> bool:
        return self._socket is not None

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def connect(self) -> None:
        """Try once. A kernel that does not listen yet is no error."""
        if self._socket is not None or self.broken:
            return
        try:
            attempt = _connect(self._address)
        except OSError:
            return
        self._socket = attempt
        self._zmtp = ZmtpConnection(self._type, self._identity)
        self._unsent.clear()
        self.flush()

    def send(self, parts: Sequence[Part]) -> bool:
        """Queue a message; False when the kernel broke ZMQ's rules, and will never get it."""
        if self.broken:
            return False
        if self._zmtp.ready:
            self._zmtp.send(parts)
            self.flush()
        else:
            self._early.append(parts)
        return True

    def flush(self) -> None:
        """Write what may be written without waiting."""
        data = self._zmtp.data_to_send()
        if data:
            self._unsent.append(memoryview(data))
        while self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if sent < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][sent:]
            else:
                self._unsent.popleft()

    def receive(self) -> List[List[bytes]]:
        """Read once; the messages that are whole."""
        if self._socket is None:
            return []
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        ready = self._zmtp.ready
        try:
            messages = self._zmtp.receive_data(data)
        except ZmtpError as error:
            self.broken = str(error)
            self.close()
            return []
        if self._zmtp.ready and not ready:
            self._greet()
        self.flush()
        return messages

    def _greet(self) -> None:
        self.was_open = True
        if self._type == "SUB":
            self._zmtp.subscribe()
        for parts in self._early:
            self._zmtp.send(parts)
        self._early.clear()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._unsent.clear()


def _connect(address: SocketAddress) -> socket.socket:
    """A socket that never blocks, connected. Raises OSError."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    attempt = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET:
            attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            attempt.settimeout(CONNECT_SECONDS)
        else:
            attempt.setblocking(False)
        with as_kernel():  # nobody else may reach its socket
            attempt.connect(address)
        attempt.setblocking(False)
    except OSError:
        attempt.close()
        raise
    return attempt


class Relay:
    """Connected to a kernel as soon as that listens on ``addresses``."""

    def __init__(self, addresses: Dict[Channel, SocketAddress]) -> None:
        identity = os.urandom(8).hex().encode()
        self._connections = {
            channel: RelayConnection(addresses[channel], kind, b"" if kind == "SUB" else identity)
            for channel, kind in SOCKET_TYPES.items()
        }
        self._told: List[Channel] = []
        self._tried = 0.0
        self.connect()

    def connect(self) -> None:
        """Try those that are not connected; call it every ``wait_ms``."""
        self._tried = time.monotonic()
        for connection in self._connections.values():
            connection.connect()

    @property
    def wait_ms(self) -> Optional[int]:
        """How long to wait before ``connect`` is to be called again; None: not at all."""
        missing = [c for c in self._connections.values() if not c.open and not c.broken]
        if not missing:
            return None
        return RECONNECT_MS if all(c.was_open for c in missing) else CONNECT_MS

    def look(self) -> None:
        """Connect where it is time to."""
        wait = self.wait_ms
        if wait is not None and time.monotonic() - self._tried >= wait / 1000:
            self.connect()

    @property
    def listening(self) -> bool:
        """The kernel's iopub is connected: nothing it answers from now on can be missed."""
        return self._connections[Channel.IOPUB].was_open

    @property
    def finished(self) -> bool:
        """Every connection that was there is closed: the kernel's last bytes have been read."""
        return not any(connection.open for connection in self._connections.values())

    def wanted(self) -> Iterator[Tuple[int, int]]:
        """Descriptors and what to wait for on them, as ``select.poll`` has it."""
        for connection in self._connections.values():
            if connection.open:
                yield (
                    connection.fileno(),
                    select.POLLIN | (select.POLLOUT if connection.wants_to_write else 0),
                )

    def send(self, channel: Channel, parts: Sequence[Part]) -> bool:
        """Hand a message to the kernel. Never blocks, never drops while the kernel lives.

        False when the kernel broke ZMQ's rules.
        """
        return channel is Channel.IOPUB or self._connections[channel].send(parts)

    def receive(self, ready: Dict[int, int]) -> Iterator[Tuple[Channel, List[bytes]]]:
        """What the kernel sent, of those connections that are ``ready``; one read each."""
        for channel, connection in self._connections.items():
            if connection.open and connection.fileno() in ready:
                if connection.wants_to_write:
                    connection.flush()
                for parts in connection.receive():
                    yield channel, parts

    def news(self) -> Iterator[Tuple[Channel, str]]:
        """Which connections have been given up since the last call, and why."""
        for channel, connection in self._connections.items():
            if connection.broken and channel not in self._told:
                self._told.append(channel)
                yield channel, connection.broken

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
