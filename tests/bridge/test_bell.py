"""Client sockets that rest while nobody is connected: no client notices, and no message is lost."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from gvisor_kernel.bridge import bell
from gvisor_kernel.bridge.addresses import Address, count_connections
from gvisor_kernel.link import Channel

from ..world import World
from .test_clients import Bench, bench, until

CHANNELS = (Channel.SHELL, Channel.CONTROL, Channel.STDIN, Channel.HB)


def count_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def many_files() -> Iterator[None]:
    """Leave no descriptor below 1,024: a server with many kernels has more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as opened:
        while opened.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ring(made: Bench, data: bytes = b"") -> socket.socket:
    """Connect as no client of ZMQ does."""
    raw = socket.socket(socket.AF_UNIX)
    raw.setblocking(False)
    raw.connect(f"{made.sockets.address.ip}-{made.sockets.address.ports[Channel.SHELL]}")
    raw.send(data)
    return raw


async def let_rest(made: Bench) -> None:
    await until(made.sockets.rest)


def test_nothing_is_lost_as_sockets_rest_and_open(world: World) -> None:
    async def work() -> None:
        async with bench(world) as made:
            await let_rest(made)
        before = count_files()
        async with bench(world) as made:
            opened = count_files()
            await let_rest(made)
            await until(lambda: count_files() == opened - 8)  # 10 closed, 2 opened
            for cycle in (1, 2, 3):
                clients = [made.connect(zmq.DEALER, channel) for channel in CHANNELS]
                made.sockets.rest()  # while they connect
                for number in range(3):
                    for client in clients:
                        client.send(b"%d" % number)
                    made.sockets.rest()
                await until(lambda count=12 * cycle: len(made.received) == count)
                assert not made.sockets.rest()  # somebody is connected, though none subscribed
                channel, (identity, text) = made.received[-1]
                made.sockets.send(channel, [identity, b"answer to " + text])
                client = clients[CHANNELS.index(channel)]
                assert await client.recv_multipart() == [b"answer to " + text]
                for client in clients:
                    client.close()
                await let_rest(made)
            wanted = [b"0", b"1", b"2"] * 3
            for channel in CHANNELS:
                assert [parts[-1] for to, parts in made.received if to is channel] == wanted
            # A subscriber that reads nothing yet: one that is cut off would not subscribe again.
            subscriber = await made.subscribe()
            assert not made.sockets.rest()
            made.sockets.send(Channel.IOPUB, [b"t", b"published"])
            assert await subscriber.recv_multipart() == [b"t", b"published"]
        await until(lambda: count_files() <= before)

    asyncio.run(work())


def test_many_connect_at_once(world: World) -> None:
    async def work() -> None:
        async with bench(world) as made:
            await let_rest(made)
            clients = [made.connect(zmq.DEALER, CHANNELS[n % 4]) for n in range(60)]
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
                if number % 10 == 0:
                    await asyncio.sleep(0)
                    made.sockets.rest()
            await until(lambda: len(made.received) == 60)
            assert {parts[-1] for _, parts in made.received} == {b"%d" % n for n in range(60)}

    asyncio.run(work())


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000])
def test_a_stranger_is_closed_and_changes_nothing(world: World, data: bytes) -> None:
    async def work() -> None:
        async with bench(world) as made:
            await let_rest(made)
            opened: list[int] = []
            made.sockets.on_open = lambda: opened.append(1)
            places = made.sockets._names.targets.values()
            for _ in range(120):  # more than are looked at together
                ring(made, b"left").close()
            await until(lambda: not count_connections(places))
            assert not opened  # who has gone opens nothing
            raws = [ring(made, data) for _ in range(20)]
            client = made.connect(zmq.DEALER, Channel.SHELL)
            client.send(b"hello")
            await until(lambda: len(made.received) == 1)
            for raw in raws:
                await until(lambda raw=raw: is_closed(raw))
                raw.close()
            client.close()
            await let_rest(made)
            assert opened == [1]

    def is_closed(raw: socket.socket) -> bool:
        try:
            return not raw.recv(100)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    asyncio.run(work())


def test_sockets_that_cannot_be_opened_are_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bell, "AGAIN_SECONDS", 0.01)
    tries: list[int] = []

    async def work() -> None:
        async with bench(world) as made:
            await let_rest(made)
            make: Callable[..., Any] = made.sockets._make_socket

            def fail(*arguments: Any) -> Any:
                tries.append(1)
                if len(tries) < 4:
                    raise zmq.ZMQError(errno.EMFILE)
                return make(*arguments)

            monkeypatch.setattr(made.sockets, "_make_socket", fail)
            client = made.connect(zmq.DEALER, Channel.SHELL)
            client.send(b"patient")
            await until(lambda: len(made.received) == 1)

    asyncio.run(work())
    assert "sockets cannot be opened" in caplog.text


def test_ports_stay_taken(world: World) -> None:
    async def work() -> None:
        async with bench(world, Address("tcp", "127.0.0.1")) as made:
            assert not made.sockets.rest()

    asyncio.run(work())


def test_names_in_another_folder_lead_to_what_is_open(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        ports = {channel: 50 + channel for channel in Channel if channel <= Channel.HB}
        async with bench(world, Address("ipc", str(tmp_path / "k"), ports)) as made:
            await let_rest(made)
            names = sorted(tmp_path.iterdir())
            assert len({name.resolve() for name in names}) == 2
            for name in names:  # as a manager does as it restarts a kernel
                name.unlink()
            made.sockets.expose()
            assert len({name.resolve() for name in names}) == 5
        assert not list(tmp_path.iterdir())

    asyncio.run(work())
