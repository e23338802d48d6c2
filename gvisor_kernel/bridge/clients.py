"""The five ZMQ sockets that clients connect to. Only subscriptions are parsed here.

No call blocks. A message that a socket cannot take now waits until it can. It is dropped only when
its client is gone, when that stalls while others wait, or at ``close``. The link bounds how many
wait, since its credit is returned only after a message was sent here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zmq

from gvisor_kernel.bridge.addresses import Address, SocketNames, count_connections
from gvisor_kernel.bridge.bell import Bell
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.log_files import Limiter
from gvisor_kernel.host.open_files import explain_scarce_files
from gvisor_kernel.link import Channel
from gvisor_kernel.link.frames import VIEW_ABOVE, Part

log = logging.getLogger(__name__)

SOCKET_TYPES = {
    Channel.SHELL: zmq.ROUTER,
    Channel.IOPUB: zmq.XPUB,
    Channel.STDIN: zmq.ROUTER,
    Channel.CONTROL: zmq.ROUTER,
    Channel.HB: zmq.ROUTER,
}
HIGH_WATER = 4
"""Messages that libzmq may hold for one client on one socket. ZMQ counts messages and not bytes,
so this must be small: a stalled client costs four messages, and then the kernel waits."""
REQUESTS_HIGH_WATER = 1000
"""Requests that libzmq may hold from one client. Clients are trusted."""
STALL_SECONDS = 10.0
"""Seconds that a client which does not read may block all others. After that it loses messages
until it reads again. An only client may block for ever."""
MAX_BATCH = 32
"""Messages read from one socket before the loop serves others."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.01, 0.5
"""Seconds until a blocked message is tried again if no event says that there is room: as long as
it has waited already, within these bounds."""
MAX_WAITING_WELCOMES = 1000
"""Messages waiting on iopub. Above this no subscription is read: each adds a welcome message, and
a client can subscribe without a valid signature."""

OnSent = Callable[[], None]


class ClientSockets:
    """ZMQ sockets, open from the first ``bind`` to ``close``. Use on the bridge's loop only.

    Calls ``on_message(channel, parts)`` for each message of a client, as long as
    ``may_read(channel)`` is true. Calls ``on_subscribe(topic)`` for a topic's first subscription.

    With ipc they cost two descriptors before ``bind`` and after ``rest``: who connects then opens
    them.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        base: Path,
        on_message: Callable[[Channel, list[Part]], None],
        may_read: Callable[[Channel], bool],
        on_subscribe: Callable[[bytes], None],
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """:raises LaunchError: when clients could not connect"""
        self.on_open: Callable[[], None] = lambda: None
        """Called when the sockets were opened again."""
        self._context = context
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._may_read = may_read
        self._on_subscribe = on_subscribe
        self._waiting: dict[Channel, deque[tuple[list[Part], OnSent | None]]] = {
            channel: deque() for channel in SOCKET_TYPES
        }
        self._blocked_since: dict[Channel, float] = {}
        self._is_receiving = False
        self._stalled: set[tuple[Channel, bytes]] = set()
        """Clients that lost a reply and have not read since."""
        self._scheduled: dict[Channel, asyncio.Handle] = {}
        """Calls of ``_service`` that no event of a descriptor causes; at most one per socket."""
        self._topics: Counter[bytes] = Counter()
        """Subscriptions of all clients to iopub."""
        self._warnings = Limiter()
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        """Empty before ``bind`` and after ``rest``."""
        self._bell: Bell | None = None
        self._names = SocketNames(address, base)
        self._closed = False
        try:
            if address.transport == "tcp":  # its ports have to be taken
                self.bind()
            else:
                with self._explaining():
                    self._bell = Bell(self._names, SOCKET_TYPES, self._answer)
        except LaunchError:
            self.close()
            raise

    def bind(self) -> None:
        """Bind the sockets, unless they are bound.

        :raises LaunchError: when they cannot be bound
        """
        if self._closed or self._sockets:
            return
        sockets: dict[Channel, zmq.Socket[bytes]] = {}
        try:
            with self._explaining():
                for channel, kind in SOCKET_TYPES.items():
                    sockets[channel] = self._make_socket(
                        self._context, channel, kind, self._names.address
                    )
                taken = self._bell.listeners if self._bell is not None else None
                self._names.bind(sockets, taken)
        except LaunchError:
            for socket in sockets.values():
                socket.close(0)
            raise
        self._sockets = sockets
        if self._bell is not None:
            self._bell.close()
            self._bell = None
            self._names.remove_other()
        for channel, socket in self._sockets.items():
            self._loop.add_reader(socket.fileno(), self._service, channel)
            self._loop.call_soon(self._service, channel)
        self.on_open()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (zmq.ZMQError, OSError) as error:
            # libzmq reports ENOTSOCK when it gets no file descriptor for a socket.
            scarce = error.errno in (errno.ENOTSOCK, errno.EMFILE, errno.ENFILE)
            address = self._names.address
            raise LaunchError(
                f"The kernel's {address.transport} sockets cannot be opened at "
                f"{address.ip or self._names.base}: "
                f"{os.strerror(errno.EMFILE) if scarce else error}.",
                explain_scarce_files()
                if scarce
                else "check that the address belongs to this machine, that the ports are free and"
                " that the directory is writable.",
            ) from error

    def _answer(self) -> bool:
        """Open the sockets for somebody who wants to connect; return whether they are open."""
        try:
            self.bind()
        except LaunchError as error:
            self._warn(str(error))
            return False
        return True

    def rest(self) -> bool:
        """Close the sockets if nobody is connected, until somebody connects; return whether they
        are closed.

        The names lead to the bell before the connections are counted, so that none is made unseen.
        """
        if not self._sockets:
            return True
        places = self._names.targets
        if self._topics.total() or self.count_waiting() or not places:
            return False
        if count_connections(places.values()):
            return False
        try:
            bell = Bell(self._names, SOCKET_TYPES, self._answer)
        except OSError:
            return False
        if not count_connections(places.values()):
            self.resume_reading()  # what they have left
            if not any(map(self._readable, self._sockets.values())):
                self._close_sockets()
                self._bell = bell
                self._names.remove_other()
                return True
        with suppress(OSError):  # the next try mends it
            self._names.expose(places)
        bell.close()
        self._names.remove_other()
        return False

    def _close_sockets(self) -> None:
        for handle in self._scheduled.values():
            handle.cancel()
        self._scheduled.clear()
        for socket in self._sockets.values():
            with suppress(zmq.ZMQError, ValueError, OSError):
                self._loop.remove_reader(socket.fileno())
            socket.close()
        self._sockets = {}

    @staticmethod
    def _make_socket(
        context: zmq.Context[zmq.Socket[bytes]], channel: Channel, kind: int, address: Address
    ) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = context.socket(kind)
        socket.linger = 1000
        socket.sndhwm = HIGH_WATER
        # Refuses peers of ZMTP before 3.0, as any byte but 0xFF begins one: libzmq 4.3.5 ends the
        # whole process if it takes the first message of such a peer while its socket is closed.
        socket.setsockopt(zmq.ZAP_DOMAIN, b"gvisor-kernel")
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        else:
            socket.rcvhwm = REQUESTS_HIGH_WATER
            # Two clients of one manager share an identity. Without handover the second one would
            # get no replies.
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if address.curve_secretkey is not None:
            socket.curve_server = True
            socket.curve_secretkey = address.curve_secretkey
            socket.curve_publickey = address.curve_publickey
        return socket

    @property
    def address(self) -> Address:
        """The address that clients connect to."""
        return self._names.address

    def expose(self) -> None:
        """Open the sockets, and create the names that clients connect to, where they are missing.

        :raises LaunchError: when that fails
        """
        self.bind()
        try:
            self._names.expose()
        except OSError as error:
            raise LaunchError(
                f"The names of the kernel's sockets cannot be created: {error}."
            ) from error

    # -- sending ---------------------------------------------------------------------------------

    def send(self, channel: Channel, parts: list[Part], on_sent: OnSent | None = None) -> None:
        """Send ``parts`` to the client that they name, or publish them on iopub.

        Large parts are sent without a copy: the caller must not change them afterwards.
        ``on_sent`` is called when the message was sent or dropped.
        """
        if not self._sockets:  # nobody is connected
            if on_sent is not None:
                on_sent()
            return
        if channel is Channel.IOPUB and not self._is_receiving:
            self._receive(channel)  # libzmq knows new subscribers before their welcome is sent
        self._waiting[channel].append((parts, on_sent))
        if len(self._waiting[channel]) == 1:
            self._send_waiting(channel)
            self._recheck(channel)

    def count_waiting(self) -> int:
        """Return the number of messages that libzmq has not accepted yet."""
        return sum(map(len, self._waiting.values()))

    def _send_waiting(self, channel: Channel) -> None:
        socket, waiting = self._sockets[channel], self._waiting[channel]
        while waiting:
            parts, on_sent = waiting[0]
            try:
                _send(socket, parts)
            except zmq.Again:
                if self._give_up_on_stalled(channel):
                    continue
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:  # the client has disconnected
                    self._warn(f"A message on {channel.name.lower()} was not sent: {error}")
            self._blocked_since.pop(channel, None)
            if self._stalled:
                self._stalled.discard((channel, _destination(parts)))
            waiting.popleft()
            if on_sent is not None:
                on_sent()

    def _give_up_on_stalled(self, channel: Channel) -> bool:
        """Drop the first waiting message if its client stalls; whether it was dropped.

        On iopub, one lossy send makes libzmq skip the stalled subscriber until it reads again. On
        the other channels the message is for the stalled client itself. The next messages for it
        are dropped at once, until it reads again.
        """
        now = time.monotonic()
        client = channel, _destination(self._waiting[channel][0][0])
        if client not in self._stalled:
            since = self._blocked_since.setdefault(channel, now)
            if now - since < self._stall_seconds or (
                channel is Channel.IOPUB and self._topics.total() < 2
            ):
                if channel not in self._scheduled:
                    wait = min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, now - since))
                    self._scheduled[channel] = self._loop.call_later(
                        wait, self._run_scheduled, channel
                    )
                return False
            self._warn(f"A client does not read {channel.name.lower()}; dropping its messages.")
            if channel is not Channel.IOPUB:
                self._stalled.add(client)
        self._blocked_since[channel] = now
        parts, on_sent = self._waiting[channel].popleft()
        if channel is Channel.IOPUB:
            socket = self._sockets[channel]
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            with suppress(zmq.ZMQError):
                _send(socket, parts)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        if on_sent is not None:
            on_sent()
        return True

    def _warn(self, text: str) -> None:
        line = self._warnings.admit(text)
        if line is not None:
            log.warning("%s", line)

    # -- receiving -------------------------------------------------------------------------------

    def resume_reading(self) -> None:
        """Serve all sockets now. Call when ``may_read`` may have changed."""
        for channel in tuple(self._sockets):
            self._service(channel)

    def _run_scheduled(self, channel: Channel) -> None:
        self._scheduled.pop(channel, None)
        self._service(channel)

    def _service(self, channel: Channel) -> None:
        if self._sockets:
            self._transfer(channel)

    def _transfer(self, channel: Channel) -> None:
        """Send and receive what is possible, and schedule another call if more is there.

        A ZMQ descriptor is edge-triggered: EVENTS has to be read after each use.
        """
        self._send_waiting(channel)
        self._receive(channel)
        self._recheck(channel)

    def _receive(self, channel: Channel) -> None:
        socket = self._sockets[channel]
        left = MAX_BATCH
        self._is_receiving = channel is Channel.IOPUB
        while left and self._wants_input(channel) and self._readable(socket):
            left -= 1
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            parts: list[Part] = [
                frame.buffer if len(frame) > VIEW_ABOVE else frame.bytes for frame in frames
            ]
            if channel is Channel.IOPUB:
                self._update_topics(parts[0])
            else:
                self._on_message(channel, parts)
        self._is_receiving = False

    def _wants_input(self, channel: Channel) -> bool:
        if channel is Channel.IOPUB:
            return len(self._waiting[channel]) < MAX_WAITING_WELCOMES
        return self._may_read(channel)

    def _recheck(self, channel: Channel) -> None:
        """Schedule another call for a socket that is still readable; its descriptor stays silent.

        Reading EVENTS also consumes the event that a queue has room again. So waiting messages are
        tried after it.
        """
        if not self._sockets:
            return
        readable = self._readable(self._sockets[channel])
        if self._waiting[channel]:
            self._send_waiting(channel)
        if not readable or not self._wants_input(channel):
            return
        scheduled = self._scheduled.pop(channel, None)
        if scheduled is not None:
            scheduled.cancel()
        self._scheduled[channel] = self._loop.call_soon(self._run_scheduled, channel)

    @staticmethod
    def _readable(socket: zmq.Socket[bytes]) -> bool:
        events = socket.getsockopt(zmq.EVENTS)
        return bool(isinstance(events, int) and events & zmq.POLLIN)

    def _update_topics(self, frame: Part) -> None:
        """Report the first subscription to a topic only, as ipykernel's XPUB socket does.

        All subscribers of a topic get the welcome message, and some cannot handle a message
        without a parent (kernel gateway's notebook-http mode).
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
        """Close all sockets and drop waiting messages. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._close_sockets()
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        for waiting in self._waiting.values():
            while waiting:
                on_sent = waiting.popleft()[1]
                if on_sent is not None:
                    on_sent()
        self._names.remove()


def _send(socket: zmq.Socket[bytes], parts: list[Part]) -> None:
    """Send a whole message, or raise zmq.Again. Large parts are not copied where possible."""
    try:
        frames = [zmq.Frame(part, copy=False) if len(part) > VIEW_ABOVE else part for part in parts]
    except (zmq.ZMQError, OSError, RuntimeError):  # no descriptors left, or the process exits
        socket.send_multipart(parts, zmq.NOBLOCK)
        return
    socket.send_multipart(frames, zmq.NOBLOCK, copy=False)


def _destination(parts: list[Part]) -> bytes:
    """Return the identity of a message's client, at most 255 bytes, as ZMQ has it."""
    return bytes(parts[0][:255])
