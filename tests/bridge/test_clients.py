"""The sockets of clients, with real ZMQ clients and no kernel."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from gvisor_kernel.bridge.addresses import Address
from gvisor_kernel.bridge.clients import HIGH_WATER, SOCKET_TYPES, STALL_SECONDS, ClientSockets
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.link import Channel

from ..patience import scale_seconds
from ..world import World

SECONDS = scale_seconds(20)
LOOK_SECONDS = 0.005
SMALL_BUFFERS = 4096
"""Bytes in the receive buffer of a stalled client: a large buffer would hide the stall."""


class Bench:
    """Client sockets, and the messages and topics that they reported."""

    def __init__(
        self, base: Path, address: Address | None = None, stall_seconds: float = STALL_SECONDS
    ) -> None:
        self.received: list[tuple[Channel, list[bytes]]] = []
        self.topics: list[bytes] = []
        self.open = True
        self.asked = 0
        self.on_subscribe: Callable[[bytes], None] = self.topics.append
        self._connected: list[Any] = []
        self._host: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clients = zmq.asyncio.Context()
        self._base = base
        self._stall_seconds = stall_seconds
        self.sockets = self._bind(address or Address("ipc", ""))

    def _bind(self, address: Address) -> ClientSockets:
        sockets = ClientSockets(
            self._host,
            address,
            self._base,
            lambda channel, parts: self.received.append((channel, parts)),
            self._may_read,
            lambda topic: self.on_subscribe(topic),
            self._stall_seconds,
        )
        sockets.bind()
        return sockets

    def _may_read(self, _: Channel) -> bool:
        self.asked += 1
        return self.open

    def bind_again(self) -> ClientSockets:
        return self._bind(self.sockets.address)

    def connect(self, kind: int, channel: Channel, **options: Any) -> Any:
        address = self.sockets.address
        between = ":" if address.transport == "tcp" else "-"
        socket = self._clients.socket(kind)
        self._connected.append(socket)
        socket.linger = 0
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(f"{address.transport}://{address.ip}{between}{address.ports[channel]}")
        return socket

    async def subscribe(self, topic: bytes = b"", **options: Any) -> Any:
        known = self.sockets._topics.total()
        socket = self.connect(zmq.SUB, Channel.IOPUB, **options)
        socket.subscribe(topic)
        await until(lambda: self.sockets._topics.total() > known)
        return socket

    def publish(self, count: int, size: int) -> list[int]:
        """Publish numbered messages; return a list that grows by the number of each sent one."""
        sent: list[int] = []
        for number in range(count):
            parts = [b"t", b"%d" % number, bytes(size)]
            self.sockets.send(Channel.IOPUB, parts, lambda n=number: sent.append(n))
        return sent

    def close(self) -> None:
        self.sockets.close()
        self._clients.destroy(linger=0)
        self._host.destroy(linger=0)


@asynccontextmanager
async def bench(
    world: World, address: Address | None = None, stall_seconds: float = STALL_SECONDS
) -> AsyncIterator[Bench]:
    made = Bench(world.run, address, stall_seconds)
    try:
        yield made
    finally:
        made.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work``; an exception in a callback of the loop fails the test."""

    async def main() -> None:
        raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        await work
        assert not raised

    asyncio.run(main())


def count_timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that grows by the seconds of each timer of the loop but those of ``until``."""
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    timers: list[float] = []

    def count(delay: float, *rest: Any, **options: Any) -> asyncio.TimerHandle:
        if delay != LOOK_SECONDS:
            timers.append(delay)
        return call_later(delay, *rest, **options)

    monkeypatch.setattr(loop, "call_later", count)
    return timers


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(LOOK_SECONDS)


async def numbers(socket: Any, count: int) -> list[int]:
    async with asyncio.timeout(SECONDS):
        return [int((await socket.recv_multipart())[1]) for _ in range(count)]


def test_a_new_subscriber_is_welcomed_before_anything_else(world: World) -> None:
    """Also if libzmq has learned of it and the loop has not."""

    async def publish() -> None:
        async with bench(world) as made:
            welcome = [b"", b"0"]
            made.on_subscribe = lambda topic: made.sockets.send(Channel.IOPUB, welcome)
            socket = made.connect(zmq.SUB, Channel.IOPUB)
            socket.subscribe(b"")
            iopub = made.sockets._sockets[Channel.IOPUB]
            assert iopub.poll(SECONDS * 1000, zmq.POLLIN)  # the loop does not run meanwhile
            made.sockets.send(Channel.IOPUB, [b"", b"1"])
            assert await numbers(socket, 2) == [0, 1]

    run(publish())


def test_only_client_loses_nothing_when_it_stalls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it stalls, messages wait for it, and outside libzmq."""

    async def stall() -> None:
        async with bench(world, stall_seconds=0.2) as made:
            stalled = await made.subscribe(rcvhwm=1, rcvbuf=SMALL_BUFFERS)
            timers = count_timers(monkeypatch)
            sent = made.publish(200, 500_000)
            await until(lambda: sum(timers) > 1.0)
            few = len(sent)
            assert few <= 4 * HIGH_WATER
            assert made.sockets.count_waiting() == 200 - few
            assert await numbers(stalled, 200) == list(range(200))
            assert sent == list(range(200))

    run(stall())


def test_stalled_client_blocks_others_for_stall_seconds_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall() -> None:
        async with bench(world, stall_seconds=1.0) as made:
            stalled = await made.subscribe(rcvhwm=1, rcvbuf=SMALL_BUFFERS)
            reader = await made.subscribe()
            started = asyncio.get_running_loop().time()
            made.publish(200, 500_000)
            assert await numbers(reader, 200) == list(range(200))
            assert asyncio.get_running_loop().time() - started > 0.9
            # From now on it is skipped at once, until it reads again.
            timers = count_timers(monkeypatch)
            made.publish(50, 500_000)
            assert await numbers(reader, 50) == list(range(50))
            assert sum(timers) < 0.9
            got = 0
            async with asyncio.timeout(SECONDS):
                while await stalled.poll(300):
                    await stalled.recv_multipart()
                    got += 1
            assert 0 < got < 200
            made.publish(1, 10)
            assert await numbers(stalled, 1) == [0]

    run(stall())


def test_stalled_socket_has_one_timer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stall() -> None:
        async with bench(world) as made:
            await made.subscribe(rcvhwm=1, rcvbuf=SMALL_BUFFERS)
            made.publish(100, 500_000)
            timers = count_timers(monkeypatch)
            for _ in range(100):
                made.sockets.resume_reading()
            await until(lambda: sum(timers) > 1)
            assert len(timers) < 20

    run(stall())


def test_disconnect_of_stalled_client_unblocks_others(world: World) -> None:
    async def leave() -> None:
        async with bench(world) as made:
            stalled = await made.subscribe(rcvhwm=1, rcvbuf=SMALL_BUFFERS)
            reader = await made.subscribe()
            made.publish(100, 500_000)
            first = await numbers(reader, 1)
            stalled.close()
            assert first + await numbers(reader, 99) == list(range(100))

    run(leave())


def test_each_of_many_topics_is_welcomed(world: World) -> None:
    """Each welcome is sent while subscriptions are read; one client may have many of them."""

    async def subscribe() -> None:
        async with bench(world) as made:

            def welcome(topic: bytes) -> None:
                made.topics.append(topic)
                made.sockets.send(Channel.IOPUB, [topic, b"0"])

            made.on_subscribe = welcome
            socket = made.connect(zmq.SUB, Channel.IOPUB)
            topics = {b"%04d" % n for n in range(500)}
            for topic in sorted(topics):
                socket.subscribe(topic)
            seen = set()
            async with asyncio.timeout(SECONDS):
                while seen != topics:
                    seen.add((await socket.recv_multipart())[0])

    run(subscribe())


def test_reply_to_disconnected_client_is_dropped(world: World) -> None:
    async def reply() -> None:
        async with bench(world) as made:
            gone = made.connect(zmq.DEALER, Channel.SHELL, identity=b"gone")
            stays = made.connect(zmq.DEALER, Channel.SHELL, identity=b"stays")
            for client in (gone, stays):
                await client.send_multipart([b"hello"])
            await until(lambda: len(made.received) == 2)
            gone.close()
            sent: list[str] = []
            for parts in ([b"gone", b"x"], [b"nobody", b"x"], [b"", b"x"], [b"stays", b"x"]):
                made.sockets.send(Channel.SHELL, parts, lambda: sent.append(""))
            async with asyncio.timeout(SECONDS):
                assert await stays.recv_multipart() == [b"x"]
            assert len(sent) == 4

    run(reply())


def test_client_that_never_reads_blocks_others_once(world: World) -> None:
    """It blocks others once and costs a few messages, however many it was sent."""

    async def stall() -> None:
        async with bench(world, stall_seconds=1.0) as made:
            stalled = made.connect(
                zmq.DEALER, Channel.SHELL, identity=b"s", rcvhwm=1, rcvbuf=SMALL_BUFFERS
            )
            reader = made.connect(zmq.DEALER, Channel.SHELL, identity=b"r")
            for client in (stalled, reader):
                await client.send_multipart([b"hello"])
            await until(lambda: len(made.received) == 2)
            sent: list[int] = []
            for number in range(200):
                for name in (b"s", b"r"):
                    parts = [name, b"x", b"%d" % number, bytes(500_000)]
                    made.sockets.send(Channel.SHELL, parts, lambda n=number: sent.append(n))
            assert len(sent) <= 8 * HIGH_WATER
            assert await numbers(reader, 200) == list(range(200))
            await until(lambda: len(sent) == 400)
            got = []
            async with asyncio.timeout(SECONDS):
                while await stalled.poll(300):
                    got.append(int((await stalled.recv_multipart())[1]))
            assert got == list(range(len(got)))
            assert 0 < len(got) <= 4 * HIGH_WATER
            made.sockets.send(Channel.SHELL, [b"s", b"x", b"200"])
            assert await numbers(stalled, 1) == [200]

    run(stall())


def test_messages_wait_until_reading_resumes(world: World) -> None:
    """The descriptor is edge-triggered: only ``resume_reading`` finds the waiting messages."""

    async def wait() -> None:
        async with bench(world) as made:
            made.open = False
            client = made.connect(zmq.DEALER, Channel.SHELL)
            asked = made.asked
            for number in range(500):
                await client.send_multipart([b"%d" % number])
            await until(lambda: made.asked > asked)
            assert not made.received
            made.open = True
            made.sockets.resume_reading()
            await until(lambda: len(made.received) == 500)
            assert [int(parts[1]) for _, parts in made.received] == list(range(500))

    run(wait())


def test_connection_without_zmq_is_ignored(world: World) -> None:
    async def garbage() -> None:
        async with bench(world, Address("tcp", "127.0.0.1")) as made:
            for port in made.sockets.address.ports.values():
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 100)
                writer.close()
            client = made.connect(zmq.DEALER, Channel.CONTROL)
            await client.send_multipart([b"still here"])
            await until(lambda: made.received)

    run(garbage())


CLOSE_BESIDE_STRANGERS = """
import asyncio, socket, sys, zmq
from pathlib import Path
from gvisor_kernel.bridge.addresses import Address
from gvisor_kernel.bridge.clients import ClientSockets

async def main():
    context = zmq.Context()
    for _ in range(600):
        sockets = ClientSockets(
            context, Address("tcp", "127.0.0.1"), Path(sys.argv[1]), print, bool, print
        )
        strangers = []
        for port in sockets.address.ports.values():
            stranger = socket.create_connection(("127.0.0.1", port))
            stranger.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n" + bytes(range(256)) * 100)
            strangers.append(stranger)
        sockets.close()
        for stranger in strangers:
            stranger.close()
    print("still here")

asyncio.run(main())
"""


def test_connection_without_zmq_does_not_end_the_process_at_close(world: World) -> None:
    """Any user of the machine may connect to a port of TCP, and libzmq aborts where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSE_BESIDE_STRANGERS, str(world.run)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def test_links_of_killed_process_are_replaced(world: World) -> None:
    ports = {channel: int(channel) for channel in SOCKET_TYPES}
    ip = str(world.run / "fixed")
    stale = Path(f"{ip}-{ports[Channel.SHELL]}")
    stale.symlink_to("/nonexistent/l-1")

    async def take_over() -> None:
        async with bench(world, Address("ipc", ip, ports)) as made:
            client = made.connect(zmq.DEALER, Channel.SHELL)
            await client.send_multipart([b"hello"])
            await until(lambda: made.received)

    run(take_over())
    assert not stale.is_symlink()
    assert not list(world.run.iterdir())


def test_port_in_use_is_reported(world: World) -> None:
    async def clash() -> None:
        async with bench(world, Address("tcp", "127.0.0.1")) as made:
            with pytest.raises(LaunchError, match=r"cannot be opened at 127"):
                made.bind_again()

    run(clash())


def test_close_calls_back_for_waiting_messages(world: World) -> None:
    async def close() -> None:
        async with bench(world) as made:
            await made.subscribe(rcvhwm=1, rcvbuf=SMALL_BUFFERS)
            sent = made.publish(100, 500_000)
            made.sockets.close()
            made.sockets.close()
            assert sorted(sent) == list(range(100))
            made.sockets.send(Channel.SHELL, [b"a", b"b"], lambda: sent.append(100))
            assert sent[-1] == 100
        assert not list(world.run.iterdir())

    run(close())
