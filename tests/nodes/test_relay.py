"""The relay: bytes pass whole and in order, a slow reader stalls, an end is passed on."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest

from gvisor_kernel.node.serve import Lane


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


def test_bytes_pass_in_order(pipes: tuple[int, int, int, int]) -> None:
    read, write, out, into = pipes
    lane = Lane(read, into)
    data = os.urandom(50_000)
    os.write(write, data)
    pump(lane)
    assert os.read(out, 100_000) == data


def test_slow_reader_stalls_and_loses_nothing(pipes: tuple[int, int, int, int]) -> None:
    read, write, out, into = pipes
    lane = Lane(read, into)
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


def test_end_of_the_source_is_noticed(pipes: tuple[int, int, int, int]) -> None:
    read, write, out, into = pipes
    lane = Lane(read, into)
    os.write(write, b"last")
    os.close(write)
    pump(lane)
    assert not lane.open
    lane.end_target()
    assert os.read(out, 100) == b"last"
    assert os.read(out, 100) == b""


def test_reader_that_is_gone_is_noticed(pipes: tuple[int, int, int, int]) -> None:
    read, write, out, into = pipes
    lane = Lane(read, into)
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
