"""The engine's stream: split at any piece size, stalled by a slow reader, ended once."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.runtimes.docker.stream import (
    MAX_FRAME,
    STDERR,
    STDOUT,
    Demultiplexer,
    Pumps,
    StreamError,
)

from ..patience import scale_seconds

SECONDS = scale_seconds(30)
Frames = list[tuple[int, bytes]]

frames = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=300)))


def encode(parts: Frames) -> bytes:
    return b"".join(bytes([kind, 0, 0, 0]) + len(data).to_bytes(4) + data for kind, data in parts)


def take_apart(pieces: list[bytes]) -> dict[int, bytes]:
    reader = Demultiplexer()
    found = {STDOUT: b"", STDERR: b""}
    for piece in pieces:
        for kind, data in reader.receive(piece):
            found[kind] += data
    return found


@given(frames, st.integers(1, 40))
def test_stream_is_split_at_any_piece_size(parts: Frames, size: int) -> None:
    stream = encode(parts)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    wanted = {
        kind: b"".join(data for which, data in parts if which == kind) for kind in (STDOUT, STDERR)
    }
    assert take_apart([stream]) == take_apart(pieces) == wanted


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_error_or_a_stream(data: bytes) -> None:
    reader = Demultiplexer()
    try:
        given_out = sum(len(piece) for _, piece in reader.receive(data))
    except StreamError:
        return
    assert given_out <= len(data)


@pytest.mark.parametrize(
    "header",
    [
        b"\0\0\0\0\0\0\0\1",  # stdin, which engines do not send
        b"\3\0\0\0\0\0\0\1",  # an error of the engine itself
        b"\1\0\0\1\0\0\0\1",
        b"\1\0\0\0" + (MAX_FRAME + 1).to_bytes(4),
        b"\1\0\0\0\xff\xff\xff\xff",
        b"HTTP/1.1",
    ],
)
def test_malformed_header_is_an_error(header: bytes) -> None:
    with pytest.raises(StreamError, match="instead of a frame"):
        list(Demultiplexer().receive(header))


def test_large_frame_is_yielded_in_pieces() -> None:
    reader = Demultiplexer()
    assert not list(reader.receive(b"\1\0\0\0" + MAX_FRAME.to_bytes(4)))
    assert [(kind, bytes(data)) for kind, data in reader.receive(b"abc")] == [(STDOUT, b"abc")]


class Ends:
    """The container's side of the pumps, and the host's side."""

    def __init__(self) -> None:
        self.stdin, theirs_in = socket.socketpair()
        self.output, theirs_out = socket.socketpair()
        guest_in, self.link_in = os.pipe()
        self.link_out, guest_out = os.pipe()
        self.stderr, guest_stderr = os.pipe()
        self.ended = threading.Semaphore(0)
        self.pumps = Pumps(
            stdin=theirs_in,
            output=theirs_out,
            link_in=guest_in,
            link_out=guest_out,
            stderr=guest_stderr,
            ended=self.ended.release,
        )

    def read(self, fd: int, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
        return data

    def close(self) -> None:
        self.pumps.close(SECONDS)
        for sock in (self.stdin, self.output):
            sock.close()
        for fd in (self.link_in, self.link_out, self.stderr):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("gvisor-kernel-docker")]


def test_both_directions_are_copied(ends: Ends) -> None:
    os.write(ends.link_in, b"to the kernel")
    assert ends.stdin.recv(100) == b"to the kernel"
    ends.output.sendall(encode([(STDOUT, b"out"), (STDERR, b"err"), (STDOUT, b"more")]))
    assert ends.read(ends.link_out, 7) == b"outmore"
    assert ends.read(ends.stderr, 3) == b"err"
    assert not ends.ended.acquire(blocking=False)


def close_container(ends: Ends) -> None:
    ends.output.close()


def send_garbage(ends: Ends) -> None:
    ends.output.sendall(b"garbage!")


def stop_pumps(ends: Ends) -> None:
    ends.pumps.stop()


@pytest.mark.parametrize("end", [close_container, send_garbage, stop_pumps])
def test_end_is_reported_once_and_closes_everything(
    ends: Ends, end: Callable[[Ends], None]
) -> None:
    end(ends)
    assert ends.ended.acquire(timeout=SECONDS)
    assert ends.read(ends.link_out, 1) == b""
    assert ends.read(ends.stderr, 1) == b""
    assert ends.stdin.recv(1) == b"", "the container's stdin is still open"
    ends.pumps.close(SECONDS)
    assert not ends.ended.acquire(blocking=False)


def test_closing_link_in_closes_the_containers_stdin(ends: Ends) -> None:
    os.close(ends.link_in)
    ends.link_in = -1
    assert ends.stdin.recv(1) == b""


def test_reader_that_stops_stalls_the_container(ends: Ends) -> None:
    """Nothing is buffered except in pipes and sockets."""
    frame = encode([(STDOUT, bytes(32768))])
    ends.output.setblocking(False)
    sent = 0
    while select.select([], [ends.output], [], 0.5)[1]:
        sent += ends.output.send(frame[sent % len(frame) :])
        assert sent < 16 * 1024 * 1024
    whole = sent // len(frame) * 32768
    assert len(ends.read(ends.link_out, whole)) == whole


def test_stop_works_while_the_container_is_stalled(ends: Ends) -> None:
    stream = encode([(STDOUT, bytes(1024 * 1024))])
    sender = threading.Thread(target=send_all, args=(ends.output, stream))
    sender.start()
    assert ends.read(ends.link_out, 1) == b"\0"
    ends.pumps.stop()
    assert ends.ended.acquire(timeout=SECONDS)
    sender.join(SECONDS)
    assert not sender.is_alive()


def send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)
