"""All message types that a front end exchanges with a kernel, except plain execution."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.session import Session

from .helpers import (
    SANDBOXED,
    SECONDS,
    Message,
    ask,
    connected,
    every_way,
    execute,
    finish,
    next_message,
    reply_to,
    send,
    wait_for,
    wait_for_text,
)

pytestmark = every_way

ECHO = """
import hashlib
def opened(comm, message):
    @comm.on_msg
    def received(message):
        buffers = [bytes(b) for b in message["buffers"]]
        sums = [hashlib.sha256(b).hexdigest() for b in buffers]
        comm.send({"sums": sums}, buffers=buffers)
get_ipython().kernel.comm_manager.register_target("echo", opened)
"""

SLIDER = """
import ipywidgets
slider = ipywidgets.IntSlider(value=3, max=100)
slider.observe(lambda change: print(change.old, "->", change.new), names="value")
slider
"""


def test_input_request_is_answered(client: BlockingKernelClient) -> None:
    msg_id = client.execute("print('hello', input('name? '))", allow_stdin=True)
    question = next_message(client, "stdin", time.monotonic() + SECONDS, "an input_request")
    assert question["content"] == {"prompt": "name? ", "password": False}
    client.input("Ada")
    assert finish(client, msg_id).text == "hello Ada\n"


def test_password_request_is_answered(client: BlockingKernelClient) -> None:
    msg_id = client.execute("import getpass; print(len(getpass.getpass()))", allow_stdin=True)
    question = next_message(client, "stdin", time.monotonic() + SECONDS, "an input_request")
    assert question["content"]["password"] is True
    client.input("secret")
    assert finish(client, msg_id).text == "6\n"


def test_input_is_refused_without_stdin(client: BlockingKernelClient) -> None:
    answer = finish(client, client.execute("input()", allow_stdin=False))
    assert answer.error == "StdinNotImplementedError"


@pytest.mark.parametrize("size", [0, 1, 10_000_000])
def test_buffers_survive_round_trip(client: BlockingKernelClient, size: int) -> None:
    """Binary buffers, also empty ones, go to a comm and back."""
    assert execute(client, ECHO).status == "ok"
    send(client, "comm_open", {"comm_id": f"e{size}", "target_name": "echo"}, channel="shell")
    buffers = [os.urandom(size), b"", b"\x00" * 3, b""]
    content = {"comm_id": f"e{size}", "data": {}}
    send(client, "comm_msg", content, channel="shell", buffers=buffers)
    back = wait_for(client, is_comm_message(f"e{size}"), "the buffers")
    assert [bytes(b) for b in back["buffers"]] == buffers


def test_widget_updates_both_ways(client: BlockingKernelClient) -> None:
    """A slider moved by the front end runs its callback; one moved by the kernel is reported."""
    pytest.importorskip("ipywidgets")
    answer = execute(client, SLIDER)
    model = next(
        m["content"]
        for m in answer.of_type("comm_open")
        if m["content"]["data"]["state"].get("_model_name") == "IntSliderModel"
    )
    assert model["data"]["state"]["value"] == 3
    comm_id = model["comm_id"]

    move = {"method": "update", "state": {"value": 42}, "buffer_paths": []}
    send(client, "comm_msg", {"comm_id": comm_id, "data": move}, channel="shell")
    wait_for_text(client, "3 -> 42")
    assert execute(client, "print(slider.value)").text == "42\n"

    answer = execute(client, "slider.value = 7")
    states = [
        m["content"]["data"]["state"]
        for m in answer.of_type("comm_msg")
        if m["content"]["comm_id"] == comm_id
    ]
    assert {"value": 7} in states


def test_comm_reaches_kernel_during_async_cell(client: BlockingKernelClient) -> None:
    execute(client, ECHO)
    code = "import asyncio; print('waiting', flush=True); await asyncio.sleep(1); print('done')"
    msg_id = client.execute(code)
    wait_for_text(client, "waiting")
    send(client, "comm_open", {"comm_id": "async", "target_name": "echo"}, channel="shell")
    send(client, "comm_msg", {"comm_id": "async", "data": {}}, channel="shell", buffers=[b"x"])
    assert finish(client, msg_id).status == "ok"
    assert execute(client, "1 + 1").result == "2"


def test_subshell_answers_while_main_shell_is_busy(client: BlockingKernelClient) -> None:
    """A subshell answers while the main shell is busy."""
    info = finish(client, client.kernel_info()).reply["content"]
    if "kernel subshells" not in info.get("supported_features", []):
        pytest.skip("this ipykernel has no subshells")
    subshell = ask(client, "create_subshell_request")
    assert subshell["status"] == "ok", subshell
    header = {"subshell_id": subshell["subshell_id"]}
    main = client.execute("import threading; go = threading.Event(); print('busy'); go.wait(60)")
    wait_for_text(client, "busy")
    content = {"code": "print('from the subshell'); go.set()", "silent": False}
    msg_id = send(client, "execute_request", content, channel="shell", header=header)
    replies: dict[str, str] = {}  # either may come first
    while not {main, msg_id} <= set(replies):
        reply = next_message(client, "shell", time.monotonic() + SECONDS, "both replies")
        replies[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
    assert (replies[main], replies[msg_id]) == ("ok", "ok")
    assert ask(client, "list_subshell_request")["subshell_id"] == [subshell["subshell_id"]]
    assert ask(client, "delete_subshell_request", header)["status"] == "ok"


def test_control_is_answered_while_kernel_floods_iopub(client: BlockingKernelClient) -> None:
    msg_id = client.execute("for i in range(200): print('x' * 100_000)")
    first = wait_for(
        client,
        lambda m: m["msg_type"] == "stream" and m["parent_header"]["msg_id"] == msg_id,
        "output",
    )
    assert ask(client, "kernel_info_request")["status"] == "ok"
    rest = finish(client, msg_id).text
    assert len(first["content"]["text"]) + len(rest) == 200 * 100_001


FLOOD = """
for i in range(2200): display(i)
"""


@pytest.mark.slow
def test_no_output_is_lost(client: BlockingKernelClient) -> None:
    """A burst of more messages than any default high-water mark is read after all were sent."""
    msg_id = client.execute(FLOOD)
    reply = reply_to(client, msg_id)
    assert reply["content"]["status"] == "ok"
    numbers: list[str] = []
    while True:
        message = wait_for(client, lambda m: m["parent_header"].get("msg_id") == msg_id, "a number")
        if message["msg_type"] == "display_data":
            numbers.append(message["content"]["data"]["text/plain"])
        elif message["content"].get("execution_state") == "idle":
            break
    assert numbers == [str(i) for i in range(2200)]


def test_usage_request_is_answered(client: BlockingKernelClient) -> None:
    usage = ask(client, "usage_request")
    assert usage["pid"] == int(execute(client, "import os; print(os.getpid())").text)
    assert (
        usage["hostname"] == execute(client, "import os; print(os.uname().nodename)").text.strip()
    )
    assert usage["kernel_memory"] > 10_000_000
    if SANDBOXED:
        assert usage["hostname"] != os.uname().nodename


def subscribe(manager: KernelManager, topic: bytes) -> tuple[zmq.Socket[bytes], Session]:
    info: dict[str, Any] = manager.get_connection_info()
    socket = manager.context.socket(zmq.SUB)
    socket.linger = 0
    if info["transport"] == "ipc":
        url = f"ipc://{info['ip']}-{info['iopub_port']}"
    else:
        url = f"tcp://{info['ip']}:{info['iopub_port']}"
    socket.rcvtimeo = int(SECONDS * 1000)
    socket.subscribe(topic)
    socket.connect(url)
    return socket, Session(key=info["key"], signature_scheme=info["signature_scheme"])


def test_first_subscriber_of_topic_is_welcomed(
    manager: KernelManager, client: BlockingKernelClient
) -> None:
    """Only a topic's first subscriber gets a welcome (JEP 65).

    All subscribers receive it, and kernel gateway's notebook-http mode blocks for ever if a message
    without a parent comes after its first request.
    """

    def next_welcome(socket: zmq.Socket[bytes], session: Session) -> str:
        _, frames = session.feed_identities(socket.recv_multipart())
        message = session.deserialize(frames)
        assert message["msg_type"] == "iopub_welcome"
        return str(message["content"]["subscription"])

    first = subscribe(manager, b"some")
    with first[0]:
        assert next_welcome(*first) == "some"
        second = subscribe(manager, b"some")
        with second[0]:
            second[0].subscribe(b"some more")
            assert next_welcome(*second) == "some more"
            assert next_welcome(*first) == "some more"
    assert execute(client, "1").result == "1"


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_wrong_signature_is_ignored(
    manager: KernelManager, client: BlockingKernelClient, channel: str
) -> None:
    stranger = manager.client(session=Session(key=b"not the key"))
    stranger.start_channels(hb=False)
    try:
        code = {"code": "intruder = 1", "silent": False}
        send(stranger, "execute_request", code, channel=channel)
        # It is sent on the same connection, so it is read after the forged message.
        stranger.session.key = manager.session.key
        msg_id = send(stranger, "kernel_info_request", channel=channel)
        assert reply_to(stranger, msg_id, channel=channel)["content"]["status"] == "ok"
    finally:
        stranger.stop_channels()
    assert execute(client, "print('intruder' in globals())").text == "False\n"


def test_replayed_message_is_ignored(client: BlockingKernelClient) -> None:
    execute(client, "count = 0")
    message = client.session.msg("execute_request", {"code": "count += 1", "silent": False})
    frames = client.session.serialize(message)
    for _ in range(2):
        client.shell_channel.socket.send_multipart(frames)
    assert reply_to(client, message["header"]["msg_id"])["content"]["status"] == "ok"
    assert execute(client, "print(count)").text == "1\n"


def test_second_client_of_session_takes_over(manager: KernelManager) -> None:
    """Two clients of ``km.client()`` share an identity; the newer one gets the replies."""
    with closing_client(manager) as older:
        assert execute(older, "1").result == "1"
        with closing_client(manager) as newer:
            assert execute(newer, "2").result == "2"
    with closing_client(manager) as again:
        assert execute(again, "3").result == "3"


@contextmanager
def closing_client(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield client
    finally:
        client.stop_channels()


def test_two_clients_see_each_others_outputs(
    manager: KernelManager, client: BlockingKernelClient
) -> None:
    with connected(manager) as other:
        msg_id = client.execute("print('for both')")
        wait_for_text(other, "for both")
        assert finish(client, msg_id).text == "for both\n"
        msg_id = other.execute("40 + 2")
        assert finish(other, msg_id).result == "42"


def test_heartbeat_is_echoed(client: BlockingKernelClient) -> None:
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(SECONDS * 1000)
        socket.connect(client.hb_channel.address)
        for word in (b"ping", b"", b"\x00" * 1000):
            socket.send(word)
            assert socket.recv() == word


def is_comm_message(comm_id: str) -> Any:
    def condition(message: Message) -> bool:
        return bool(message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm_id)

    return condition
