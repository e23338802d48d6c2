"""The relay: bytes pass whole and in order, a slow reader stalls, an end is passed on."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from gvisor_kernel.node.serve import Inlet, Lane


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    """A pipe into the lane, and one out of it."""
    fds = (*os.pipe(), *os.pipe())
    yield fds
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def pump(lane: Lane) -> None:
    """Move until nothing is ready."""
    while lane.open:
        poller = select.poll()
        poller.register(*lane.waits_for)
        if not poller.poll(0):
            return
        lane.move()


def make_lane(source: int, target: int) -> Lane:
    return Lane(source, target)


def make_inlet(source: int, target: int) -> Lane:
    return Inlet(source, target, b"never said")


Make = Callable[[int, int], Lane]
both = pytest.mark.parametrize("make", [make_lane, make_inlet])


def test_word_is_not_passed_on(pipes: tuple[int, int, int, int]) -> None:
    read, write, out, into = pipes
    lane = Inlet(read, into, b"word\n")
    for said in (b"word", b"word\n", b"abcword\ndef"):
        os.write(write, said)
        pump(lane)
        assert lane.asked == (said != b"word")
    os.write(write, b"word\nword\n")  # asked for, and given up before it was read
    pump(lane)
    assert not lane.asked
    os.write(write, b"ghi")
    pump(lane)
    assert os.read(out, 100) == b"wordabcdefghi"


@both
def test_bytes_pass_in_order(pipes: tuple[int, int, int, int], make: Make) -> None:
    read, write, out, into = pipes
    lane = make(read, into)
    data = os.urandom(50_000)
    os.write(write, data)
    pump(lane)
    assert os.read(out, 100_000) == data


@both
def test_slow_reader_stalls_and_loses_nothing(pipes: tuple[int, int, int, int], make: Make) -> None:
    read, write, out, into = pipes
    lane = make(read, into)
    os.set_blocking(write, False)
    os.set_blocking(out, False)
    data = os.urandom(1 << 20)
    sent, received = 0, b""
    while len(received) < len(data):
        if sent < len(data):
            try:
                sent += os.write(write, data[sent : sent + 4096])
            except BlockingIOError:
                assert lane.waits_for == (into, select.POLLOUT)
                received += os.read(out, 8192)
        else:
            received += os.read(out, 8192)
        pump(lane)
    assert received == data


@both
def test_end_of_the_source_is_noticed(pipes: tuple[int, int, int, int], make: Make) -> None:
    read, write, out, into = pipes
    lane = make(read, into)
    os.write(write, b"last")
    os.close(write)
    pump(lane)
    assert not lane.open
    lane.end_target()
    assert os.read(out, 100) == b"last"
    assert os.read(out, 100) == b""


@both
def test_reader_that_is_gone_is_noticed(pipes: tuple[int, int, int, int], make: Make) -> None:
    read, write, out, into = pipes
    lane = make(read, into)
    os.close(out)
    os.write(write, b"x")
    pump(lane)
    assert not lane.open


def test_one_end_may_be_a_socket(pipes: tuple[int, int, int, int]) -> None:
    """As under sshd and slurmstepd."""
    _, _, out, into = pipes
    here, there = socket.socketpair()
    with here, there:
        lane = Lane(here.fileno(), into)
        there.sendall(b"hello")
        pump(lane)
        assert os.read(out, 100) == b"hello"
        there.close()
        pump(lane)
        assert not lane.open
