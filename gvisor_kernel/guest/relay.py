"""Passes messages between the link and a kernel that speaks only ZMQ, over its five sockets.

``Relay`` has the sockets, and knows neither the link nor the process. As ``passage.py`` for frames,
``ZmqPassage`` decides when a kernel is killed and what is logged.

Shell and stdin share one identity, because a kernel sends its ``input_request`` to the sender of
the ``execute_request``. Nothing here blocks, and no message of a kernel is dropped: the supervisor
stops a kernel that is too far ahead.
"""

from __future__ import annotations

import hmac
import json
import os
import select
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence

from gvisor_kernel.guest.connection_file import SocketAddress
from gvisor_kernel.guest.guest_log import GuestLog, explain_drop
from gvisor_kernel.guest.identity import as_kernel
from gvisor_kernel.guest.process import KernelProcess
from gvisor_kernel.guest.zmtp import ZmtpConnection, ZmtpError
from gvisor_kernel.link import Channel, Connection, LocalProtocolError, Message
from gvisor_kernel.link.frames import Part
from gvisor_kernel.strict_json import parse_json

SOCKET_TYPES = {
    Channel.SHELL: "DEALER",
    Channel.IOPUB: "SUB",
    Channel.STDIN: "DEALER",
    Channel.CONTROL: "DEALER",
    Channel.HB: "DEALER",
}
READ_SIZE = 256 * 1024
CONNECT_MS = 20
"""Milliseconds between attempts to connect to a kernel that does not listen yet."""
CONNECT_SECONDS = 1.0
"""Seconds that connecting to a port may take. On the loopback it succeeds or fails at once."""
RECONNECT_MS = 200
"""Milliseconds between attempts after the kernel has closed a connection."""


class RelayConnection:
    """The connection to one of the kernel's sockets. Opened again after the kernel closes it."""

    def __init__(self, address: SocketAddress, socket_type: str, identity: bytes) -> None:
        self._address = address
        self._type = socket_type
        self._identity = identity
        self._socket: socket.socket | None = None
        self._zmtp = ZmtpConnection(socket_type, identity)
        self._unsent: deque[memoryview] = deque()
        self._queued: list[Sequence[Part]] = []
        self.was_open = False
        self.broken: str | None = None
        """The ZMTP rule that the kernel violated. The connection is not used any more then."""

    @property
    def open(self) -> bool:
        """Return whether the connection is open now."""
        return self._socket is not None

    def fileno(self) -> int:
        """The descriptor to poll. Only while the connection is open."""
        assert self._socket is not None
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Return whether bytes wait for the socket to accept them."""
        return bool(self._unsent)

    def connect(self) -> None:
        """Try to connect once. A kernel that does not listen yet is not an error."""
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
        """Queue a message. Return False if the connection is broken and will never send it."""
        if self.broken:
            return False
        if self._zmtp.ready:
            self._zmtp.send(parts)
            self.flush()
        else:
            self._queued.append(parts)
        return True

    def flush(self) -> None:
        """Write what the socket accepts without blocking."""
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

    def receive(self) -> list[list[bytes]]:
        """Read once. Return the messages that are complete."""
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
            self._finish_handshake()
        self.flush()
        return messages

    def _finish_handshake(self) -> None:
        self.was_open = True
        if self._type == "SUB":
            self._zmtp.subscribe()
        for parts in self._queued:
            self._zmtp.send(parts)
        self._queued.clear()

    def close(self) -> None:
        """Close the connection and drop unsent bytes. Idempotent; it may be opened again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._unsent.clear()


def _connect(address: SocketAddress) -> socket.socket:
    """Return a connected, non-blocking socket.

    :raises OSError: when the kernel does not listen
    """
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    attempt = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET:
            attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            attempt.settimeout(CONNECT_SECONDS)
        else:
            attempt.setblocking(False)
        with as_kernel():  # only the kernel's uid may reach its socket
            attempt.connect(address)
        attempt.setblocking(False)
    except OSError:
        attempt.close()
        raise
    return attempt


class Relay:
    """The connections to one kernel, opened as soon as it listens on ``addresses``."""

    def __init__(self, addresses: dict[Channel, SocketAddress]) -> None:
        identity = os.urandom(8).hex().encode()
        self._connections = {
            channel: RelayConnection(addresses[channel], kind, b"" if kind == "SUB" else identity)
            for channel, kind in SOCKET_TYPES.items()
        }
        self._reported: list[Channel] = []
        self._last_attempt = 0.0
        self.connect()

    def connect(self) -> None:
        """Try to open the connections that are not open."""
        self._last_attempt = time.monotonic()
        for connection in self._connections.values():
            connection.connect()

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds until ``update`` must be called; None if all connections are open."""
        missing = [c for c in self._connections.values() if not c.open and not c.broken]
        if not missing:
            return None
        return RECONNECT_MS if all(c.was_open for c in missing) else CONNECT_MS

    def update(self) -> None:
        """Try to open the missing connections if it is time to."""
        wait = self.wait_ms
        if wait is not None and time.monotonic() - self._last_attempt >= wait / 1000:
            self.connect()

    @property
    def listening(self) -> bool:
        """Return whether iopub is connected, so that no output can be missed from now on."""
        return self._connections[Channel.IOPUB].was_open

    @property
    def finished(self) -> bool:
        """Return whether no connection is open: the kernel's last bytes have been read."""
        return not any(connection.open for connection in self._connections.values())

    @property
    def silent(self) -> bool:
        """Return whether all connections are open, and nothing waits to be sent on them."""
        return all(c.open and not c.wants_to_write for c in self._connections.values())

    def poll_events(self) -> Iterator[tuple[int, int]]:
        """Yield descriptors and the events to poll for."""
        for connection in self._connections.values():
            if connection.open:
                yield (
                    connection.fileno(),
                    select.POLLIN | (select.POLLOUT if connection.wants_to_write else 0),
                )

    def send(self, channel: Channel, parts: Sequence[Part]) -> bool:
        """Queue a message for the kernel. Never blocks; drops nothing while the kernel lives.

        Returns False if the kernel violated ZMTP on this channel.
        """
        return channel is Channel.IOPUB or self._connections[channel].send(parts)

    def receive(self, ready: dict[int, int]) -> Iterator[tuple[Channel, list[bytes]]]:
        """Read once from each connection in ``ready``. Yield the messages that are complete."""
        for channel, connection in self._connections.items():
            if connection.open and connection.fileno() in ready:
                if connection.wants_to_write:
                    connection.flush()
                for parts in connection.receive():
                    yield channel, parts

    def take_failures(self) -> Iterator[tuple[Channel, str]]:
        """Yield the channels that were given up since the last call, and the reasons."""
        for channel, connection in self._connections.items():
            if connection.broken and channel not in self._reported:
                self._reported.append(channel)
                yield channel, connection.broken

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for connection in self._connections.values():
            connection.close()


class ZmqPassage:
    """One instance per kernel process. ``signing``: key and scheme of the kernel's signatures."""

    def __init__(
        self,
        addresses: dict[Channel, SocketAddress],
        kernel: KernelProcess,
        connection: Connection,
        log: GuestLog,
        signing: tuple[str, str],
    ) -> None:
        self.relay = Relay(addresses)
        self._kernel = kernel
        self._connection = connection
        self._log = log
        self._signing = signing

    def send(self, held: deque[Message]) -> None:
        """Send the kernel the messages that wait for it, once it listens."""
        self.relay.update()
        while self.relay.listening and held:
            message = held.popleft()
            if not self.relay.send(message.channel, message.parts):
                self._log.write_limited(
                    f"Dropped a message on {message.channel.name.lower()}:"
                    " the kernel violated the ZMTP protocol there.\n"
                )
            self._connection.consumed(message)

    def receive(self, ready: dict[int, int]) -> bool:
        """Pass on what the kernel has sent; return whether that was anything."""
        has_output = False
        for channel, parts in self.relay.receive(ready):
            has_output = True
            try:
                self._connection.send_message(channel, parts)
            except LocalProtocolError as error:
                self._report_drop(channel, parts, explain_drop(channel, error))
        for channel, reason in self.relay.take_failures():
            self._log.write_limited(
                f"Killed the kernel: it violated the ZMTP protocol on {channel.name.lower()}:"
                f" {reason}.\n"
            )
            self._kernel.signal_group(signal.SIGKILL)
        return has_output

    def _report_drop(self, channel: Channel, parts: list[bytes], words: str) -> None:
        self._log.write_limited(words)
        replacement = make_replacement(channel, parts, *self._signing, words)
        if replacement is not None:
            self._connection.send_message(channel, replacement)


# -- the replacement for a message that is too large for the link ----------------------------------
# Of a relayed kernel PID 1 has the messages and the signing key. A kernel that speaks frames itself
# prints the reason to its own stderr (``direct``).

DELIMITER = b"<IDS|MSG>"
MAX_PARTS_BEFORE = 16
"""Number of identities before the delimiter up to which a list of parts counts as a message."""
MAX_HEADER = 64 * 1024
"""Bytes of a header, or of a parent header, that is parsed or repeated at most."""


def make_replacement(
    channel: Channel, parts: list[bytes], key: str, scheme: str, words: str
) -> list[bytes] | None:
    """Return signed parts that tell ``words`` in place of ``parts``; None if these are no message.

    On iopub the replacement is text on stderr of the same cell. On other channels it is the same
    reply with status "error".
    """
    try:
        at = parts.index(DELIMITER, 0, MAX_PARTS_BEFORE + 1)
        header, parent = parts[at + 2], parts[at + 3]
        if len(parent) > MAX_HEADER:
            return None
        fields = parse_json(header, MAX_HEADER)
        if channel is Channel.IOPUB:
            fields["msg_type"], fields["msg_id"] = "stream", uuid.uuid4().hex
            content = {"name": "stderr", "text": words}
        else:
            content = {"status": "error", "ename": "MessageTooLarge", "evalue": words}
            content["traceback"] = []  # type: ignore[assignment]
    except (ValueError, IndexError, TypeError):
        return None
    dicts = [json.dumps(fields).encode(), parent, b"{}", json.dumps(content).encode()]
    signature = hmac.new(key.encode(), b"".join(dicts), scheme.partition("-")[2]).hexdigest()
    return [*parts[:at], DELIMITER, signature.encode(), *dicts]
