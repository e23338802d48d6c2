"""Messages between clients and a link keep their order; long work is not done on the loop."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session

from gvisor_kernel.bridge import replies, wire
from gvisor_kernel.bridge.addresses import Address, KernelIdentity
from gvisor_kernel.bridge.doors import AllowedEffects
from gvisor_kernel.bridge.exchange import Exchange, _check_and_sign
from gvisor_kernel.bridge.queues import MAX_INLINE, Lane
from gvisor_kernel.bridge.records import Records
from gvisor_kernel.bridge.wire import (
    DELIMITER,
    Signer,
    WireError,
    WireMessage,
    new_message,
    split_message,
)
from gvisor_kernel.link import Channel, Message
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.state import State

SECONDS = 30.0
HOST, INNER = "host-key", "inner-key"
LARGE = 4 * MAX_INLINE


def sign(key: str, message: WireMessage) -> list[Part]:
    """Sign without the ``Signer`` that the tests watch."""
    dicts = (message.header, message.parent, message.metadata, message.content)
    digest = hmac.new(key.encode(), b"".join(dicts), "sha256").hexdigest().encode()
    return [*message.identities, DELIMITER, digest, *dicts]


class FakeConnection:
    state = State.RUNNING

    def __init__(self) -> None:
        self.consumed_messages: list[Message] = []

    def queued(self, channel: Channel) -> int:
        return 0

    def consumed(self, message: Message) -> None:
        self.consumed_messages.append(message)


class FakeLink:
    """A link to a kernel that does nothing; records sent messages."""

    ended = stopped = False

    def __init__(self) -> None:
        self.connection = FakeConnection()
        self.sent: list[tuple[Channel, WireMessage]] = []

    def flush(self) -> None:
        pass

    def send_message(self, channel: Channel, parts: list[Part]) -> None:
        message = split_message(parts)
        assert message.signature == sign(INNER, message)[len(message.identities) + 1]
        self.sent.append((channel, message))


class Bench:
    """An exchange, its clients, and the threads in which large messages were signed."""

    def __init__(self, base: Path, executor: ThreadPoolExecutor, *, holds_replies: bool) -> None:
        self.link = FakeLink()
        self.signed_large: set[int] = set()
        self.records = Records()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clients = zmq.asyncio.Context()
        identity = KernelIdentity(
            *("k", HOST.encode(), "hmac-sha256", 2**30), holds_replies=holds_replies
        )
        self.exchange = Exchange(
            *(self._context, identity, Address("ipc", ""), base, self.records),
            *(lambda _: True, executor),
        )
        self.exchange.link = self.link  # type: ignore[assignment]
        self.exchange.set_kernel_key(INNER)

    def connect(self, kind: int, channel: Channel) -> Any:
        socket = self._clients.socket(kind)
        socket.linger = 0
        address = self.exchange.address
        socket.connect(f"ipc://{address.ip}-{address.ports[channel]}")
        return socket

    async def subscribe(self) -> Any:
        socket = self.connect(zmq.SUB, Channel.IOPUB)
        socket.subscribe(b"")
        welcome = await receive(socket)
        assert welcome.kind == "iopub_welcome"
        return socket

    def send_as_kernel(
        self, channel: Channel, kind: str, number: int, size: int = 10, to: bytes = b"t"
    ) -> None:
        parent = json.dumps({"msg_id": str(number)}).encode()
        message = new_message(kind, {"n": number, "x": "x" * size}, parent, to)
        parts = sign(INNER, message)
        parts = [memoryview(bytearray(p)) if len(p) > 64 * 1024 else p for p in parts]
        self.exchange.from_kernel(Message(channel, parts, size, 0))

    def close(self) -> None:
        self.exchange.close()
        self._clients.destroy(linger=0)
        self._context.destroy(linger=0)


async def receive(socket: Any) -> WireMessage:
    return split_message(await asyncio.wait_for(socket.recv_multipart(), SECONDS))


async def until(condition: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def number_of(message: WireMessage) -> int:
    return int(json.loads(bytes(message.content))["n"])


@asynccontextmanager
async def opened(
    base: Path, monkeypatch: pytest.MonkeyPatch, *, holds_replies: bool = True
) -> AsyncIterator[Bench]:
    threads: set[int] = set()
    original = Signer._sign

    def watched(self: Signer, *dicts: Part) -> bytes:
        if sum(map(len, dicts)) > MAX_INLINE:
            threads.add(threading.get_ident())
        return original(self, *dicts)

    monkeypatch.setattr(Signer, "_sign", watched)
    with ThreadPoolExecutor(2) as executor:
        bench = Bench(base, executor, holds_replies=holds_replies)
        bench.signed_large = threads
        try:
            yield bench
        finally:
            bench.close()


def test_large_output_is_signed_in_worker_and_keeps_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with opened(tmp_path, monkeypatch) as bench:
            client = await bench.subscribe()
            for number in range(30):
                bench.send_as_kernel(
                    Channel.IOPUB, "stream", number, LARGE if number % 10 == 0 else 10
                )
            assert [number_of(await receive(client)) for _ in range(30)] == list(range(30))
            await until(lambda: len(bench.link.connection.consumed_messages) == 30)
            assert bench.signed_large
            assert threading.get_ident() not in bench.signed_large

    asyncio.run(run())


def test_large_requests_are_signed_in_worker_and_keep_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with opened(tmp_path, monkeypatch) as bench:
            client = bench.connect(zmq.DEALER, Channel.SHELL)
            bench.signed_large.clear()
            for number in range(12):
                size = LARGE if number % 5 == 0 else 10
                request = new_message(
                    "is_complete_request", {"n": number, "x": "x" * size}, b"{}", b"t"
                )
                await client.send_multipart(sign(HOST, request)[1:])
            await until(lambda: len(bench.link.sent) == 12)
            assert [number_of(message) for _, message in bench.link.sent] == list(range(12))
            assert threading.get_ident() not in bench.signed_large

    asyncio.run(run())


def test_death_is_shown_after_kernel_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output that is still being checked comes first; a cell with a reply gets no error."""

    async def run() -> None:
        async with opened(tmp_path, monkeypatch) as bench:
            client = await bench.subscribe()
            bench.exchange._pending.update({"1": b'{"msg_id": "1"}', "2": b'{"msg_id": "2"}'})
            bench.send_as_kernel(Channel.IOPUB, "stream", 7, LARGE)
            bench.send_as_kernel(Channel.SHELL, "execute_reply", 1, LARGE, to=b"gone")
            await bench.exchange.drain(SECONDS, clients=False)
            bench.exchange.show_death("The kernel ended.")
            kinds = [(m.kind, m.parent_id) for m in [await receive(client) for _ in range(3)]]
            assert kinds == [("stream", "7"), ("error", "2"), ("status", "2")]

    asyncio.run(run())


def test_how_the_last_cell_ended_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with opened(tmp_path, monkeypatch) as bench:
            exchange = bench.exchange

            async def reply(status: str, *, silent: bool = False) -> bool:
                exchange._asked["1"] = AllowedEffects(silent=silent)
                content = {"execution_count": 1, "ename": '{"status": "ok"}', "status": status}
                parent = b'{"msg_id": "1"}'
                parts = sign(INNER, new_message("execute_reply", content, parent, b"gone"))
                exchange.from_kernel(Message(Channel.SHELL, parts, 10, 0))
                await exchange.drain(SECONDS, clients=False)
                return exchange.has_failed

            assert not exchange.has_failed
            assert await reply("error")
            assert await reply("ok", silent=True)
            assert not await reply("ok")
            assert not await reply("error", silent=True)
            assert await reply("aborted")
            assert not await reply("ok")
            exchange._pending["2"] = b"{}"
            assert exchange.has_failed
            exchange.forget_requests()
            assert exchange.has_failed
            exchange.forget_failures()
            assert not exchange.has_failed

    asyncio.run(run())


def test_reply_waits_for_an_answer_to_a_note_of_the_bridge_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Output widget captures it, as any output of the cell (``bridge/replies.py``)."""

    async def run() -> None:
        async with opened(tmp_path, monkeypatch) as bench:
            client, shell = await bench.subscribe(), bench.connect(zmq.DEALER, Channel.SHELL)
            parent = b'{"msg_id": "1"}'

            async def send(kind: str, content: dict[str, Any], parent: bytes = b"{}") -> None:
                message = new_message(kind, content, parent, b"")
                if kind == "execute_request":
                    header = json.loads(bytes(message.header)) | {"msg_id": "1"}
                    message = replace(message, header=json.dumps(header).encode())
                await shell.send_multipart(sign(HOST, message)[1:])

            def publish(kind: str, content: dict[str, Any]) -> None:
                parts = sign(INNER, new_message(kind, content, parent, b"t"))
                bench.exchange.from_kernel(Message(Channel.IOPUB, parts, 10, 0))

            await send("execute_request", {"code": "", "allow_stdin": False})
            await until(lambda: bench.link.sent)
            publish("comm_msg", {"data": {"state": {"msg_id": "1"}}})
            bench.exchange.show_refused("example.com")
            to = bytes(bench.link.sent[0][1].identities[0])
            bench.send_as_kernel(Channel.SHELL, "execute_reply", 1, to=to)
            publish("status", {"execution_state": "idle"})
            assert [(await receive(client)).kind for _ in range(3)] == [
                *("comm_msg", "stream", "status")
            ]
            consumed = bench.link.connection.consumed_messages
            assert Channel.SHELL not in [message.channel for message in consumed]
            await send("comm_msg", {"data": {}}, parent)
            assert (await receive(shell)).kind == "execute_reply"
            assert [message.channel for message in consumed].count(Channel.SHELL) == 1

    asyncio.run(run())


def test_reply_to_a_program_of_ours_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "ANSWER_SECONDS", 3600.0)

    async def run() -> None:
        async with opened(tmp_path, monkeypatch, holds_replies=False) as bench:
            shell = bench.connect(zmq.DEALER, Channel.SHELL)
            content = {"code": "", "allow_stdin": False}
            request = new_message("execute_request", content, b"{}", b"")
            await shell.send_multipart(sign(HOST, request)[1:])
            await until(lambda: bench.link.sent)
            sent = bench.link.sent[0][1]
            reply = new_message("execute_reply", {}, bytes(sent.header), bytes(sent.identities[0]))
            bench.exchange.from_kernel(Message(Channel.SHELL, sign(INNER, reply), 10, 0))
            assert (await receive(shell)).kind == "execute_reply"

    asyncio.run(run())


@pytest.mark.parametrize("size", [wire.MAX_IDENTITY + 1, 100_000])
def test_message_with_too_long_topic_is_dropped(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with opened(tmp_path, monkeypatch) as bench:
            client = await bench.subscribe()
            bench.send_as_kernel(Channel.IOPUB, "stream", 1, to=bytes(size))
            bench.send_as_kernel(Channel.IOPUB, "stream", 2)
            assert number_of(await receive(client)) == 2
            assert len(bench.link.connection.consumed_messages) == 2

    asyncio.run(run())


def pass_on(change: dict[str, Any], metadata: bytes = b"{}", parent: bytes = b"{}") -> Any:
    """Return what a client reads of a kernel's message with a changed header; None: it is none."""
    message = new_message("pyin", {"code": {"text/html": ""}}, parent, b"t")
    header = json.loads(bytes(message.header)) | change
    message = replace(message, header=json.dumps(header).encode(), metadata=metadata)
    signer = Signer(b"key")
    passed = _check_and_sign([*signer.sign(message)], signer, signer, {})
    if isinstance(passed, WireError):
        return None
    return Session(key=b"key").deserialize([*map(bytes, passed[1][2:])])


@pytest.mark.parametrize("version", ["4.0", "", "x", 5, None, ["5.0"], "6", "\u0665.0"])
def test_a_client_translates_no_message_of_another_version(version: object) -> None:
    """jupyter_client made an ``execute_input`` of it, which no check had seen, or raised."""
    assert pass_on({"version": version})["msg_type"] == "pyin"
    assert pass_on({"version": "5.3"})["header"]["version"] == "5.3"


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'{"a": ' * 5000, b"null"])
def test_metadata_is_an_object(metadata: bytes) -> None:
    assert pass_on({}, metadata)["metadata"] == {}
    assert pass_on({}, b'{"a": 1}')["metadata"] == {"a": 1}


@pytest.mark.parametrize("name", ["msg_id", "msg_type", "date", "x"])
def test_a_header_that_clients_cannot_read_is_dropped(name: str) -> None:
    """The server heard nothing more of the kernel after one of them."""
    odd: Any = (
        [["a"], None]
        if name.startswith("msg")
        else [
            *("2026-01-32T00:00:00", ["9999-99-99T99:99:99Z"]),
            *(f"2026-01-31T00:00:00{zone}" for zone in ("+00:60", "-0199", ".5+23:78")),
        ]
    )
    for value in odd:
        assert pass_on({name: value}) is None
        parent = json.dumps({name: value}).encode()
        assert (pass_on({}, parent=parent) is None) is not name.startswith("msg")
    for date in ("2026-01-31T00:00:00.123Z", "2026-01-31T00:00:00-09:30"):
        assert pass_on({"date": date, "x": "2026"})


def test_no_message_comes_twice() -> None:
    """jupyter_client raises for one that has come before, and the server heard nothing more."""
    signer, client = Signer(b"key"), Session(key=b"key")
    sent = signer.sign(new_message("stream", {"name": "stdout", "text": "a"}, b"{}", b"t"))
    for _ in range(3):
        passed = _check_and_sign([*sent], signer, signer, {})
        assert not isinstance(passed, WireError)
        assert client.deserialize([*map(bytes, passed[1][2:])])["content"]["text"] == "a"


HALVES = (
    *(r"\ud800", r"\udc00", r"\uD83D\uDE00", r"\\ud800", r"\\\ud800", r"\ud800\ud83d\ude00\ude00"),
    *(r"\\ud83d\ude00", r"\ud83d\u0041", r"\ud83d\\ude00", r"\udc00\ud800", r"\ud800x\udc00"),
    *("\\" * 99 + r"ud800", "\\" * 100 + r"ud800", r"\ud55c\ud83d\ude00 \n" * 2),
)


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("text", HALVES)
def test_half_a_character_is_replaced(
    text: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one in an output, a notebook could not be saved."""
    monkeypatch.setattr(wire, "_WINDOW", 7)
    kept = "a" * before + json.loads(f'"{text}"')
    written = "".join("\ufffd" if "\ud800" <= it <= "\udfff" else it for it in kept)
    content = f'{{"text": "{"a" * before}{text}"}}'.encode("utf-8", "surrogatepass")
    message = replace(new_message("stream", {}, b"{}", b"t"), content=content)
    signer = Signer(b"key")
    passed = _check_and_sign([*signer.sign(message)], signer, signer, {})

    assert not isinstance(passed, WireError)
    assert json.loads(bytes(passed[0].content))["text"] == written


def test_a_part_of_nothing_but_halves_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at one by one."""
    monkeypatch.setattr(wire, "MAX_SURROGATES", 100)
    for count in (100, 101):
        message = new_message("stream", {"text": "\ud800" * count}, b"{}", b"t")
        signer = Signer(b"key")
        passed = _check_and_sign([*signer.sign(message)], signer, signer, {})
        assert isinstance(passed, WireError) == (count > 100)


# -- lanes -----------------------------------------------------------------------------------------


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor


def test_lane_keeps_order(executor: ThreadPoolExecutor) -> None:
    async def run() -> None:
        done: list[int] = []
        emptied = asyncio.Event()
        lane = Lane(executor, emptied.set)
        first_may_end = threading.Event()

        def work(number: int) -> int:
            if number == 0:
                first_may_end.wait(SECONDS)
            return number

        for number in range(10):
            size = MAX_INLINE + 1 if number % 3 == 0 else 1
            lane.put(size, lambda n=number: work(n), done.append)
        assert not done
        assert not lane.empty
        first_may_end.set()
        await asyncio.wait_for(emptied.wait(), SECONDS)
        assert done == list(range(10))
        lane.put(1, lambda: 10, done.append)
        assert done[-1] == 10  # it was done at once

    asyncio.run(run())


def test_closed_lane_ignores_work(executor: ThreadPoolExecutor) -> None:
    async def run() -> None:
        done: list[int] = []
        lane = Lane(executor)
        may_end = threading.Event()
        for number in range(3):
            lane.put(MAX_INLINE + 1, lambda n=number: may_end.wait(SECONDS) and n, done.append)
        lane.close()
        may_end.set()
        await asyncio.get_running_loop().run_in_executor(executor, lambda: None)
        lane.put(1, lambda: 4, done.append)
        assert not done

    asyncio.run(run())


def test_lane_without_workers_runs_work_on_loop() -> None:
    """At the exit of a process the executor accepts no work."""

    async def run() -> None:
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        done: list[int] = []
        lane = Lane(executor)
        for number in range(3):
            lane.put(MAX_INLINE + 1, lambda n=number: n, done.append)
        assert done == [0, 1, 2]

    asyncio.run(run())
