"""A sandbox that sends messages of its own making, and programs that are slow to take them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest
import zmq

from gvisor_kernel import Sandbox
from gvisor_kernel.api import runner, shell
from gvisor_kernel.api.collector import Collector
from gvisor_kernel.api.files import AsyncFiles, FileFailed
from gvisor_kernel.api.runner import MAX_WAITING
from gvisor_kernel.api.shell import ShellResult, run_shell
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.link.service_messages import ServiceMessage, encode_service

FORGE = """
kernel = get_ipython().kernel
def send(kind, content, socket=None, **more):
    socket = socket or kernel.iopub_socket
    kernel.session.send(socket, kind, content, parent=kernel.get_parent(), ident=b"x", **more)
def send_packed(data):
    real = kernel.session.pack
    kernel.session.pack = lambda _: data
    try:
        send("stream", {})
    finally:
        kernel.session.pack = real
def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value
import sys
sys.setrecursionlimit(100_000)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with Sandbox(memory="1G", snapshot="off") as sandbox:
        assert sandbox.run(FORGE).ok
        yield sandbox


@pytest.mark.parametrize(
    "code",
    [
        "for n in (90, 200, 900, 5000): send('display_data', {'data': {'a': nest(n)}})",
        "send('display_data', {'data': {}}, metadata={'a': nest(5000)})",
        "send('display_data', {'data': {'a': 1}, 'metadata': 7, 'transient': 'x'})",
        "send('stream', {'name': [], 'text': 5}); send('error', {'traceback': {}})",
        "send('stream', {'name': 'stdout', 'text': '\\udfff'})",
        "send('display_data', {'data': {'a': 10**4000, 'b': float('nan')}})",
        "for i in range(2000): send('display_data', {'data': {}}, metadata={'i': i})",
        "for v in (b'\\xff', b'7', b'null', b'[]', b'\"x\"', b'{}', b'1e999'): send_packed(v)",
        'send_packed(b\'{"msg_id": {}, "msg_type": [], "date": "2020-99-01T00:00:00Z"}\')',
        "send_packed(b'[' * 1_000_000)",
        "send('stream', b'{\"text\": \"' + b'\\\\\",' * 1_100_000)",  # a string that never ends
        "for _ in range(2): send('execute_reply', {'status': 'ok'}, kernel.shell_socket)"
        " if hasattr(kernel, 'shell_socket') else None",
    ],
)
def test_no_forged_message_ends_the_reading(shared: Sandbox, code: str) -> None:
    execution = shared.run(f"{code}\nprint('end')", timeout=30)
    execution.to_json()
    execution = shared.run("'alive'", timeout=30)
    assert (execution.text, execution.error) == ("'alive'", None)


def test_a_run_that_its_code_declares_ended_is_over(shared: Sandbox) -> None:
    forged = "send('status', {'execution_state': 'idle'}); print('late')"
    shared.run(forged, timeout=30)
    assert shared.run("'next'", timeout=30).text == "'next'"


class Liar:
    """A sandbox whose service process answers every question with the same message."""

    def __init__(self, content: dict[str, object], data: bytes) -> None:
        self.answer = ServiceMessage(1, content, data)

    async def open_call(self, _: object, __: bytes = b"") -> Liar:
        return self

    async def receive(self) -> ServiceMessage:
        await asyncio.sleep(0)
        return self.answer

    async def receive_list(self, limit: int) -> ServiceMessage:
        return await SandboxCall.receive_list(self, limit)  # type: ignore[arg-type]

    async def _receive(self) -> bytes:
        await asyncio.sleep(0)
        return encode_service(1, {"done": True, **self.answer.content}, self.answer.data)

    async def send(self, _: object) -> None:
        pass

    async def close(self) -> None:
        pass


def ask(liar: Liar, seconds: float | None = None) -> ShellResult:
    """Run a command of which ``liar`` tells."""
    collector = Collector("name", 100)
    try:
        return asyncio.run(run_shell(liar, collector, seconds, lambda: None))  # type: ignore[arg-type]
    finally:
        collector.close()


@pytest.mark.parametrize(
    ("content", "data"),
    [
        *(({}, b"x"), ({"total": "7"}, b""), ({"total": True}, b""), ({"total": -1}, b"")),
        *(({"entries": 5, "path": 7}, b""), ({"entries": [[]], "path": "/"}, b"")),
        ({"total": 9, "entries": None}, bytes(200)),
        ({"error": {"deep": []}}, b""),
        ({"path": "/", "entries": [["../../x", "file", 1, 1]]}, b""),
        ({"path": "/", "entries": [["..", "folder", 1, 1]]}, b""),
        ({"path": "/", "entries": [["x", "file", 1, 10**400]]}, b""),
        ({"path": "/", "entries": [["x", "file", 10**40, 1]]}, b""),
        ({"path": "/", "entries": [["x", "file", -1, 1]]}, b""),
        ({"path": "/", "entries": [["x", "file", 1, float("inf")]]}, b""),
        ({"path": "/", "entries": [["x" * 256, "file", 1, 1]]}, b""),
        ({"path": "/" * 5000, "entries": []}, b""),
        ({"path": "/", "entries": [["x", "file", 1, 1]] * 10_001}, b""),
    ],
)
def test_a_false_answer_about_files_is_refused(content: dict[str, object], data: bytes) -> None:
    files = AsyncFiles(Liar(content, data).open_call)  # type: ignore[arg-type]
    for asking in (files.read_range("x", 0, 100), files.list("x")):
        with pytest.raises(FileFailed):
            asyncio.run(asking)


@pytest.mark.parametrize(
    ("content", "data"),
    [({}, b"x"), ({"stream": "x"}, b"x"), ({"stream": "stdout"}, b""), ({"error": []}, b"")],
)
def test_a_false_answer_about_a_command_is_an_error(
    content: dict[str, object], data: bytes
) -> None:
    liar = Liar({**content, **({"done": True} if "error" in content else {})}, data)
    done = ask(liar)
    assert done.status is None
    assert done.error is not None


def test_a_false_status_is_none_and_output_without_end_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "GRACE_SECONDS", 0.1)
    for status in ("0", True, None, 0.5, 10**400):
        assert ask(Liar({"done": True, "status": status}, b"")).status is None
    done = ask(Liar({"stream": "stdout"}, b"x"), 0.2)
    assert (len(done.stdout), done.ended_by) == (100, "kill")


def test_few_messages_wait_for_a_slow_program(shared: Sandbox) -> None:
    assert shared._target._runner is not None
    client = shared._target._runner._client
    assert client.iopub_channel.socket.getsockopt(zmq.RCVHWM) == MAX_WAITING


def test_a_listener_may_interrupt_its_run_and_use_other_sandboxes(shared: Sandbox) -> None:
    heard = []
    with Sandbox(snapshot="off") as other:

        def listen(_: str) -> None:
            heard.append(other.run("6 * 7").text)
            shared.interrupt()

        code = "print('go', flush=True)\nimport time; time.sleep(600)"
        execution = shared.run(code, on_stdout=listen)
    assert heard == ["42"]
    assert execution.error is not None
    assert execution.error.name == "KeyboardInterrupt"


def test_a_listener_that_exits_ends_its_run_alone(shared: Sandbox) -> None:
    def leave(_: str) -> None:
        sys.exit(3)

    with pytest.raises(SystemExit):
        shared.run("print('go', flush=True)\nimport time; time.sleep(600)", on_stdout=leave)
    assert shared.run("'alive'").text == "'alive'"


def test_a_slow_listener_is_not_taken_for_code_that_goes_on(
    shared: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LAST_SECONDS", 0.5)
    released = threading.Event()

    def listen(_: str) -> None:
        released.wait(30)

    code = "print('go', flush=True)\nimport time; time.sleep(600)"
    execution = shared.run(code, timeout=1, on_stdout=listen)
    released.set()
    assert execution.ended_by == "interrupt"
    assert shared.run("'alive'").text == "'alive'"


def test_messages_that_cannot_be_read_any_more_end_the_run() -> None:
    with Sandbox(snapshot="off") as sandbox:
        assert sandbox._target._runner is not None
        for reader in sandbox._target._runner._readers:
            sandbox._thread._loop.call_soon_threadsafe(reader.cancel)
        with pytest.raises(Exception, match="can no longer be read"):
            sandbox.run("1")


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError(), GeneratorExit()])
def test_whatever_a_listener_raises_ends_its_run_alone(
    shared: Sandbox, error: BaseException
) -> None:
    def fail(_: str) -> None:
        raise error

    with pytest.raises(type(error)):
        shared.run("print('go', flush=True)\nimport time; time.sleep(600)", on_stdout=fail)
    assert shared.run("'alive'").text == "'alive'"


def test_a_stream_that_ends_in_the_serving_thread_blocks_nothing(shared: Sandbox) -> None:
    stream = shared.stream("print(1, flush=True)\nimport time; time.sleep(600)")
    next(stream)

    async def end() -> None:
        stream.close()  # type: ignore[attr-defined]

    asyncio.run_coroutine_threadsafe(end(), shared._thread._loop).result(60)
    assert shared.run("'alive'").text == "'alive'"


def test_values_without_number_neither_fill_the_memory_nor_stop_others(shared: Sandbox) -> None:
    code = "send('display_data', {'data': {'a': [[]] * 5_000_000}})\nprint('end')"
    execution = shared.run(code, timeout=60)
    assert (execution.stdout, execution.results) == ("end\n", [])
    assert execution.missing.results > 10_000_000
