"""PID 1's port for egress without a sandbox: connections, streams, and what a kernel may try.

The sockets are real, the host is an end of the link in this process.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from gvisor_kernel.egress.environment import no_egress_environment
from gvisor_kernel.guest import egress_listener, refusals
from gvisor_kernel.guest.egress_listener import EgressListener
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.link import Log, StreamFrames, StreamsEnded
from gvisor_kernel.link.state import Role, State
from gvisor_kernel.link.streams import (
    DOWN_WINDOW,
    MAX_STREAMS,
    STREAM_WINDOW,
    Finished,
    Opened,
    Received,
    StreamEvent,
    Streams,
)

from ..link.helpers import connection_in

TURNS = 2000
"""Turns of the loop after which a test gives up."""


class Port:
    """PID 1's part, and the host's two parts: its end of the link and that of the streams."""

    def __init__(self, allowed: bool = True) -> None:
        self.host = connection_in(Role.HOST, State.RUNNING)
        self.guest = connection_in(Role.GUEST, State.RUNNING)
        self.streams = Streams(Role.HOST)
        self.events: list[StreamEvent] = []
        self.logged = ""
        self.passes = True
        """The host passes frames on."""
        self.egress = EgressListener(self.guest, GuestLog(self.guest))
        self.egress.start(allowed)
        self.clients: list[socket.socket] = []

    @property
    def address(self) -> tuple[str, int]:
        assert self.egress._listener is not None
        host, number = self.egress._listener.getsockname()
        return host, number

    @property
    def held(self) -> list[Any]:
        """The connections that PID 1 holds, with what waits for their programs."""
        return list(self.egress._clients.values())

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.address, timeout=10)
        client.setblocking(False)
        self.turn()
        self.clients.append(client)
        return client

    def turn(self, wait: int = 0) -> None:
        poller = select.poll()
        for fd in self.egress.descriptors:
            poller.register(fd, select.POLLIN)
        self.egress.turn(dict(poller.poll(wait)))
        self.egress.pump()
        self.host.receive_data(self.guest.data_to_send())
        for event in iter(self.host.next_event, None):
            if isinstance(event, StreamFrames):
                self.events += self.streams.receive_data(event.frames)
                if self.passes:
                    self.host.passed_on(len(event.frames))
            elif isinstance(event, StreamsEnded):
                self.streams = Streams(Role.HOST)
            elif isinstance(event, Log):
                self.logged += event.text
        if self.host.stream_room:
            self.host.divert_stream(self.streams.data_to_send(64 * 1024))
        self.guest.receive_data(self.host.data_to_send())
        for event in iter(self.guest.next_event, None):
            if isinstance(event, StreamFrames):
                self.egress.receive(event.frames)
            elif isinstance(event, StreamsEnded):
                self.egress.end_streams()

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(TURNS):
            if done():
                return
            self.turn(wait=1)
        raise AssertionError("nothing more happened")

    def bytes_of(self, number: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events
            if isinstance(event, Received) and event.stream == number
        )

    def close(self) -> None:
        self.egress.stop()
        for client in self.clients:
            client.close()
        self.egress._readers.close()
        self.egress._writers.close()


@pytest.fixture
def any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_listener, "EGRESS_PORT", 0)


@pytest.fixture
def port(any_number: None) -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


@pytest.fixture
def closed_port(any_number: None) -> Iterator[Port]:
    """Return a port whose run has no egress."""
    port = Port(allowed=False)
    port.egress.start(False, refusals.find_status(no_egress_environment()))
    yield port
    port.close()


class Reader:
    """Collects what a client receives, without blocking."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.data = b""
        self.ended = False
        self.error = 0

    def __call__(self) -> bool:
        """Read what is there; return whether the connection has ended."""
        try:
            while not self.ended:
                data = self.client.recv(1 << 20)
                self.data += data
                self.ended = not data
        except BlockingIOError:
            pass
        except OSError as error:
            self.ended, self.error = True, error.errno or 0
        return self.ended


def test_connection_becomes_a_stream(port: Port) -> None:
    client = port.connect()
    client.send(b"question")
    port.until(lambda: port.bytes_of(1) == b"question")
    port.streams.send(1, b"answer")
    reader = Reader(client)
    port.until(lambda: reader() or reader.data == b"answer")
    assert reader.data == b"answer"
    assert port.events[0] == Opened(1)


def test_program_that_never_reads_is_bounded(port: Port) -> None:
    port.connect()
    port.until(lambda: bool(port.events))
    sent = 0
    for _ in range(300):
        room = port.streams.sendable(1)
        port.streams.send(1, bytes(room))
        sent += room
        port.turn()
    (client,) = port.held
    assert len(client.out) <= DOWN_WINDOW
    assert port.streams.sendable(1) == 0
    before = sent
    for _ in range(50):
        port.turn()
    assert port.streams.sendable(1) == 0
    assert sent == before


def test_one_that_never_reads_does_not_slow_another(port: Port) -> None:
    port.connect()
    other = port.connect()
    port.until(lambda: len(port.events) == 2)
    for _ in range(100):
        port.streams.send(1, bytes(port.streams.sendable(1)))
        port.turn()
    port.streams.send(2, b"answer")
    reader = Reader(other)
    port.until(lambda: reader() or bool(reader.data))
    assert reader.data == b"answer"


def test_program_that_floods_waits_for_the_host(port: Port) -> None:
    """Neither the window of its stream nor what waits for the host is exceeded."""
    port.passes = False
    flooding = [port.connect() for _ in range(20)]
    for _ in range(300):
        for client in flooding:
            try:
                client.send(bytes(1 << 16))
            except BlockingIOError:
                continue
        port.turn()
        assert port.egress._streams is not None
        assert (
            port.egress._streams.queued <= egress_listener.QUEUE_BYTES + egress_listener.READ_SIZE
        )
    arrived = sum(len(port.bytes_of(number)) for number in range(1, 21))
    assert 0 < arrived <= 256 * 1024
    assert port.egress.busy


def test_no_stream_starves_while_others_flood(port: Port) -> None:
    flooding = [port.connect() for _ in range(100)]
    port.until(lambda: len(port.events) == 100)
    counts = dict.fromkeys(range(1, 101), 0)

    def flood() -> bool:
        for client in flooding:
            try:
                client.send(bytes(1 << 14))
            except BlockingIOError:
                continue
        for number in counts:
            size = len(port.bytes_of(number))
            port.streams.consumed(number, size - counts[number])
            counts[number] = size
        return min(counts.values()) > 0

    port.until(flood)


def test_one_turn_reads_a_bounded_number_of_bytes(port: Port) -> None:
    clients = [port.connect() for _ in range(60)]
    port.until(lambda: len(port.events) == 60)
    for client in clients:
        client.send(bytes(1 << 16))
    before = sum(map(len, map(port.bytes_of, range(1, 61))))
    port.turn(wait=100)
    after = sum(map(len, map(port.bytes_of, range(1, 61))))
    assert after - before <= egress_listener.TURN_BYTES + egress_listener.READ_SIZE


def test_no_more_connections_than_streams_are_accepted(port: Port) -> None:
    for _ in range(MAX_STREAMS + 20):
        port.connect()
    port.until(lambda: len(port.events) == MAX_STREAMS)
    for _ in range(20):
        port.turn(wait=1)
    assert len(port.held) == MAX_STREAMS
    port.clients[0].close()
    port.until(lambda: Finished(1) in port.events)
    port.streams.finish(1)
    port.until(lambda: Opened(MAX_STREAMS + 1) in port.events)


def test_connections_whose_streams_are_over_count_until_they_are_read(port: Port) -> None:
    """The bytes of a program that does not read are held, whatever became of its stream."""
    for _ in range(MAX_STREAMS):
        client = socket.socket()
        port.clients.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(port.address)
        client.shutdown(socket.SHUT_WR)
        port.turn()
    port.until(lambda: sum(isinstance(e, Finished) for e in port.events) == MAX_STREAMS)
    for held in port.held:
        held.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for number in range(1, MAX_STREAMS + 1):
        port.streams.send(number, bytes(STREAM_WINDOW))
    for number in range(1, MAX_STREAMS + 1):
        port.streams.finish(number)
    for _ in range(2000):
        port.turn()
        if not port.streams.has_data_to_send:
            break
    assert port.streams.open_count < MAX_STREAMS
    assert len(port.held) == MAX_STREAMS
    for _ in range(20):
        port.connect()
    assert len(port.held) == MAX_STREAMS


def test_idle_streams_do_not_keep_the_loop_busy(port: Port) -> None:
    for _ in range(50):
        port.connect()
    port.until(lambda: len(port.events) == 50)
    assert not port.egress.busy
    assert port.egress.wait_ms is None
    poller = select.poll()
    for fd in port.egress.descriptors:
        poller.register(fd, select.POLLIN)
    assert poller.poll(50) == []


def test_ended_connections_do_not_keep_the_loop_busy(port: Port) -> None:
    """A hang-up is reported for ever, also of a connection of which nothing can be sent."""
    port.passes = False
    client = port.connect()
    for _ in range(200):
        with suppress(BlockingIOError):
            client.send(bytes(1 << 16))
        port.turn()
    client.close()
    port.turn(wait=1)
    poller = select.poll()
    for fd in port.egress.descriptors:
        poller.register(fd, select.POLLIN)
    assert poller.poll(50) == []


def test_thousands_of_connections_do_no_harm(port: Port) -> None:
    for count in range(1, 2001):
        client = socket.create_connection(port.address, timeout=10)
        client.close()
        port.turn()
        if count % 10 == 0:
            for event in port.events:
                if isinstance(event, Finished):
                    port.streams.finish(event.stream)
            port.events.clear()
    client = port.connect()
    client.send(b"still there")
    port.until(lambda: any(isinstance(event, Received) for event in port.events))


def test_end_of_the_run_closes_everything(port: Port) -> None:
    client = port.connect()
    address = port.address
    port.until(lambda: bool(port.events))
    port.egress.stop()
    assert Reader(client)()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)
    port.egress.start(True)
    assert not port.held


def test_end_of_all_streams_resets_and_begins_again(port: Port) -> None:
    client = port.connect()
    port.until(lambda: bool(port.events))
    port.host.end_streams()
    reader = Reader(client)
    port.until(reader)
    assert reader.error == errno.ECONNRESET
    port.connect()
    port.until(lambda: len(port.events) > 1)
    assert port.events == [Opened(1), Opened(1)]


def test_port_in_use_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        monkeypatch.setattr(egress_listener, "EGRESS_PORT", holder.getsockname()[1])
        port = Port()
        port.turn()
        port.close()
    assert "for egress cannot be opened" in port.logged


# -- without egress ------------------------------------------------------------------------------


def ask(port: Port, request: bytes) -> Reader:
    client = port.connect()
    client.send(request)
    reader = Reader(client)
    port.until(reader)
    return reader


REQUESTS = {
    "origin form": b"GET /simple/x/ HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n",
    "absolute form": b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.0\n\n",
    "a body": b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000),
    "a head without end": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000,
    "no text": bytes(refusals.MAX_HEAD),
}


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS)
def test_each_request_is_told_why(closed_port: Port, request_bytes: bytes) -> None:
    reader = ask(closed_port, request_bytes)
    head, _, body = reader.data.partition(b"\r\n\r\n")
    assert head.startswith(
        b"HTTP/1.1 403 This kernel has no network; for packages, type on the host: gvisor-kernel"
        b" install --update --egress packages; then shut it down and start it\r\n"
    )
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Connection: close" in head
    assert b"install --update --egress packages" in body
    assert b"docs/egress.md" in body
    assert reader.error == 0
    assert closed_port.events == []
    assert not closed_port.guest.queued_streams


def test_client_that_half_closes_is_told(closed_port: Port) -> None:
    client = closed_port.connect()
    client.shutdown(socket.SHUT_WR)
    reader = Reader(client)
    closed_port.until(reader)
    assert b"403" in reader.data


def test_silent_client_is_told_after_a_while(
    closed_port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "DEADLINE_SECONDS", 0.05)
    client = closed_port.connect()
    closed_port.until(lambda: closed_port.egress.wait_ms is not None)
    wait = closed_port.egress.wait_ms
    assert wait is not None
    assert wait <= 51
    reader = Reader(client)
    end = time.monotonic() + 10
    while not reader() and time.monotonic() < end:
        closed_port.turn(wait=closed_port.egress.wait_ms or 0)
    assert b"403" in reader.data
    assert closed_port.egress.wait_ms is None


def test_endless_body_ends_the_connection(closed_port: Port) -> None:
    client = closed_port.connect()
    client.send(b"PUT / HTTP/1.1\r\n\r\n")
    sent = 0
    for _ in range(3000):
        try:
            sent += client.send(bytes(1 << 14))
        except BlockingIOError:
            pass
        except OSError:
            break
        closed_port.turn()
    else:
        raise AssertionError("the connection was never closed")
    assert sent < 30 << 20


def test_silent_clients_wait_their_turn(closed_port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [closed_port.connect() for _ in range(refusals.MAX_REFUSALS + 10)]
    readers = [Reader(client) for client in clients]
    closed_port.until(lambda: closed_port.egress._refusals.full)
    assert not closed_port.egress._listening
    monkeypatch.setattr(refusals, "DEADLINE_SECONDS", 0.05)
    for refusal in closed_port.egress._refusals._refusals.values():
        refusal.deadline = 0.0
    end = time.monotonic() + 20
    while not all(reader() for reader in readers) and time.monotonic() < end:
        closed_port.turn(wait=10)
    assert all(b"403" in reader.data for reader in readers)
