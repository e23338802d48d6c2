"""Sandboxes of programs, compared with the kernels that Jupyter starts.

python -m benchmarks.api [--rounds N] [--output FILE]: all figures in one run. Each round measures
every figure in turn, so compare the ratios. Needs a kernelspec python3 and an installed
gvisor-kernel; it makes the snapshot of gvisor-python if there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from benchmarks.egress import SECONDS, trip
from gvisor_kernel import Sandbox, SandboxPool

SIZE = 10_000_000
INPUTS, WORKERS, CELLS = 8, 4, 40
SQUARE = "def square(x):\n    return x * x"
OVER = {
    "Sandbox(): first result, s": ("provisioner: first result, s", "local: first result, s"),
    "pool.take(): first result, s": ("local: first result, s",),
    "Sandbox: 1+1, ms": ("provisioner: 1+1, ms", "local: 1+1, ms"),
}
"""Figures that are told as ratios, and to which others."""


@contextmanager
def kernel(name: str) -> Iterator[BlockingKernelClient]:
    """Start a kernel as Jupyter does; yield a client when it has answered a cell."""
    config = Config({"GVisorProvisioner": {"uploads": None, "outputs": None, "spare": False}})
    manager = KernelManager(kernel_name=name, config=config, transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        trip_from_start(client)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def trip_from_start(client: BlockingKernelClient) -> None:
    """Run the first cell. A client that subscribed late has missed its idle status: only the
    reply is waited for."""
    wanted = client.execute("1+1")
    while client.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != wanted:
        pass


def start_kernel(name: str) -> float:
    began = time.perf_counter()
    with kernel(name):
        return time.perf_counter() - began


def start_sandbox() -> float:
    began = time.perf_counter()
    with Sandbox(spare=False) as sandbox:
        assert sandbox.run("1+1").text == "2"
        return time.perf_counter() - began


def start_server() -> float:
    """Start an MCP server over stdio, and wait for the result of its first tool."""
    program = {"name": "benchmark", "version": "1"}
    begin = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": program}
    call = {"name": "sandbox_run_code", "arguments": {"code": "1+1"}}
    messages: list[dict[str, Any]] = [
        {"id": 1, "method": "initialize", "params": begin},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": call},
    ]
    lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "gvisor_kernel", "mcp", "--outputs", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(lines)
        server.stdin.flush()
        answer: dict[str, Any] = {}
        while answer.get("id") != 2:
            answer = json.loads(server.stdout.readline())
        seconds = time.perf_counter() - began
        assert answer["result"]["structuredContent"]["result"] == "2"
        server.stdin.close()
        assert server.wait(SECONDS) == 0
        return seconds


def take(pool: SandboxPool) -> float:
    """Take one that is ready: that another one is being started is no part of the figure."""
    wait_until_full(pool)
    began = time.perf_counter()
    with pool.take() as sandbox:
        assert sandbox.run("1+1").text == "2"
        return time.perf_counter() - began


def wait_until_full(pool: SandboxPool) -> None:
    end = time.monotonic() + SECONDS
    while pool._pool._ready.qsize() < pool._pool._size:
        assert time.monotonic() < end
        time.sleep(0.05)


def median_of(call: Callable[[], object]) -> float:
    """Return the median time of CELLS calls, in ms."""
    times = []
    for _ in range(CELLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def time_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    data = os.urandom(SIZE)

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"{name}: {value:.4g}", file=sys.stderr, flush=True)

    def figures() -> list[tuple[str, Callable[[], float]]]:
        files = sandbox.files
        return [
            ("local: first result, s", lambda: start_kernel("python3")),
            ("provisioner: first result, s", lambda: start_kernel("gvisor-python")),
            ("Sandbox(): first result, s", start_sandbox),
            ("pool.take(): first result, s", lambda: take(pool)),
            ("MCP server: first result, s", start_server),
            ("local: 1+1, ms", lambda: median_of(lambda: trip(local))),
            ("provisioner: 1+1, ms", lambda: median_of(lambda: trip(provisioned))),
            ("Sandbox: 1+1, ms", lambda: median_of(lambda: sandbox.run("1+1"))),
            ("files.write of 10 MB, s", lambda: time_of(lambda: files.write("x", data))),
            ("files.read of 10 MB, s", lambda: time_of(lambda: files.read("x", "bytes"))),
            (
                f"Sandbox.map of {INPUTS} inputs, {WORKERS} workers, s",
                lambda: time_of(lambda: Sandbox.map(SQUARE, range(INPUTS), workers=WORKERS)),
            ),
        ]

    with ExitStack() as stack:
        local = stack.enter_context(kernel("python3"))
        provisioned = stack.enter_context(kernel("gvisor-python"))
        sandbox = stack.enter_context(Sandbox())
        pool = stack.enter_context(SandboxPool(size=1))
        for start in (lambda: start_kernel("python3"), lambda: start_kernel("gvisor-python")):
            start()
        for client in (local, provisioned):
            median_of(lambda client=client: trip(client))  # type: ignore[misc]
        for number in range(rounds):
            todo = figures()
            at = 3 * number % len(todo)
            for name, figure in [*todo[at:], *todo[:at]]:
                if name.startswith("files.read"):
                    files_are_ready(sandbox, data)
                wait_until_full(pool)
                note(name, figure())
    return samples


def files_are_ready(sandbox: Sandbox, data: bytes) -> None:
    if not sandbox.files.exists("x"):
        sandbox.files.write("x", data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a file for all samples, as JSON")
    options = parser.parse_args()
    build = [sys.executable, "-m", "gvisor_kernel", "snapshot", "build"]
    subprocess.run(build, stdout=sys.stderr, check=True)
    loads = [os.getloadavg()[0]]
    samples = measure(options.rounds)
    loads.append(os.getloadavg()[0])
    for name, values in sorted(samples.items()):
        middle = statistics.median(values)
        print(f"{name}: {middle:.3g} ({min(values):.3g} to {max(values):.3g})")
    for name, others in OVER.items():
        for other in others:
            ratio = statistics.median(
                a / b for a, b in zip(samples[name], samples[other], strict=True)
            )
            print(f"{name}, over {other}: {ratio:.2f}")
    print(f"load: {loads[0]:.1f} at the start, {loads[1]:.1f} at the end")
    if options.output is not None:
        options.output.write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    main()
