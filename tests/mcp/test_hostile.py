"""Clients that send garbage, floods or too much, leave in the middle, and ask for other files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ..patience import scale_seconds
from ..sweeps import needs_all
from .servers import HttpServer, call, http_server, raw_server, stdio_session

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}
MIB = 1024 * 1024
MARK = "the content of a file of the host"


def send(process: subprocess.Popen[bytes], *messages: Any) -> None:
    assert process.stdin is not None
    for message in messages:
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        view = memoryview(data)
        while view:
            view = view[process.stdin.write(view) :]


class Answers:
    """Reads the answers of a server. ``until`` returns the next one with that id."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.file = os.fdopen(os.dup(process.stdout.fileno()), "rb")

    def until(self, request: int) -> dict[str, Any]:
        return self.next_of([request])

    def next_of(self, requests: Collection[int]) -> dict[str, Any]:
        while line := self.file.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer.get("id") in requests:
                return answer
        raise AssertionError("the server has ended")

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()


def call_tool(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": f"sandbox_{tool}", "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def peak_memory(process: subprocess.Popen[Any]) -> int:
    """Return the largest resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def test_garbage_and_floods_do_no_harm() -> None:
    with raw_server() as process, Answers(process) as answers:
        send(process, b"\xff\x00garbage\n", b"[" * 100_000 + b"\n", b"\n\n", b'{"id": 1}\n')
        send(process, INITIALIZE, READY)
        assert answers.until(0)["result"]["serverInfo"]["name"] == "gvisor-kernel"
        send(process, {"jsonrpc": "2.0", "id": 1, "method": "nothing/such", "params": {}})
        assert answers.until(1)["error"]["code"] == -32601
        send(process, {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": 1}})
        assert answers.until(2)["error"]["code"] == -32602
        send(process, call_tool(3, "nothing"))
        assert answers.until(3)["error"]["code"] == -32602

        # A flood that is sent before any of its answers is read.
        flood = [call_tool(100 + number, "list_sessions") for number in range(3000)]
        sending = threading.Thread(target=send, args=(process, *flood))
        sending.start()
        assert answers.until(100 + len(flood) - 1)
        sending.join(60)
        send(process, call_tool(5, "run_code", code="1 + 1"))
        assert answers.until(5)["result"]["structuredContent"]["result"] == "2"


@needs_all
def test_two_gigabytes_over_http_take_little_memory() -> None:
    """As one body without a length, and as bodies that never end."""

    def open_request(server: HttpServer, length: str) -> socket.socket:
        address = urlsplit(server.url)
        connection = socket.create_connection((address.hostname, address.port))
        head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n{length}\r\n"
        head += f"Authorization: Bearer {server.token}\r\nContent-Type: application/json\r\n"
        head += "Accept: application/json, text/event-stream\r\n\r\n"
        connection.sendall(head.encode())
        return connection

    with http_server() as server, ExitStack() as stack:
        before = peak_memory(server.process)
        connection = stack.enter_context(open_request(server, "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(2048):
                connection.sendall(b"100000\r\n" + b"x" * MIB + b"\r\n")
        assert b" 413 " in connection.recv(100)
        assert peak_memory(server.process) - before < 96 * MIB

        size = 31 * MIB
        statuses: list[bytes] = []
        for _ in range(66):
            connection = open_request(server, f"Content-Length: {size + 1}")
            stack.enter_context(connection)
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x" * size)
            if select.select([connection], [], [], 0)[0]:
                statuses.append(connection.recv(100).split(b" ")[1])
        assert len(statuses) > 50
        assert set(statuses) == {b"503"}
        assert peak_memory(server.process) - before < 768 * MIB


def test_calls_beyond_the_limit_are_refused() -> None:
    with raw_server() as process, Answers(process) as answers:
        send(process, INITIALIZE, READY)
        sleep = "import time; time.sleep(1000)"
        send(process, *(call_tool(number, "run_code", code=sleep) for number in range(1, 17)))
        send(process, call_tool(17, "list_sessions"))
        text = answers.until(17)["result"]["content"][0]["text"]
        assert "16 calls at once, which is the limit" in text


def test_a_client_that_leaves_in_the_middle_leaves_nothing() -> None:
    """The fixture that looks for leftovers checks the sandbox."""
    with raw_server() as process, Answers(process) as answers:
        send(process, INITIALIZE, READY)
        code = "print('begun', flush=True)\nwhile True: pass"
        request = call_tool(1, "run_code", code=code)
        request["params"]["_meta"] = {"progressToken": 1}
        send(process, request, b'{"jsonrpc": "2.0", "id"')
        assert process.stdout is not None
        while b"notifications/progress" not in answers.file.readline():
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=needs_all)])
def test_a_signal_ends_the_server_and_its_sandboxes(number: int) -> None:
    with raw_server() as process, Answers(process) as answers:
        send(process, INITIALIZE, READY, call_tool(1, "run_code", code="while True: pass"))
        answers.until(0)
        process.send_signal(number)
        assert process.wait(scale_seconds(30)) == 0


@pytest.mark.once
@pytest.mark.parametrize("leaves", ["by closing stdin", "by a signal"])
def test_a_client_that_reads_nothing_keeps_no_server(leaves: str) -> None:
    """The server waits in a write to a pipe that is full."""
    with raw_server() as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, os.sysconf("SC_PAGESIZE"))
        request = {"jsonrpc": "2.0", "method": "tools/list"}
        send(process, INITIALIZE, READY, *({**request, "id": number} for number in range(1, 40)))
        assert select.select([process.stdout], [], [], scale_seconds(60))[0]  # so it is full
        if leaves == "by a signal":
            process.send_signal(signal.SIGTERM)
            assert process.wait(scale_seconds(30)) == 0


def test_nothing_but_messages_is_on_stdout() -> None:
    with raw_server() as process:
        assert process.stdout is not None
        assert process.stdin is not None
        send(process, INITIALIZE, READY, call_tool(1, "run_code", code="import os; os._exit(1)"))
        send(process, {"jsonrpc": "2.0", "id": 2, "method": "resources/list"})
        seen: set[object] = set()
        while seen != {0, 1, 2}:
            message = json.loads(process.stdout.readline())
            seen.add(message.get("id"))
        process.stdin.close()
        assert process.stdout.read() == b""


@pytest.mark.once
def test_no_argument_reaches_a_file_of_the_host(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "allowed").write_text("allowed")
    secret = tmp_path / "secret"
    secret.write_text(MARK)
    (root / "link").symlink_to(secret)
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    paths = [
        *("../../etc/passwd", "../" * 12 + str(secret), str(secret), f"{root}/../secret"),
        *(f"{root}/link", f"{root}/folder/secret", f"{root}/pipe", str(root), f"{root}x"),
        *("file://" + str(secret), f"{root}/%2e%2e/secret", f"/proc/{os.getpid()}/root{secret}"),
    ]

    async def scenario() -> None:
        async with stdio_session("--upload-from", str(root)) as session:
            await call(session, "upload_file", source=f"{root}/allowed")
            tools = (await session.list_tools()).tools
            for tool in tools:
                if tool.name == "sandbox_restart_session":
                    continue
                names = list(tool.input_schema.get("properties", {}))
                for path in paths if "source" in names or "path" in names else paths[:2]:
                    for given in ({name: path} for name in names):
                        rest = {"source": f"{root}/allowed", "path": "x", "content": "x"}
                        rest |= {"code": "1", "command": "true", "run": 1, "session": "python"}
                        needed = {key: rest[key] for key in names if key in rest}
                        result = await session.call_tool(tool.name, {**needed, **given})
                        assert MARK not in str(result), (tool.name, given)
                        if "source" in given:
                            assert result.is_error
            uris = [f"sandbox://python/outputs/{path}" for path in paths]
            uris += [f"skill://{path}/SKILL.md" for path in paths]
            for uri in [*uris, f"file://{secret}", *paths]:
                try:
                    content = str(await session.read_resource(uri))
                except Exception as error:
                    content = str(error)
                assert MARK not in content

    asyncio.run(scenario())
