"""A reply waits until its client cannot miss it, and comes once and in order.

The first test shows with pyzmq and jupyter_client alone what it may miss: no kernel of any make is
needed for that. When it fails, their mistake is mended, and ``bridge/replies.py`` can go.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from gvisor_kernel.bridge import replies as module
from gvisor_kernel.bridge.replies import Replies
from gvisor_kernel.bridge.wire import DELIMITER, WireMessage, new_message

from ..patience import scale_seconds

SECONDS = scale_seconds(30)


def has_event(socket: Any) -> bool:
    poll = select.poll()
    poll.register(socket.FD, select.POLLIN)
    return bool(poll.poll(0))


async def run_ready_callbacks() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("sends", [True, False])
def test_asyncio_client_that_sends_misses_the_reply(sends: bool) -> None:
    """It waits as nbclient does for a cell's reply, and sends as its Output widget does.

    Both ends share a context, so each message has arrived when it is sent.
    """

    async def run() -> None:
        context = zmq.asyncio.Context()
        kernel: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.ROUTER)
        kernel.bind("inproc://shell")
        socket = context.socket(zmq.DEALER)
        socket.identity = b"client"
        socket.connect("inproc://shell")
        session = Session(key=b"key")
        channel = AsyncZMQSocketChannel(socket, session)
        waiting = asyncio.ensure_future(channel.get_msg(timeout=None))
        await run_ready_callbacks()
        assert not has_event(socket)

        session.send(kernel, "execute_reply", {}, ident=b"client")
        assert has_event(socket)
        while sends and has_event(socket):  # libzmq looks for events once in a millisecond
            channel.send(session.msg("comm_msg", {}))
        await run_ready_callbacks()
        assert waiting.done() != sends
        if sends:
            session.send(kernel, "kernel_info_reply", {}, ident=b"client")
            assert not has_event(socket), "a later message would do, and no reply need wait"
            await run_ready_callbacks()
            assert not waiting.done()
            assert int(socket.get(zmq.EVENTS)) & zmq.POLLIN, "the reply lies there all the time"
        reply = await asyncio.wait_for(waiting, SECONDS)
        assert reply["msg_type"] == "execute_reply"
        kernel.close(linger=0)
        context.destroy(linger=0)

    asyncio.run(run())


class Kernel:
    """A kernel and its clients, whose messages are given to ``replies``; what was sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.done: list[str] = []
        self.replies = Replies(self._send)

    def _send(self, parts: list[Any], on_sent: Callable[[], None]) -> None:
        self.sent.append((parts[0].decode(), json.loads(parts[-1])["of"]))
        on_sent()

    @staticmethod
    def _message(kind: str, content: object, parent: str, to: str) -> WireMessage:
        header = json.dumps({"msg_id": parent} if parent else {}).encode()
        assert isinstance(content, dict)
        return new_message(kind, content, header, to.encode())

    def execute(self, name: str, client: str = "A", *, allow_stdin: bool = False) -> None:
        content = {"code": 'x = {"allow_stdin": true}', "allow_stdin": allow_stdin}
        request = self._message("execute_request", content, "", client)
        request.__dict__["_header"] = {"msg_type": "execute_request", "msg_id": name}
        self.replies.note_request(request)

    def answer(self, name: str, client: str = "A") -> None:
        self.replies.note_request(self._message("comm_msg", {}, name, client))

    def publish(self, kind: str, name: str, **content: object) -> None:
        self.replies.note_output(self._message(kind, content, name, "t"))

    def capture(self, name: str, msg_id: object) -> None:
        self.publish("comm_msg", name, data={"method": "update", "state": {"msg_id": msg_id}})

    def idle(self, name: str) -> None:
        self.publish("status", name, execution_state="idle")

    def reply(self, name: str, client: str = "A", kind: str = "execute_reply") -> None:
        message = self._message(kind, {"of": name}, name, client)
        parts: list[Any] = [client.encode(), DELIMITER, message.content]
        self.replies.send(message, parts, partial(self.done.append, name))


def with_kernel(test: Callable[[Kernel], object]) -> Callable[[], None]:
    """Let ``test`` run on a loop, for the timers."""

    def wrapped() -> None:
        async def run() -> None:
            test(Kernel())

        asyncio.run(run())

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@with_kernel
def test_reply_waits_until_idle(kernel: Kernel) -> None:
    """Replies overtake outputs on the link, so before that it is not known what was captured."""
    kernel.execute("1")
    kernel.publish("status", "1", execution_state="busy")
    kernel.reply("1")
    kernel.idle("2")
    assert not kernel.sent
    kernel.idle("1")
    kernel.execute("2")
    kernel.idle("2")
    kernel.reply("2")
    assert kernel.sent == [("A", "1"), ("A", "2")]


@with_kernel
def test_reply_waits_for_an_answer_to_each_captured_output(kernel: Kernel) -> None:
    kernel.execute("1")
    kernel.publish("stream", "1")
    kernel.reply("1")
    kernel.capture("1", "1")
    kernel.publish("clear_output", "1", wait=True)  # is not answered
    kernel.publish("display_data", "1")
    kernel.publish("clear_output", "1", wait=False)
    kernel.publish("update_display_data", "1")
    kernel.publish("stream", "another")
    kernel.capture("1", "")
    kernel.publish("stream", "1")
    kernel.idle("1")
    kernel.publish("stream", "1")
    kernel.answer("1")
    kernel.answer("another")
    assert not kernel.sent
    kernel.answer("1")
    assert kernel.sent == [("A", "1")]


@with_kernel
def test_messages_to_one_client_keep_their_order_and_others_do_not_wait(kernel: Kernel) -> None:
    for name in ("1", "2"):
        kernel.execute(name)
    kernel.execute("3", "B")
    kernel.reply("1")
    kernel.reply("2")
    kernel.idle("2")
    kernel.reply("info", kind="kernel_info_reply")
    kernel.idle("3")
    kernel.reply("3", "B")
    kernel.reply("info", "C")
    assert kernel.sent == [("B", "3"), ("C", "info")]
    kernel.idle("1")
    assert kernel.sent[2:] == [("A", "1"), ("A", "2"), ("A", "info")]
    assert kernel.done == [name for _, name in kernel.sent]


@with_kernel
def test_client_that_takes_input_gets_its_reply_at_once(kernel: Kernel) -> None:
    """As JupyterLab and consoles, which wait by other means."""
    kernel.execute("1", allow_stdin=True)
    kernel.capture("1", "1")
    kernel.publish("stream", "1")
    kernel.reply("1")
    assert kernel.sent == [("A", "1")]


@with_kernel
def test_all_is_sent_when_the_kernel_ends(kernel: Kernel) -> None:
    for name in ("1", "2", "3"):
        kernel.execute(name)
    kernel.reply("1")
    kernel.reply("2")
    kernel.replies.release()
    kernel.replies.release()
    assert kernel.sent == [("A", "1"), ("A", "2")]
    kernel.reply("3")
    assert kernel.sent[2:] == [("A", "3")]


@with_kernel
def test_odd_messages_of_a_kernel_hold_nothing(kernel: Kernel) -> None:
    kernel.execute("1")
    ids: list[Any] = [None, 1, [], {}, "2", ["1"], "1" * 20_000]
    for odd in ids:
        kernel.capture("1", odd)
    bodies: list[Any] = [None, 1, "x", [], {"state": []}, {"state": "msg_id"}]
    for data in bodies:
        kernel.publish("comm_msg", "1", data=data, msg_id="1")
    kernel.publish("comm_msg", "1")
    kernel.publish("stream", "1")
    kernel.reply("1", "another client")
    assert kernel.sent == [("another client", "1")]
    kernel.execute("1")
    kernel.idle("1")
    kernel.reply("1")
    assert kernel.sent[1:] == [("A", "1")]


def test_client_that_answers_nothing_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0)

    async def run() -> None:
        kernel = Kernel()

        def run_cell(name: str) -> None:
            kernel.execute(name)
            kernel.capture(name, name)
            kernel.publish("stream", name)
            kernel.idle(name)
            kernel.reply(name)

        run_cell("1")
        assert not kernel.sent
        await run_ready_callbacks()
        assert kernel.sent == [("A", "1")]
        run_cell("2")
        assert kernel.sent[1:] == [("A", "2")]
        kernel.answer("2")
        run_cell("3")
        assert len(kernel.sent) == 2, "it answers now"
        kernel.answer("3")
        assert kernel.sent[2:] == [("A", "3")]

    asyncio.run(run())


def test_client_that_gets_no_idle_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no outputs, so that they are stuck, or its kernel reports none."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0)

    async def run() -> None:
        kernel = Kernel()
        kernel.execute("1")
        kernel.reply("1")
        for _ in range(20):
            kernel.publish("stream", "1")
            await asyncio.sleep(0)  # one look at it
            assert not kernel.sent, "its outputs come, and so will its idle"
        await run_ready_callbacks()
        assert kernel.sent == [("A", "1")]
        kernel.execute("2")
        kernel.reply("2")
        assert kernel.sent[1:] == [("A", "2")]

    asyncio.run(run())


def test_client_is_waited_for_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0)

    async def run() -> None:
        kernel = Kernel()
        kernel.execute("1")
        kernel.capture("1", "1")
        for _ in range(20):
            kernel.publish("stream", "1")
        kernel.idle("1")
        kernel.reply("1")
        for _ in range(19):
            kernel.answer("1")
            await asyncio.sleep(0)  # one look at it
            assert not kernel.sent
        kernel.answer("1")
        assert kernel.sent == [("A", "1")]

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(20))
def test_each_message_is_sent_once_and_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0)
    chosen = random.Random(seed)  # noqa: S311

    async def run() -> None:
        kernel = Kernel()
        given: dict[str, list[str]] = {"A": [], "B": []}
        for number in range(500):
            name, client = str(chosen.randrange(20)), chosen.choice("AB")
            step = chosen.randrange(8)
            if step < 2:
                kernel.execute(name, client)
            elif step < 4:
                given[client].append(f"{name}")
                kernel.reply(name, client)
            elif step == 4:
                kernel.idle(name)
            elif step == 5:
                kernel.capture(name, chosen.choice(["", name]))
            elif step == 6:
                kernel.publish("stream", name)
            else:
                kernel.answer(name, client)
            if number % 100 == 99:
                await asyncio.sleep(0)
        kernel.replies.release()
        for client, names in given.items():
            assert [name for to, name in kernel.sent if to == client] == names
        assert len(kernel.done) == len(kernel.sent)

    asyncio.run(run())
