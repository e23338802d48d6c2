"""Streams of a kernel in a real sandbox, from its sockets to the process on the host's side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.bridge import sleep

from ..jupyter.helpers import (
    SANDBOXED,
    SECONDS,
    execute,
    kernel_log,
    running_kernel,
    wait_until,
)
from ..world import WAYS
from .peer import Peer, kernels_with_egress, without_egress

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no link")

HELPERS = r"""
import hashlib, os, socket, struct, sys, threading, time

def connect(command):
    s = socket.create_connection(("127.0.0.1", 3128), timeout=60)
    s.sendall(command.encode() + b"\n")
    return s

def read_all(s):
    got = bytearray()
    while True:
        data = s.recv(1 << 20)
        if not data:
            return bytes(got)
        got += data

def ask(word):
    with connect("echo") as s:
        s.sendall(word)
        s.shutdown(socket.SHUT_WR)
        return read_all(s)
"""


class Running(NamedTuple):
    manager: KernelManager
    client: BlockingKernelClient
    peers: list[Peer]

    def run(self, code: str, seconds: float = SECONDS) -> str:
        """Run a cell and return what it printed."""
        answer = execute(self.client, code, seconds)
        assert answer.status == "ok", answer.reply["content"]
        return answer.text


@pytest.fixture(scope="module")
def kernel() -> Iterator[Running]:
    """Return a kernel with egress; cold, so that one in this file is not restored."""
    with (
        pytest.MonkeyPatch.context() as patch,
        kernels_with_egress(patch) as peers,
        running_kernel(settings=WAYS["direct"]) as (manager, client),
    ):
        running = Running(manager, client, peers)
        running.run(HELPERS)
        yield running


def test_program_reaches_the_host(kernel: Running) -> None:
    assert kernel.run("print(ask(b'hello'))") == "b'hello'\n"


def test_fifty_megabytes_pass_in_both_directions(kernel: Running) -> None:
    code = """
data = os.urandom(1 << 20) * 50
s = connect("echo")
def send():
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
got = read_all(s)
sender.join()
s.close()
print(len(got), got == data)
del data, got
"""
    assert kernel.run(code) == f"{50 << 20} True\n"


def test_half_close_of_the_program_leaves_the_answer(kernel: Running) -> None:
    code = """
s = connect("count")
s.sendall(b"x" * 100_000)
s.shutdown(socket.SHUT_WR)
print(read_all(s).decode() == f"100000 {hashlib.sha256(b'x' * 100_000).hexdigest()}")
"""
    assert kernel.run(code) == "True\n"


def test_half_close_of_the_host_leaves_the_program_writing(kernel: Running) -> None:
    code = """
s = connect("send 5")
print(read_all(s))
s.sendall(b"y" * 100_000)
s.close()
print(ask(b"next"))
"""
    assert kernel.run(code) == "b'\\x00\\x00\\x00\\x00\\x00'\nb'next'\n"


def test_reset_passes_in_both_directions(kernel: Running) -> None:
    before = kernel.peers[-1].resets
    code = """
s = connect("reset")
try:
    print(read_all(s))
except ConnectionResetError:
    print("reset")
s = connect("silent")
time.sleep(0.2)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.close()
"""
    assert kernel.run(code) == "reset\n"
    wait_until(lambda: kernel.peers[-1].resets > before, "the reset of the program")


def test_two_hundred_streams_work_at_once(kernel: Running) -> None:
    code = """
streams = [connect("echo") for _ in range(200)]
for number, s in enumerate(streams):
    s.sendall(str(number).encode() * 1000)
for s in streams:
    s.recv(1, socket.MSG_PEEK)  # PID 1 has accepted all before one ends
for s in streams:
    s.shutdown(socket.SHUT_WR)
print(all(read_all(s) == str(n).encode() * 1000 for n, s in enumerate(streams)))
for s in streams:
    s.close()
"""
    assert kernel.run(code) == "True\n"
    assert kernel.peers[-1].most_open >= 200


def test_thousands_of_connections_do_no_harm(kernel: Running) -> None:
    code = """
held = []
for number in range(10_000):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("127.0.0.1", 3128))
    held.append(s)
    if len(held) > 500:
        held.pop(0).close()
for s in held:
    s.close()
print(ask(b"still there"))
"""
    assert kernel.run(code, 3 * SECONDS) == "b'still there'\n"
    assert kernel.peers[-1].most_open <= 256


def test_programs_that_never_read_are_bounded(kernel: Running) -> None:
    """Their bytes stay where they are, and others are served."""
    code = """
held = [connect("flood") for _ in range(50)]
for s in held:
    s.recv(1, socket.MSG_PEEK)
print(ask(b"served"))
"""
    assert kernel.run(code) == "b'served'\n"
    kernel.run("for s in held: s.close()\nprint(ask(b'again'))")


def test_cells_run_while_streams_flood(kernel: Running) -> None:
    code = """
floods = [connect("flood") for _ in range(4)]
count = [0]
def drain(s):
    try:
        while data := s.recv(1 << 18):
            count[0] += len(data)
    except OSError:
        pass
threads = [threading.Thread(target=drain, args=(s,), daemon=True) for s in floods]
for t in threads: t.start()
"""
    kernel.run(code)
    seen = int(kernel.run("print(count[0])"))
    for _ in range(20):
        assert execute(kernel.client, "1 + 1").result == "2"
    wait_until(
        lambda: int(kernel.run("print(count[0])")) > seen + (1 << 20), "more bytes of the flood"
    )
    kernel.run("for s in floods: s.shutdown(socket.SHUT_RDWR)\nfor t in threads: t.join(10)")
    assert kernel.run("print(ask(b'after'))") == "b'after'\n"


def test_program_can_be_in_another_process(kernel: Running) -> None:
    code = f"""
import subprocess
code = {HELPERS!r} + "\\nprint(ask(b'child'))"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
"""
    assert "b'child'" in kernel.run(code)


def test_kernel_cannot_take_the_port(kernel: Running) -> None:
    code = """
for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        s.bind(("127.0.0.1", 3128))
        s.listen()
        print("taken")
    except OSError as error:
        print(error.errno)
"""
    assert kernel.run(code) == "98\n98\n"


def test_restart_ends_streams_and_gives_new_ones(kernel: Running) -> None:
    kernel.run("open_streams = [connect('flood') for _ in range(10)]\nheld = connect('silent')")
    first = kernel.peers[-1]
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=SECONDS)
    assert first.ended.wait(10)
    assert kernel.peers[-1] is not first
    kernel.run(HELPERS)
    assert kernel.run("print(ask(b'new run'))") == "b'new run'\n"


def test_end_of_the_host_process_resets_streams_and_gives_new_ones(kernel: Running) -> None:
    kernel.run("held = connect('silent')")
    kernel.peers[-1].stop()
    code = """
try:
    print(read_all(held))
except ConnectionResetError:
    print("reset")
print(ask(b"served again"))
"""
    assert kernel.run(code) == "reset\nb'served again'\n"


# -- other kernels -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["restored", "relay"])
def test_kernel_started_in_another_way_has_streams(
    way: str, monkeypatch: Any, shared_snapshot: str, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        kernels_with_egress(monkeypatch) as peers,
        running_kernel(settings=WAYS[way]) as (manager, client),
    ):
        running = Running(manager, client, peers)
        restored = "restored from a snapshot" in kernel_log(manager)
        assert restored == (way == "restored")
        running.run(HELPERS)
        assert running.run("print(ask(b'hello'))") == "b'hello'\n"
        running.run("held = connect('flood')")
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=SECONDS)
        running.run(HELPERS)
        assert running.run("print(ask(b'again'))") == "b'again'\n"


def test_idle_kernel_with_open_streams_is_stopped_and_woken_by_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sleep, "MIN_SILENCE_SECONDS", 0.2)
    settings = {**WAYS["direct"], "idle_stop": True}
    with (
        kernels_with_egress(monkeypatch) as peers,
        running_kernel(settings=settings) as (manager, client),
    ):
        running = Running(manager, client, peers)
        running.run(HELPERS)
        running.run("held = [connect('silent') for _ in range(5)]\ntold = connect('say word')")
        link = manager.provisioner._kernel._kernel._link  # type: ignore[union-attr]
        wait_until(lambda: link.stopped, "the sandbox to be stopped")
        peers[-1].may_say.set()
        wait_until(lambda: not link.stopped, "the word to wake the sandbox")
        assert running.run("print(told.recv(10))") == "b'word'\n"


# -- without egress ------------------------------------------------------------------------------

REFUSED = "This kernel has no network; for packages, type on the host:"


@pytest.fixture(scope="module")
def closed_kernel(shared_snapshot: str) -> Iterator[BlockingKernelClient]:
    with pytest.MonkeyPatch.context() as patch:
        without_egress(patch)
        with running_kernel(settings=WAYS["restored"]) as (_, client):
            yield client


ASKING = {
    "urllib": """
import urllib.request, urllib.error
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({"http": "http://127.0.0.1:3128", "https": "http://127.0.0.1:3128"})
)
for url in ("http://example.org/x", "https://example.org/x"):
    try:
        opener.open(url, timeout=20)
    except urllib.error.URLError as error:
        print(error)
""",
    "http.client": """
import http.client
c = http.client.HTTPConnection("127.0.0.1", 3128, timeout=20)
c.request("POST", "/packages/pypi/simple/", body=b"x" * 50_000)
r = c.getresponse()
print(r.status, r.reason, r.read().decode())
c = http.client.HTTPSConnection("127.0.0.1", 3128, timeout=20)
c.set_tunnel("example.org", 443)
try:
    c.request("GET", "/")
except OSError as error:
    print(error)
""",
    "curl": """
import subprocess
done = subprocess.run(
    ["curl", "-sv", "-m", "20", "-x", "http://127.0.0.1:3128", "http://example.org/"],
    capture_output=True, text=True)
print(done.stdout, done.stderr)
done = subprocess.run(
    ["curl", "-sv", "-m", "20", "-x", "http://127.0.0.1:3128", "https://example.org/"],
    capture_output=True, text=True)
print(done.stdout, done.stderr)
""",
}


@pytest.mark.parametrize("client", ASKING)
def test_kernel_without_egress_is_told_why(
    client: str, closed_kernel: BlockingKernelClient
) -> None:
    answer = execute(closed_kernel, ASKING[client])
    if client == "curl" and answer.error == "FileNotFoundError":
        pytest.skip("the sandbox has no curl")
    assert answer.status == "ok", answer.reply["content"]
    assert answer.text.count(REFUSED) >= 2, answer.text


def test_kernel_without_egress_can_connect_thousands_of_times(
    closed_kernel: BlockingKernelClient,
) -> None:
    code = """
import socket
held = []
for number in range(3000):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("127.0.0.1", 3128))
    held.append(s)
    if len(held) > 300:
        held.pop(0).close()
for s in held:
    s.close()
s = socket.create_connection(("127.0.0.1", 3128), timeout=60)
s.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
print(s.recv(100))
"""
    began = time.monotonic()
    answer = execute(closed_kernel, code, 2 * SECONDS)
    assert REFUSED[:30] in answer.text, (answer.text, time.monotonic() - began)
