"""The bridge's part of the streams: bounds, back pressure, order, and the end of either side.

Pipes and sockets are real; the guest and the process that serves the streams are in the test.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from gvisor_kernel.bridge import link_streams
from gvisor_kernel.bridge.limits import Sharing
from gvisor_kernel.bridge.link_streams import READ_SIZE, OpenEgress
from gvisor_kernel.bridge.sandbox_link import SandboxLink
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.link import (
    Channel,
    Connection,
    Event,
    Exited,
    Hello,
    Message,
    StreamFrames,
    StreamsEnded,
)
from gvisor_kernel.link.backlog import STREAM_BACKLOG
from gvisor_kernel.link.frames import (
    HEADER,
    MAX_STREAM_DATA,
    FrameType,
    encode_bytes,
    encode_short,
)
from gvisor_kernel.link.state import Role, State

from ..link.helpers import START

PIPE = 1024 * 1024
SECONDS = 20.0
TRIM_FRAME = HEADER.size + 4
BLOCK = encode_bytes(1, bytes(MAX_STREAM_DATA))
"""The largest frame of a stream: 32 KiB."""


class FakeSandbox:
    """Two pipes, and a descriptor that never becomes ready."""

    gofer_fd = -1

    def __init__(self) -> None:
        self.guest_in, self.link_in = os.pipe()
        self.link_out, self.guest_out = os.pipe()
        self.exit_fd, self._exit_write = os.pipe()
        for fd in (self.guest_in, self.link_in, self.link_out, self.guest_out):
            os.set_blocking(fd, False)
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE)
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        for fd in (*self.descriptors, self.exit_fd, self._exit_write):
            os.close(fd)

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.guest_in, self.link_in, self.link_out, self.guest_out


class World:
    """A link in a run with egress, its guest, and the other end of the socket."""

    def __init__(self) -> None:
        self.sandbox = FakeSandbox()
        self.events: list[Event] = []
        self.ended = ""
        self.guest = Connection(Role.GUEST, Hello())
        self.guest_events: list[Event] = []
        share = Sharing().add()
        self.link = SandboxLink(
            self.sandbox,  # type: ignore[arg-type]
            self.events.append,
            self._end,
            lambda: None,
            share,
        )
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.far.setblocking(False)
        self.near = near
        self.notes: list[str] = []

    @staticmethod
    def give(*ends: socket.socket) -> OpenEgress:
        """Return what opens ``ends`` one after another, and then fails."""
        left = list(ends)

        async def open_egress() -> socket.socket:
            if not left:
                raise LaunchError("there is no process")
            return left.pop(0)

        return open_egress

    def _end(self, reason: str) -> None:
        self.ended = reason

    def write_guest(self, data: bytes | None = None) -> None:
        """Write what the guest wants to send, or ``data`` instead."""
        data = self.guest.data_to_send() if data is None else data
        if data:
            assert os.write(self.sandbox.guest_out, data) == len(data)

    def read_guest(self, size: int = PIPE) -> int:
        """Read up to ``size`` bytes as the guest; return how many there were."""
        with suppress(BlockingIOError):
            data = os.read(self.sandbox.guest_in, size)
            self.guest.receive_data(data)
            self.guest_events += iter(self.guest.next_event, None)
            return len(data)
        return 0

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not done():
                await asyncio.sleep(0.002)

    def received(self) -> bytes:
        """Take what the process that serves streams can read now."""
        got = bytearray()
        with suppress(BlockingIOError):
            while data := self.far.recv(1 << 20):
                got += data
        return bytes(got)

    async def begin(self) -> None:
        self.write_guest()
        await self.until(lambda: self.link.connection.state is State.IDLE)
        self.link.connection.send(START)
        self.link.streams.carry(self.give(self.near), self.notes.append)
        self.link.flush()
        await self.until(lambda: self.read_guest() >= 0 and self.guest.state is State.RUNNING)
        egress = self.link.streams._egress
        assert egress is not None
        await self.until(lambda: egress._pipe is not None)
        self.guest_events.clear()


@asynccontextmanager
async def linked() -> AsyncIterator[World]:
    world = World()
    try:
        await world.begin()
        yield world
    finally:
        world.link.end("the test is over")
        world.far.close()
        world.sandbox.close()


def test_frames_pass_in_both_directions() -> None:
    async def check() -> None:
        async with linked() as world:
            sent = encode_short(FrameType.OPEN, 1) + encode_bytes(1, b"question")
            world.guest.divert_stream(sent)
            world.write_guest()
            got = bytearray()
            await world.until(lambda: bool(got.extend(world.received()) or len(got) == len(sent)))
            assert got == sent
            answer = encode_bytes(1, b"answer") + encode_short(FrameType.FINISH, 1)
            for index in range(len(answer)):  # the pieces of frames are joined
                world.far.send(answer[index : index + 1])
                await asyncio.sleep(0)
            await world.until(lambda: world.read_guest() >= 0 and len(world.guest_events) == 2)
            frames = [e.frames for e in world.guest_events if isinstance(e, StreamFrames)]
            assert b"".join(frames) == answer

    asyncio.run(check())


def test_process_that_does_not_read_does_not_stop_messages() -> None:
    async def check() -> None:
        async with linked() as world:
            sent = 0
            while world.guest.stream_room >= len(BLOCK):
                world.guest.divert_stream(BLOCK)
                sent += len(BLOCK)
                world.write_guest()
                await asyncio.sleep(0.01)
                world.read_guest()
            assert sent <= STREAM_BACKLOG + 2 * 256 * 1024  # the socket holds some of it
            for _ in range(5):
                world.guest.send_message(Channel.IOPUB, [b"text"])
                world.write_guest()
                await world.until(lambda: any(isinstance(e, Message) for e in world.events))
                world.events.clear()
            got = len(world.received())
            await world.until(lambda: world.read_guest() > 0 and world.guest.stream_room > 0)
            while got < sent:
                await asyncio.sleep(0.002)
                got += len(world.received())
            assert got == sent

    asyncio.run(check())


def test_guest_that_sends_too_much_ends_the_link() -> None:
    async def check() -> None:
        async with linked() as world:
            for _ in range(30):
                with suppress(BlockingIOError):
                    world.write_guest(BLOCK)
                await asyncio.sleep(0.001)
            await world.until(lambda: bool(world.ended))
            assert "left of the backlog" in world.ended
            assert world.sandbox.killed

    asyncio.run(check())


def test_guest_that_does_not_read_is_not_written_much() -> None:
    """A message waits behind no more than STREAMS_AHEAD and one read of the process."""

    async def check() -> None:
        async with linked() as world:
            world.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sent = 0
            for _ in range(200):
                with suppress(BlockingIOError):
                    sent += world.far.send(BLOCK * 4)
                await asyncio.sleep(0.001)
            unread = link_streams.count_unread(world.sandbox.link_in)
            assert 0 < unread <= link_streams.STREAMS_AHEAD + 64 * 1024
            assert world.link.connection.queued_streams <= STREAM_BACKLOG + 64 * 1024
            world.link.send_message(Channel.SHELL, [b"hurry"])
            before = world.read_guest(unread) + world.read_guest(1 << 16)
            assert before >= unread
            assert any(isinstance(event, Message) for event in world.guest_events)
            got = 0

            def all_arrived() -> bool:
                nonlocal got
                world.read_guest()
                frames = [e.frames for e in world.guest_events if isinstance(e, StreamFrames)]
                got = sum(map(len, frames))
                return got == sent // len(BLOCK) * len(BLOCK)

            await world.until(all_arrived)

    asyncio.run(check())


def test_streams_are_slow_after_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short cell does not wait for the CPUs that a download keeps busy."""
    monkeypatch.setattr(link_streams, "YIELD_SECONDS", 3600.0)
    monkeypatch.setattr(link_streams, "YIELD_PAUSE", 3600.0)

    async def check() -> None:
        async with linked() as world:
            world.link.send_message(Channel.SHELL, [b"1+1"])
            got = 0

            def count(wanted: type[Event]) -> int:
                world.read_guest()
                return sum(isinstance(event, wanted) for event in world.guest_events)

            def is_full() -> bool:
                """Send until the link takes no more; the guest reads all that arrives meanwhile."""
                count(Message)
                with suppress(BlockingIOError):
                    while world.far.send(BLOCK):
                        pass
                return world.link.connection.stream_room <= 0

            for _ in range(2):
                await world.until(is_full)
                messages = count(Message)
                world.link.send_message(Channel.CONTROL, [b"next"])
                assert count(Message) == messages + 1
                frames = [e.frames for e in world.guest_events if isinstance(e, StreamFrames)]
                got, before = sum(map(len, frames)), got
                assert 0 < got - before <= link_streams.YIELD_AHEAD + READ_SIZE
                world.link.streams._look_again()

    asyncio.run(check())


def test_end_of_the_process_ends_the_streams_and_not_the_kernel() -> None:
    async def check() -> None:
        async with linked() as world:
            world.guest.divert_stream(BLOCK)
            world.write_guest()
            world.far.close()
            await world.until(lambda: world.read_guest() >= 0 and bool(world.guest_events))
            assert world.guest_events == [StreamsEnded()]
            world.guest.divert_stream(BLOCK)
            for _ in range(20):
                world.write_guest(BLOCK)  # as a guest does that has not read it yet
                await asyncio.sleep(0.001)
            world.guest.send_message(Channel.IOPUB, [b"text"])
            world.write_guest()
            await world.until(lambda: any(isinstance(e, Message) for e in world.events))
            assert not world.ended

    asyncio.run(check())


def test_next_stream_after_the_end_of_the_process_goes_to_the_next_one() -> None:
    async def check() -> None:
        world = World()
        second, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        far.setblocking(False)
        ends = world.give(world.near, second)
        world.give = lambda *_: ends  # type: ignore[method-assign]
        try:
            await world.begin()
            world.far.close()
            world.far = far
            await world.until(lambda: world.read_guest() >= 0 and bool(world.guest_events))
            world.guest.renew_streams()
            opening = encode_short(FrameType.OPEN, 1)
            world.guest.divert_stream(opening)
            world.write_guest()
            got = bytearray()
            await world.until(lambda: bool(got.extend(world.received()) or got))
            assert got == opening
            world.guest_events.clear()
            far.close()  # the third is not to be had
            await world.until(lambda: world.read_guest() >= 0 and bool(world.guest_events))
            world.guest.renew_streams()
            world.guest.divert_stream(opening)
            world.write_guest()
            await world.until(lambda: bool(world.notes))
            assert "there is no process" in world.notes[0]
            await world.until(lambda: world.read_guest() >= 0 and len(world.guest_events) == 2)
            assert world.guest_events == [StreamsEnded(), StreamsEnded()]
            assert not world.ended
        finally:
            world.link.end("the test is over")
            world.far.close()
            world.sandbox.close()

    asyncio.run(check())


def test_process_that_sends_other_frames_is_left() -> None:
    async def check() -> None:
        async with linked() as world:
            world.far.send(encode_short(FrameType.OPEN, 1))
            await world.until(lambda: world.read_guest() >= 0 and bool(world.guest_events))
            assert world.guest_events == [StreamsEnded()]
            assert world.far.recv(100) == b""

    asyncio.run(check())


def test_end_of_the_run_closes_the_socket() -> None:
    async def check() -> None:
        async with linked() as world:
            world.far.send(encode_bytes(1, b"late"))
            world.guest.send(Exited(1, 0))
            world.write_guest()
            await world.until(lambda: any(isinstance(e, Exited) for e in world.events))
            assert world.far.recv(100) == b""
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            world.link.connection.send(replace(START, run=2))
            world.link.streams.carry(world.give(near), world.notes.append)
            world.link.flush()
            world.far.close()
            world.far = far
            far.setblocking(False)
            await world.until(lambda: world.read_guest() >= 0 and world.guest.run == 2)
            world.guest.divert_stream(encode_short(FrameType.OPEN, 1))
            world.write_guest()
            got = bytearray()
            await world.until(lambda: bool(got.extend(world.received()) or got))
            assert got == encode_short(FrameType.OPEN, 1)

    asyncio.run(check())


def test_end_of_the_link_closes_the_socket() -> None:
    async def check() -> None:
        async with linked() as world:
            world.link.end("for a reason")
            assert world.far.recv(100) == b""

    asyncio.run(check())


def test_run_without_a_socket_has_no_streams() -> None:
    async def check() -> None:
        world = World()
        try:
            world.write_guest()
            await world.until(lambda: world.link.connection.state is State.IDLE)
            world.link.connection.send(replace(START, egress=False))
            world.link.streams.carry(None, world.notes.append)
            world.link.flush()
            world.write_guest(encode_short(FrameType.OPEN, 1))
            await world.until(lambda: bool(world.ended))
            assert "without egress" in world.ended
        finally:
            world.link.end("the test is over")
            world.near.close()
            world.far.close()
            world.sandbox.close()

    asyncio.run(check())


def test_a_guest_that_reads_nothing_is_not_asked_for_memory_again() -> None:
    """Its sandbox may come near its memory limit as often as it likes."""

    async def ask() -> None:
        async with linked() as world:
            size = fcntl.fcntl(world.sandbox.link_in, fcntl.F_SETPIPE_SZ, 4096)
            asked = 0
            while world.link.trim():
                asked += 1
                assert asked * TRIM_FRAME <= size + TRIM_FRAME
            assert len(world.link._pending) <= TRIM_FRAME
            assert not world.link.connection.data_to_send()
            await world.until(lambda: world.read_guest() == 0)
            await world.until(lambda: world.link.trim())

    asyncio.run(ask())


def test_a_kernel_whose_use_is_asked_for_rests_all_the_same() -> None:
    """JupyterLab's extensions ask on control, every few seconds."""

    async def ask() -> None:
        async with linked() as world:
            world.link.send_message(Channel.CONTROL, [b"usage_request"])
            assert not world.link._rest.active
            world.link.send_message(Channel.SHELL, [b"execute_request"])
            assert world.link._rest.active

    asyncio.run(ask())
