"""PID 1's ZMTP against libzmq: messages of a kernel's sockets, and garbage."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.guest import relay as relay_module
from gvisor_kernel.guest.relay import SOCKET_TYPES, Relay, RelayConnection
from gvisor_kernel.guest.zmtp import GREETING, ZmtpConnection, ZmtpError
from gvisor_kernel.link import Channel

from ..patience import scale_seconds

SECONDS = scale_seconds(10)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


def receive(connection: RelayConnection, count: int) -> list[list[bytes]]:
    """Receive from one connection until there are ``count`` messages."""
    messages: list[list[bytes]] = []
    while len(messages) < count:
        events = select.POLLIN | (select.POLLOUT if connection.wants_to_write else 0)
        poller = select.poll()
        poller.register(connection.fileno(), events)
        assert poller.poll(SECONDS * 1000), "nothing came"
        connection.flush()
        messages += connection.receive()
    return messages


def finish_handshake(connection: RelayConnection) -> None:
    while not connection.was_open:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        assert poller.poll(SECONDS * 1000)
        assert connection.receive() == []


MESSAGES = [
    [b""],
    [b"x", b"", b"y"],
    [b"a" * 255, b"b" * 256],
    [bytes(5_000_000), b"end"],
    [bytes([n % 256]) for n in range(1000)],
]


def test_router_receives_and_returns_all_messages(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with context.socket(zmq.ROUTER) as router:
        router.rcvtimeo = int(SECONDS * 1000)
        router.bind(f"ipc://{path}")
        connection = RelayConnection(str(path), "DEALER", b"me")
        connection.connect()
        connection.send([b"early"])  # before the handshake
        finish_handshake(connection)
        assert router.recv_multipart() == [b"me", b"early"]
        for parts in MESSAGES:
            connection.send(parts)
            while connection.wants_to_write:
                select.select([], [connection], [], SECONDS)
                connection.flush()
            assert router.recv_multipart() == [b"me", *parts]
            router.send_multipart([b"me", *parts])
            assert receive(connection, 1) == [parts]
        connection.close()


@pytest.mark.parametrize("kind", [zmq.PUB, zmq.XPUB])
def test_publisher_is_subscribed_and_drops_nothing(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, kind: int
) -> None:
    path = tmp_path / "s"
    with context.socket(kind) as publisher:
        publisher.sndhwm = 0
        publisher.bind(f"ipc://{path}")
        connection = RelayConnection(str(path), "SUB", b"")
        connection.connect()
        finish_handshake(connection)
        if kind == zmq.XPUB:
            publisher.rcvtimeo = int(SECONDS * 1000)
            assert publisher.recv() == b"\x01"
        else:  # only arriving messages tell that a PUB knows of a subscription
            while True:
                publisher.send(b"are you there")
                if select.select([connection], [], [], 0.01)[0]:
                    connection.receive()
                    break
        for number in range(3000):
            publisher.send_multipart([b"topic", str(number).encode()])
        received = [parts for parts in receive(connection, 3000) if parts != [b"are you there"]]
        received += receive(connection, 3000 - len(received)) if len(received) < 3000 else []
        assert received == [[b"topic", str(number).encode()] for number in range(3000)]
        connection.close()


def test_zmtp_heartbeats_are_answered(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    """A socket with ZMQ_HEARTBEAT_IVL closes the connection to a peer that does not answer."""
    path = tmp_path / "s"
    with context.socket(zmq.ROUTER) as router:
        router.heartbeat_ivl, router.heartbeat_timeout = 20, 2000
        router.rcvtimeo = int(SECONDS * 1000)
        router.bind(f"ipc://{path}")
        connection = RelayConnection(str(path), "DEALER", b"me")
        connection.connect()
        finish_handshake(connection)
        for _ in range(5):  # a PING arrives and is answered
            assert select.select([connection], [], [], SECONDS)[0]
            assert connection.receive() == []
        connection.send([b"still here"])
        assert router.recv_multipart() == [b"me", b"still here"]
        connection.close()


def test_relay_waits_for_a_kernel_that_does_not_listen_yet(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    relay = Relay({channel: f"{tmp_path}/s-{int(channel)}" for channel in SOCKET_TYPES})
    assert relay.finished
    assert not relay.listening
    assert relay.wait_ms == relay_module.CONNECT_MS
    assert relay.send(Channel.SHELL, [b"kept"])
    with context.socket(zmq.ROUTER) as shell:
        shell.rcvtimeo = int(SECONDS * 1000)
        shell.bind(f"ipc://{tmp_path}/s-{int(Channel.SHELL)}")
        relay.connect()
        poller = select.poll()
        for fd, events in relay.poll_events():
            poller.register(fd, events)
        while not relay._connections[Channel.SHELL].was_open:
            assert list(relay.receive(dict(poller.poll(SECONDS * 1000)))) == []
        assert shell.recv_multipart()[1:] == [b"kept"]
        assert not relay.finished
    while not relay.finished:
        list(relay.receive(dict(poller.poll(SECONDS * 1000))))
    relay.close()


def test_connection_that_violates_zmtp_is_closed_with_the_reason(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        connection = RelayConnection(str(tmp_path / "s"), "DEALER", b"me")
        connection.connect()
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert select.select([connection], [], [], SECONDS)[0]
            assert connection.receive() == []
    assert connection.broken == "the peer does not speak ZMTP"
    assert not connection.open
    assert not connection.send([b"x"])


INVALID = {
    "an old version": (GREETING[:10] + b"\x01\x00", "speaks ZMTP 1"),
    "another mechanism": (GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32), "CURVE"),
    "a message before READY": (GREETING + b"\x00\x01x", "before the handshake"),
    "unknown flags": (GREETING + b"\x80\x00", "flags 0x80"),
    "a size without end": (GREETING + b"\x02" + b"\xff" * 8, "announces"),
    "an ERROR": (GREETING + b"\x04\x0b\x05ERROR\x04nope", "sent an ERROR: b'nope'"),
}


@pytest.mark.parametrize(("data", "words"), INVALID.values(), ids=INVALID.keys())
def test_invalid_zmtp_is_refused_with_a_reason(data: bytes, words: str) -> None:
    with pytest.raises(ZmtpError, match=words):
        ZmtpConnection("DEALER").receive_data(data)


READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


@given(st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=4), max_size=4), st.data())
def test_messages_are_received_however_the_bytes_are_cut(
    messages: list[list[bytes]], data: st.DataObject
) -> None:
    sender = ZmtpConnection("ROUTER")
    for parts in messages:
        sender.send(parts)
    stream = sender.data_to_send()
    receiver, received = ZmtpConnection("DEALER"), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += receiver.receive_data(stream[:size])
        stream = stream[size:]
    assert received == messages
    assert receiver.ready


@given(st.binary(max_size=2000), st.booleans())
def test_garbage_raises_only_zmtp_errors(garbage: bytes, greeted: bool) -> None:
    connection = ZmtpConnection("DEALER")
    with suppress(ZmtpError):
        connection.receive_data((GREETING + READY if greeted else b"") + garbage)


def test_ready_has_the_layout_of_libzmq() -> None:
    connection = ZmtpConnection("ROUTER")
    assert connection.data_to_send() == GREETING + READY
    assert len(GREETING) == 64
