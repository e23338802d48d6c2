"""The five ZMQ sockets that clients connect to. Messages are opaque here but for subscriptions.

Nothing blocks and nothing is dropped in silence: a socket that cannot take a message now keeps it
until it can. How much may wait is the link's matter: its credit comes back only once a message
has left here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import VIEWED, Part

log = logging.getLogger(__name__)

SOCKET_TYPES = {
    Channel.SHELL: zmq.ROUTER,
    Channel.IOPUB: zmq.XPUB,
    Channel.STDIN: zmq.ROUTER,
    Channel.CONTROL: zmq.ROUTER,
    Channel.HB: zmq.ROUTER,
}
HIGH_WATER = 4
"""Messages that libzmq may hold for one client on one socket. ZMQ counts messages, not bytes, so a
small number bounds bytes: a stalled client costs four messages, and then the kernel waits."""
REQUESTS_HIGH_WATER = 1000
"""Requests that libzmq may hold from one client; clients are trusted."""
PATIENCE = 10.0
"""Seconds that one client which does not read may hold up all others; then it loses messages
until it reads again. A client that is alone is waited for without end."""
BATCH = 32
"""Messages taken from one socket before the loop has its turn."""
SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.5
"""Seconds until a message that no client took is tried again, should nothing else tell of room:
as long as it has waited already."""
WELCOMES_WAITING = 1000
"""Messages waiting on iopub above which no subscription is taken: each adds a welcome, and a
client that subscribes need not have signed anything."""
MAX_SOCKET_PATH = 107
"""Bytes in a Unix socket's path (sun_path less its NUL)."""

Taken = Callable[[], None]


@dataclass(frozen=True)
class Address:
    """Where clients connect: as in a connection file. Ports of 0 are chosen at bind."""

    transport: str
    ip: str
    ports: dict[Channel, int] = field(default_factory=dict)
    curve_publickey: bytes | None = None
    curve_secretkey: bytes | None = None


class ClientSockets:
    """Bound from construction to ``close``. Lives on the bridge's loop.

    ``on_message(channel, parts)`` is called for what a client sent, while ``may_take(channel)``;
    ``on_subscribe(topic)`` when iopub is subscribed to for a topic that no client had.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        base: Path,
        on_message: Callable[[Channel, list[Part]], None],
        may_take: Callable[[Channel], bool],
        on_subscribe: Callable[[bytes], None],
    ) -> None:
        """Raises LaunchError when the sockets cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._may_take = may_take
        self._on_subscribe = on_subscribe
        self._waiting: dict[Channel, deque[tuple[list[Part], Taken | None]]] = {}
        self._blocked_since: dict[Channel, float] = {}
        self._stalled: set[tuple[Channel, bytes]] = set()
        """Clients that lost a reply, and have not read since."""
        self._coming: dict[Channel, asyncio.Handle] = {}
        """The next look at a socket that is due without its descriptor; at most one each."""
        self._topics: Counter[bytes] = Counter()
        """Subscriptions to iopub, of all clients."""
        self._warnings = Limiter()
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._directory: Path | None = None
        self._closed = False
        try:
            for channel, kind in SOCKET_TYPES.items():
                self._sockets[channel] = self._make_socket(context, channel, kind, address)
                self._waiting[channel] = deque()
            self.address = self._bind(address, base)
        except (zmq.ZMQError, OSError) as error:
            self.close()
            # What libzmq says of a socket that it could not have a descriptor for.
            scarce = error.errno == errno.ENOTSOCK
            raise LaunchError(
                f"The kernel's {address.transport} sockets cannot be opened at "
                f"{address.ip or base}: {os.strerror(errno.EMFILE) if scarce else error}.",
                "check that the address is this machine's, that the ports are free and that the "
                "directory can be written.",
            ) from error
        for channel, socket in self._sockets.items():
            self._loop.add_reader(socket.fileno(), self._pump, channel)
            self._loop.call_soon(self._pump, channel)

    @staticmethod
    def _make_socket(
        context: zmq.Context[zmq.Socket[bytes]], channel: Channel, kind: int, address: Address
    ) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = context.socket(kind)
        socket.linger = 1000
        socket.sndhwm = HIGH_WATER
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        else:
            socket.rcvhwm = REQUESTS_HIGH_WATER
            # Two clients of one manager share an identity; without handover the second is mute.
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if address.curve_secretkey is not None:
            socket.curve_server = True
            socket.curve_secretkey = address.curve_secretkey
            socket.curve_publickey = address.curve_publickey
        return socket

    # -- addresses -------------------------------------------------------------------------------

    def _bind(self, address: Address, base: Path) -> Address:
        ports = dict(address.ports)
        if address.transport == "tcp":
            for channel, socket in self._sockets.items():
                wanted = ports.get(channel, 0)
                socket.bind(f"tcp://{address.ip}:{wanted or '*'}")
                endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
                assert isinstance(endpoint, bytes)
                ports[channel] = int(endpoint.rstrip(b"\0").rpartition(b":")[2])
            ip = address.ip
        else:
            self._directory = base / secrets.token_hex(4)
            self._directory.mkdir(mode=0o700)
            ip = address.ip or f"{self._directory}/k"
            if len(f"{self._directory}/k-99".encode()) > MAX_SOCKET_PATH:
                raise OSError(f"the path {self._directory} is too long for a socket")
            for channel, socket in self._sockets.items():
                ports[channel] = ports.get(channel) or int(channel)
                socket.bind(f"ipc://{self._directory}/l-{int(channel)}")
        bound_address = Address(
            address.transport, ip, ports, address.curve_publickey, address.curve_secretkey
        )
        self._expose(bound_address)
        return bound_address

    def _expose(self, address: Address) -> None:
        """Give the ipc sockets the names that clients know.

        Links to the real sockets: a manager unlinks the names at each restart, and the sockets,
        with their connections, stay.
        """
        if self._directory is None:
            return
        for channel, port in address.ports.items():
            name, target = Path(f"{address.ip}-{port}"), self._directory / f"l-{int(channel)}"
            if name.is_symlink():
                if name.readlink() == target:
                    continue
                name.unlink()  # of a kernel before this one, whose process was killed
            name.symlink_to(target)

    def expose(self) -> None:
        """Make sure that clients can connect (again). Raises LaunchError."""
        try:
            self._expose(self.address)
        except OSError as error:
            raise LaunchError(f"The kernel's sockets cannot be named: {error}.") from error

    # -- sending ---------------------------------------------------------------------------------

    def send(self, channel: Channel, parts: list[Part], taken: Taken | None = None) -> None:
        """Send to the client that ``parts`` names, or publish; ``taken`` is called once it left.

        Large parts go uncopied: nobody may change them afterwards.
        """
        if self._closed:
            if taken is not None:
                taken()
            return
        self._waiting[channel].append((parts, taken))
        if len(self._waiting[channel]) == 1:
            self._send_waiting(channel)
            self._look_again(channel)

    def waiting(self) -> int:
        """Messages that no client has taken yet."""
        return sum(map(len, self._waiting.values()))

    def _send_waiting(self, channel: Channel) -> None:
        socket, waiting = self._sockets[channel], self._waiting[channel]
        while waiting:
            parts, taken = waiting[0]
            try:
                _send(socket, parts)
            except zmq.Again:
                if self._give_up_on_stalled(channel):
                    continue
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:  # the client has left: nobody to tell
                    self._warn(f"A message on {channel.name.lower()} was not sent: {error}")
            self._blocked_since.pop(channel, None)
            if self._stalled:
                self._stalled.discard((channel, _name(parts)))
            waiting.popleft()
            if taken is not None:
                taken()

    def _give_up_on_stalled(self, channel: Channel) -> bool:
        """Whether the waiting message may be tried again at once, because a stalled peer lost it.

        On iopub one lossy send makes libzmq pass the stalled subscriber by until it reads again.
        On the others the message itself is for the stalled client, and is dropped; so are the next
        ones, at once, until it reads again.
        """
        now = time.monotonic()
        client = channel, _name(self._waiting[channel][0][0])
        if client not in self._stalled:
            since = self._blocked_since.setdefault(channel, now)
            if now - since < PATIENCE or (channel is Channel.IOPUB and self._topics.total() < 2):
                if channel not in self._coming:
                    wait = min(LONGEST_WAIT, max(SHORTEST_WAIT, now - since))
                    self._coming[channel] = self._loop.call_later(wait, self._come_back, channel)
                return False
            self._warn(f"A client does not read {channel.name.lower()}; it loses messages.")
            if channel is not Channel.IOPUB:
                self._stalled.add(client)
        self._blocked_since[channel] = now
        parts, taken = self._waiting[channel].popleft()
        if channel is Channel.IOPUB:
            socket = self._sockets[channel]
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            with suppress(zmq.ZMQError):
                _send(socket, parts)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        if taken is not None:
            taken()
        return True

    def _warn(self, text: str) -> None:
        line = self._warnings.take(text)
        if line is not None:
            log.warning("%s", line)

    # -- receiving -------------------------------------------------------------------------------

    def resume(self) -> None:
        """Look again at the sockets: ``may_take`` may have changed."""
        for channel in self._sockets:
            self._pump(channel)

    def _come_back(self, channel: Channel) -> None:
        self._coming.pop(channel, None)
        self._pump(channel)

    def _pump(self, channel: Channel) -> None:
        if not self._closed:
            self._use(channel)

    def _use(self, channel: Channel) -> None:
        """Send and receive what can be, and come back if more is there.

        A ZMQ descriptor tells of changes, not of states: after each use EVENTS is asked again.
        """
        socket = self._sockets[channel]
        left = BATCH
        self._send_waiting(channel)
        while left and self._takes(channel) and self._readable(socket):
            left -= 1
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            parts: list[Part] = [
                frame.buffer if len(frame) > VIEWED else frame.bytes for frame in frames
            ]
            if channel is Channel.IOPUB:
                self._take_subscription(parts[0])
            else:
                self._on_message(channel, parts)
        self._look_again(channel)

    def _takes(self, channel: Channel) -> bool:
        if channel is Channel.IOPUB:
            return len(self._waiting[channel]) < WELCOMES_WAITING
        return self._may_take(channel)

    def _look_again(self, channel: Channel) -> None:
        """A socket that still has something to read does not tell so a second time.

        Nor of room: to ask for EVENTS also takes in that a queue has room again, and then its
        descriptor stays quiet. So what waits is tried after that.
        """
        if self._closed:
            return
        readable = self._readable(self._sockets[channel])
        if self._waiting[channel]:
            self._send_waiting(channel)
        if not readable or not self._takes(channel):
            return
        coming = self._coming.pop(channel, None)
        if coming is not None:
            coming.cancel()
        self._coming[channel] = self._loop.call_soon(self._come_back, channel)

    @staticmethod
    def _readable(socket: zmq.Socket[bytes]) -> bool:
        events = socket.getsockopt(zmq.EVENTS)
        return bool(isinstance(events, int) and events & zmq.POLLIN)

    def _take_subscription(self, frame: Part) -> None:
        """Only the first of a topic is told of, as by ipykernel, whose socket tells of no other.

        What is said to a new subscriber, all others hear as well, and not all of them can bear a
        message without a parent (kernel gateway's notebook-http mode).
        """
        topic = bytes(frame[1:])
        if frame[:1] == b"\1":
            self._topics[topic] += 1
            if self._topics[topic] == 1:
                self._on_subscribe(topic)
        elif frame[:1] == b"\0":
            self._topics[topic] -= 1
            if self._topics[topic] <= 0:
                del self._topics[topic]

    def close(self) -> None:
        """Close all; what waits is dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for handle in self._coming.values():
            handle.cancel()
        for socket in self._sockets.values():
            with suppress(zmq.ZMQError, ValueError, OSError):
                self._loop.remove_reader(socket.fileno())
            socket.close()
        for waiting in self._waiting.values():
            while waiting:
                taken = waiting.popleft()[1]
                if taken is not None:
                    taken()
        if self._directory is not None:
            address = getattr(self, "address", None)
            if address is not None:
                for port in address.ports.values():
                    name = Path(f"{address.ip}-{port}")
                    with suppress(OSError):
                        if name.readlink().parent == self._directory:
                            name.unlink()
            with suppress(OSError):
                for name in self._directory.iterdir():
                    name.unlink(missing_ok=True)
                self._directory.rmdir()


def _send(socket: zmq.Socket[bytes], parts: list[Part]) -> None:
    """All of a message, or raise zmq.Again. Large parts go uncopied, where that is possible."""
    try:
        frames = [zmq.Frame(part, copy=False) if len(part) > VIEWED else part for part in parts]
    except (zmq.ZMQError, OSError, RuntimeError):  # no descriptors for it, or the process's end
        socket.send_multipart(parts, zmq.NOBLOCK)
        return
    socket.send_multipart(frames, zmq.NOBLOCK, copy=False)


def _name(parts: list[Part]) -> bytes:
    """What a message says of whom it is for: of a client's identity at most its 255 bytes."""
    return bytes(parts[0][:255])
