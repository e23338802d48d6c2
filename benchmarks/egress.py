"""Requests of a sandbox through a route, compared with those of a local kernel to the same server.

python -m benchmarks.egress [--rounds N] [--output FILE]: all figures in one run. Each round
measures both kernels in turn, so compare the ratios. The server runs on the host's loopback in a
process of its own. Needs a kernelspec python3 and an installed gvisor-kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from gvisor_kernel.egress.process import EgressWorker

MIB = 1024 * 1024
CHUNK = bytes(MIB)
WHEEL = 20_000_000
SECONDS = 300.0
KINDS = ("local", "sandbox")
REQUESTS, STREAMS, CELLS = 100, 200, 40

HELPERS = """
import http.client, threading, time
def small(count):
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("GET", BASE + "/0")
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
    connection.close()
    return sorted(times)[len(times) // 2]
def download(size):
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    connection.request("GET", BASE + f"/{size}")
    answer, got, buffer = connection.getresponse(), 0, bytearray(1 << 18)
    while count := answer.readinto(buffer):
        got += count
    assert got == size, got
    return time.perf_counter() - began
def many(count, size):
    began, times = time.perf_counter(), []
    threads = [
        threading.Thread(target=lambda: times.append(download(size))) for _ in range(count)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(times) == count, len(times)
    return time.perf_counter() - began
def install():
    import shutil, subprocess, sys, tempfile
    folder = tempfile.mkdtemp()
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--target", folder]
    began = time.perf_counter()
    done = subprocess.run([*argv, "bigwheel"], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    return seconds
def download_in_child(size):
    import subprocess, sys
    code = f"PORT, BASE = {(PORT, BASE)}\\n{SOURCE}\\nprint(flush=True)\\n"
    code += f"while True: download({size})"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    return child
"""


# -- the server ------------------------------------------------------------------------------------


def serve() -> None:
    """Answer ``GET …/SIZE`` with SIZE bytes, until stdin ends; print the port first."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, suppress(OSError), connection.makefile("rb") as file:
        while line := file.readline():
            while file.readline().strip():
                pass
            left = int(line.split()[1].rpartition(b"/")[2])
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
            while left:
                part = memoryview(CHUNK)[: min(left, MIB)]
                connection.sendall(part)
                left -= len(part)


@contextmanager
def serving() -> Iterator[int]:
    argv = [sys.executable, "-m", "benchmarks.egress", "--serve"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def serving_wheel() -> Iterator[str]:
    """Serve an index with a wheel of WHEEL bytes; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "simple", "bigwheel")
        page.mkdir(parents=True)
        name, info = "bigwheel-1.0-py3-none-any.whl", "bigwheel-1.0.dist-info"
        with zipfile.ZipFile(page / name, "w") as wheel:
            wheel.writestr("bigwheel/data", os.urandom(WHEEL))
            text = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{info}/WHEEL", text)
            wheel.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: bigwheel\nVersion: 1.0\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256((page / name).read_bytes()).hexdigest()
        (page / "index.html").write_text(f'<a href="{name}#sha256={digest}">{name}</a>')
        argv = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
        out, log = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(argv, cwd=folder, stdout=out, stderr=log) as process:
            assert process.stdout is not None
            port = re.search(rb"port (\d+)", process.stdout.readline())
            assert port is not None
            yield f"http://127.0.0.1:{int(port[1])}/simple/"
            process.terminate()


# -- kernels ---------------------------------------------------------------------------------------


def routes_to(port: int) -> dict[str, Any]:
    """Return the route ``bench``, to a server on the host's loopback."""
    limits = {"requests_per_minute": 100_000, "at_once": 256}
    url = f"http://127.0.0.1:{port}/x"
    return {"bench": {"url": url, "allow_private": True, "limits": limits}}


def find_server(port: int, *, sandboxed: bool) -> tuple[int, str]:
    """Return the port and the path by which a kernel reaches it."""
    return (3128, "/bench") if sandboxed else (port, "/x")


@contextmanager
def kernel(kind: str, port: int) -> Iterator[BlockingKernelClient]:
    settings = {"egress": ["bench", "packages"], "snapshot": "off"}
    config = Config({"GVisorProvisioner": settings, "GVisorEgress": {"routes": routes_to(port)}})
    name = "python3" if kind == "local" else "gvisor-python"
    manager = KernelManager(kernel_name=name, config=config, transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        where = find_server(port, sandboxed=kind != "local")
        run(client, f"PORT, BASE = {where}\nSOURCE = {HELPERS!r}\n{HELPERS}")
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, code: str) -> str:
    parts: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            parts.append(message["content"]["text"])

    reply = client.execute_interactive(code, timeout=SECONDS, output_hook=keep)
    if reply["content"]["status"] != "ok":
        raise RuntimeError("\n".join(reply["content"]["traceback"]))
    return "".join(parts)


def call(client: BlockingKernelClient, code: str) -> float:
    return float(run(client, f"print({code})"))


def trip(client: BlockingKernelClient) -> None:
    """Run a cell until its reply and its idle status have arrived."""
    wanted = client.execute("1+1")
    while client.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != wanted:
        pass
    while True:
        message = client.get_iopub_msg(timeout=SECONDS)
        is_own = message["parent_header"].get("msg_id") == wanted
        if is_own and message["content"].get("execution_state") == "idle":
            return


def trips(client: BlockingKernelClient, count: int) -> float:
    """Return the 90th percentile of the times of ``1+1``."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        trip(client)
        times.append(time.perf_counter() - began)
    return statistics.quantiles(times, n=10)[-1]


def trips_while(client: BlockingKernelClient, size: int) -> float:
    """The same while a child process of the kernel downloads again and again."""
    run(client, f"child = download_in_child({size})")
    try:
        return trips(client, CELLS)
    finally:
        run(client, "child.kill(); child.wait()")


class Memory:
    """The largest resident memory of the worker, in MiB, sampled while this is open."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/statm")
        self.base = self.peak = self._read()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _read(self) -> float:
        return int(self._path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB

    def _sample(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self._read())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


# -- a run -----------------------------------------------------------------------------------------


def measure(rounds: int, size: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"{name}: {value:.4g}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        port = stack.enter_context(serving())
        os.environ["PIP_INDEX_URL"] = stack.enter_context(serving_wheel())
        local, sandbox = (stack.enter_context(kernel(kind, port)) for kind in KINDS)
        clients = {"local": local, "sandbox": sandbox}
        for client in clients.values():
            call(client, "small(20)")
            call(client, "install()")
        pid = EgressWorker.instance().pid
        assert pid is not None
        with Memory(pid) as memory:
            for number in range(rounds):
                for kind in KINDS if number % 2 else KINDS[::-1]:
                    client = clients[kind]
                    note(f"{kind}: small request, ms", 1000 * call(client, f"small({REQUESTS})"))
                    seconds = call(client, f"download({size})")
                    note(f"{kind}: download, MB/s", size / seconds / 1e6)
                    seconds = call(client, f"many({STREAMS}, {MIB})")
                    note(f"{kind}: {STREAMS} streams of 1 MiB, MB/s", STREAMS * MIB / seconds / 1e6)
                    note(f"{kind}: pip install of a wheel of 20 MB, s", call(client, "install()"))
                    note(f"{kind}: 1+1, ms", 1000 * trips(client, CELLS))
                    note(f"{kind}: 1+1 during a download, ms", 1000 * trips_while(client, 4 * size))
            note("worker: memory before, MiB", memory.base)
            note("worker: largest memory, MiB", memory.peak)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=250_000_000, help="bytes of a download")
    parser.add_argument("--output", type=Path, help="a file for all samples, as JSON")
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    samples = measure(options.rounds, options.size)
    for name, values in samples.items():
        middle = statistics.median(values)
        print(f"{name}: {middle:.3g} ({min(values):.3g} to {max(values):.3g})")
    if options.output is not None:
        options.output.write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    main()
