"""The port on which programs reach the host's routes: PID 1 accepts, and carries bytes only.

Each connection becomes a stream of the link. What the bytes say is the host's matter. In a run
without egress each connection is answered here (``refusals``), and no frame is sent.

A kernel is hostile, and PID 1 has one thread. So there are at most MAX_STREAMS connections, each
holds a window of bytes at most, one turn of the loop moves at most TURN_BYTES, and nothing is read
from programs while QUEUE_BYTES wait for the host.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from contextlib import suppress

from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.refusals import NO_EGRESS, Refusals
from gvisor_kernel.link import Connection
from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import (
    EGRESS_PORT,
    MAX_STREAMS,
    Finished,
    Granted,
    Received,
    Reset,
    StreamEvent,
    Streams,
)

TURN_BYTES = 256 * 1024
"""Bytes that one turn of PID 1's loop reads from programs. Messages wait for no more."""
TURN_ACCEPTS = 16
"""Connections that one turn accepts."""
TURN_READY = 64
"""Connections that one turn looks at. Those that are left are ready in the next turn too."""
READ_SIZE = 64 * 1024
QUEUE_BYTES = 256 * 1024
"""Bytes that wait for the host above which nothing is read from programs."""
HANDED_BYTES = 64 * 1024
"""Bytes of frames that are given to the link at once: the rest can still be ordered anew."""
LISTEN_BACKLOG = 128

_LINGER_RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which a close resets the connection."""


class _Client:
    """A program's connection, and what waits for the program to read it."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.connection = connection
        self.number = number
        self.out = bytearray()
        self.reading = False
        """Registered for reading. It is not while the stream has no credit."""
        self.writing = False
        """Registered for writing."""
        self.read_all = False
        """The program has shut down its side."""
        self.got_all = False
        """The host sends no more."""


class EgressListener:
    """The listener and its connections, from ``start`` to ``stop`` of each run.

    ``turn`` is called when ``reader`` or ``writer`` is ready, ``pump`` before the link is written.
    """

    def __init__(self, connection: Connection, log: GuestLog) -> None:
        self._connection = connection
        self._log = log
        self._listener: socket.socket | None = None
        self._listening = False
        """The listener is registered for reading: there is room for a connection."""
        self._readers = select.epoll()
        self._writers = select.epoll()
        self._refusals = Refusals(self._readers, log.tell_refusal)
        self._refusal = NO_EGRESS
        self._clients: dict[int, _Client] = {}
        """The connections by descriptor."""
        self._by_number: dict[int, _Client] = {}
        self._filled: dict[int, None] = {}
        """Numbers of streams with bytes of this turn for their programs."""
        self._ready: deque[int] = deque()
        """Descriptors that were ready at the last look, and are next in turn."""
        self._streams: Streams | None = None
        """None in a run without egress."""

    # -- a run -----------------------------------------------------------------------------------

    def start(self, allowed: bool, refusal: str = NO_EGRESS) -> None:
        """Listen, before the kernel of a run exists. ``allowed``: the run has egress.

        ``refusal``: the status of all answers in a run without.
        """
        self.stop()
        self._refusal = refusal
        self._streams = Streams(Role.GUEST) if allowed else None
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", EGRESS_PORT))
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            listener.close()
            self._log.write_limited(
                f"The port {EGRESS_PORT} for egress cannot be opened: {error}. Packages and APIs"
                " cannot be reached in this run.\n"
            )
            return
        listener.setblocking(False)
        self._listener = listener
        self._update_listening()

    def stop(self) -> None:
        """Close the listener and all connections: the run is over."""
        self._close_all()
        self._streams = None
        self._refusals.close()
        if self._listener is not None:
            self._listener.close()
        self._listener, self._listening = None, False

    def end_streams(self) -> None:
        """Reset all connections, as the host has: its process for them has ended, perhaps.

        Later connections are streams of the next one.
        """
        if self._streams is not None:
            self._close_all()
            self._streams = Streams(Role.GUEST)
            self._connection.renew_streams()
            self._update_listening()

    def _close_all(self) -> None:
        self._filled.clear()
        for client in tuple(self._clients.values()):
            self._close(client, reset=True)

    # -- waiting ---------------------------------------------------------------------------------

    @property
    def descriptors(self) -> list[int]:
        """The descriptors to poll for reading."""
        writer = self._writers.fileno()
        return [writer] if self._is_full else [self._readers.fileno(), writer]

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds until ``turn`` must be called without an event; None: never."""
        return self._refusals.wait_ms

    @property
    def busy(self) -> bool:
        """Return whether frames wait for the host, so that the sandbox is not idle."""
        waits = self._streams is not None and self._streams.has_data_to_send
        return waits or bool(self._connection.queued_streams)

    @property
    def _is_full(self) -> bool:
        return self._streams is not None and self._streams.queued >= QUEUE_BYTES

    # -- to the host -----------------------------------------------------------------------------

    def turn(self, ready: dict[int, int]) -> None:
        """Move a bounded number of bytes of the connections that are ready."""
        filled, self._filled = self._filled, {}
        for number in filled:  # once for all frames of a read: a system call is dear in a sandbox
            client = self._by_number.get(number)
            if client is not None and not client.writing:
                self._write(client)
        if self._writers.fileno() in ready:
            for fd, _ in self._writers.poll(0, TURN_READY):
                if fd in self._clients:
                    self._write(self._clients[fd])
        if self._readers.fileno() in ready:
            self._read_some()
        self._refusals.expire(self._refusal)
        self._update_listening()

    def pump(self) -> None:
        """Give the link frames, as many as it takes now."""
        streams = self._streams
        while streams is not None and streams.has_data_to_send:
            space = HANDED_BYTES - self._connection.queued_streams
            frames = streams.data_to_send(min(space, self._connection.stream_room))
            if not frames:
                return
            self._connection.divert_stream(frames)

    def _read_some(self) -> None:
        budget = TURN_BYTES
        if not self._ready:
            self._ready.extend(fd for fd, _ in self._readers.poll(0, TURN_READY))
        while self._ready and budget > 0 and not self._is_full:
            fd = self._ready.popleft()
            if fd in self._clients:
                budget -= self._read(self._clients[fd])
            elif fd in self._refusals:
                budget -= self._refusals.read(fd, self._refusal)
            elif self._listener is not None and fd == self._listener.fileno():
                self._accept()

    def _accept(self) -> None:
        for _ in range(TURN_ACCEPTS):
            if self._listener is None or not self._has_room:
                return
            try:
                connection, _ = self._listener.accept()
            except OSError:  # none waits any more
                return
            connection.setblocking(False)
            if self._streams is None:
                self._refusals.add(connection)
                continue
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = _Client(connection, self._streams.open())
            self._clients[connection.fileno()] = client
            self._by_number[client.number] = client
            self._update_reading(client)

    @property
    def _has_room(self) -> bool:
        if self._streams is None:
            return not self._refusals.full
        return len(self._clients) < MAX_STREAMS and self._streams.can_open

    def _update_listening(self) -> None:
        """Watch the listener only while a connection can be accepted."""
        if self._listener is None or self._listening == self._has_room:
            return
        self._listening = not self._listening
        if self._listening:
            self._readers.register(self._listener.fileno(), select.EPOLLIN)
        else:
            self._readers.unregister(self._listener.fileno())

    def _read(self, client: _Client) -> int:
        """Read once; return the number of bytes."""
        assert self._streams is not None
        size = min(READ_SIZE, self._streams.sendable(client.number))
        if not size:
            self._update_reading(client)
            return 0
        try:
            data = client.connection.recv(size)
        except BlockingIOError:
            return 0
        except OSError:
            self._lose(client)
            return 0
        if data:
            self._streams.send(client.number, data)
        else:
            client.read_all = True
            self._streams.finish(client.number)
        self._update_reading(client)
        self._close_if_done(client)
        return len(data)

    def _update_reading(self, client: _Client) -> None:
        """Watch a connection only while bytes of it can be sent.

        A poll reports errors and hang-ups always, so that watching it would keep PID 1 busy.
        """
        assert self._streams is not None
        wanted = not client.read_all and self._streams.sendable(client.number) > 0
        if wanted != client.reading:
            client.reading = wanted
            if wanted:
                self._readers.register(client.connection.fileno(), select.EPOLLIN)
            else:
                self._readers.unregister(client.connection.fileno())

    # -- from the host ---------------------------------------------------------------------------

    def receive(self, frames: bytes) -> None:
        """Handle frames of the host.

        :raises RemoteProtocolError: when they violate the protocol
        """
        if self._streams is not None:
            for event in self._streams.receive_data(frames):
                self._handle(event)

    def _handle(self, event: StreamEvent) -> None:
        client = self._by_number.get(event.stream)
        if client is None:
            return
        if isinstance(event, Received):
            client.out += event.data
            self._filled[client.number] = None
        elif isinstance(event, Granted):
            self._update_reading(client)
        elif isinstance(event, Finished):
            client.got_all = True
            if not client.out:
                self._shut_down(client)
        elif isinstance(event, Reset):
            self._close(client, reset=True)

    def _write(self, client: _Client) -> None:
        """Write what the program's socket accepts. The host is granted as much again."""
        assert self._streams is not None
        try:
            written = client.connection.send(client.out)
        except BlockingIOError:
            written = 0
        except OSError:
            self._lose(client)
            return
        del client.out[:written]
        self._streams.consumed(client.number, written)
        if client.writing != bool(client.out):
            client.writing = not client.writing
            if client.writing:
                self._writers.register(client.connection.fileno(), select.EPOLLOUT)
            else:
                self._writers.unregister(client.connection.fileno())
        if client.got_all and not client.out:
            self._shut_down(client)

    def _shut_down(self, client: _Client) -> None:
        """Tell the program that the host sends no more."""
        with suppress(OSError):  # the program has reset the connection, which a read shows
            client.connection.shutdown(socket.SHUT_WR)
        self._close_if_done(client)

    # -- ends ------------------------------------------------------------------------------------

    def _lose(self, client: _Client) -> None:
        """Handle the loss of a connection: the program has reset it."""
        assert self._streams is not None
        self._streams.reset(client.number)
        self._close(client, reset=True)

    def _close_if_done(self, client: _Client) -> None:
        if client.read_all and client.got_all and not client.out:
            self._close(client, reset=False)

    def _close(self, client: _Client, reset: bool) -> None:
        fd = client.connection.fileno()
        del self._clients[fd], self._by_number[client.number]
        if client.reading:
            self._readers.unregister(fd)
        if client.writing:
            self._writers.unregister(fd)
        if reset:
            with suppress(OSError):
                client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        client.connection.close()
        self._update_listening()
