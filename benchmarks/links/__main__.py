"""``python -m benchmarks.links``: many links to one bridge process, without sandboxes.

For each number of links: what the process takes (memory, descriptors, threads), its CPU time while
nothing happens, and round trips of ``1+1`` by real ZMQ clients in this process: with all other
kernels idle, with a tenth of the kernels that run a cell each second, and as many as it can.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import zmq
import zmq.asyncio
from jupyter_client.session import Session

from benchmarks.machine import PROJECT, describe_machine
from benchmarks.processes import cpu_seconds

SECONDS = 120.0
QUIET_SECONDS = 2.0
"""After a cell, before idle is measured: the bridge stops what is idle for a second."""
FLAT_OUT = 16
"""Kernels that run cells without a pause."""
MIB = 1024**2


@dataclass(frozen=True)
class Figures:
    """What was measured with ``links`` links. Times in milliseconds, CPU in percent of a core."""

    links: int
    idle_stop: bool
    open_seconds: float
    memory_mib: float
    descriptors: int
    threads: int
    idle_cpu: float
    idle_p50: float
    idle_p99: float
    busy_cpu: float
    busy_trips: int
    busy_p50: float
    busy_p99: float
    most_per_second: float
    cpu_of_trip: float


class Client:
    """The client of one kernel. One request at a time."""

    def __init__(self, context: zmq.asyncio.Context, session: Session, address: dict[str, str]):
        self._session = session
        self._shell = context.socket(zmq.DEALER)
        self._iopub = context.socket(zmq.SUB)
        self._iopub.subscribe(b"")
        for socket, name in ((self._shell, "SHELL"), (self._iopub, "IOPUB")):
            socket.linger = 0
            socket.connect(address[name])

    async def welcome(self) -> None:
        """Wait until the kernel's outputs reach this client."""
        while (await self._receive(self._iopub))["msg_type"] != "iopub_welcome":
            pass

    async def trip(self) -> float:
        """Run ``1+1``; return the seconds until its reply and its idle status have come."""
        began = time.perf_counter()
        content = {"code": "1+1", "silent": False, "store_history": True, "allow_stdin": False}
        request = self._session.msg("execute_request", content)
        await self._shell.send_multipart(self._session.serialize(request))
        await asyncio.gather(self._wait_idle(request["msg_id"]), self._receive(self._shell))
        return time.perf_counter() - began

    async def _wait_idle(self, of: str) -> None:
        while True:
            message = await self._receive(self._iopub)
            is_idle = message["content"].get("execution_state") == "idle"
            if is_idle and message["parent_header"].get("msg_id") == of:
                return

    async def _receive(self, socket: Any) -> dict[str, Any]:
        parts = await asyncio.wait_for(socket.recv_multipart(), SECONDS)
        _, parts = self._session.feed_identities(parts)
        message: dict[str, Any] = self._session.deserialize(parts)
        return message


@contextmanager
def running_bridge(count: int, *, idle_stop: bool) -> Iterator[tuple[psutil.Process, Any]]:
    """Yield the process and what it printed."""
    argv = [sys.executable, "-m", "benchmarks.links.bridge", str(count)]
    argv += ["--idle-stop"] * idle_stop
    with subprocess.Popen(
        argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(SECONDS)


class Meter:
    """CPU of a process since construction."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._began, self._spent = time.monotonic(), cpu_seconds([process])

    def percent(self) -> float:
        spent = cpu_seconds([self._process]) - self._spent
        return 100 * spent / (time.monotonic() - self._began)


async def run_each_second(client: Client, first: float, until: float, into: list[float]) -> None:
    """Run a cell each second from ``first`` on, as a person's kernel that works."""
    loop = asyncio.get_running_loop()
    for number in itertools.count():
        at = first + number
        if at > until:
            return
        await asyncio.sleep(at - loop.time())
        into.append(await client.trip())


async def run_on(client: Client, until: float) -> int:
    loop = asyncio.get_running_loop()
    count = 0
    while loop.time() < until:
        await client.trip()
        count += 1
    return count


def percentile(times: list[float], percent: int) -> float:
    """Return a percentile in milliseconds."""
    return round(1000 * sorted(times)[len(times) * percent // 100], 2)


async def measure(links: int, trips: int, seconds: float, *, idle_stop: bool) -> Figures:
    """Measure each phase for ``seconds``, and ``trips`` round trips one by one."""
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    chance = random.Random(links)  # noqa: S311
    with running_bridge(links, idle_stop=idle_stop) as (process, told):
        opened = time.monotonic() - began
        context = zmq.asyncio.Context()
        context.set(zmq.MAX_SOCKETS, 65536)
        session = Session(key=told["key"].encode())
        clients = [Client(context, session, each) for each in told["addresses"]]
        try:
            for client in clients:
                await client.welcome()
            for client in clients:
                await client.trip()
            await asyncio.sleep(min(QUIET_SECONDS, seconds))
            meter = Meter(process)
            await asyncio.sleep(seconds)
            idle_cpu = meter.percent()
            idle = [await chance.choice(clients).trip() for _ in range(trips)]
            busy = chance.sample(clients, max(1, links // 10))
            times: list[float] = []
            now = loop.time()
            meter = Meter(process)
            await asyncio.gather(
                *(
                    run_each_second(each, now + number / len(busy), now + seconds, times)
                    for number, each in enumerate(busy)
                )
            )
            busy_cpu = meter.percent()
            meter = Meter(process)
            until = loop.time() + seconds
            counts = await asyncio.gather(*(run_on(each, until) for each in clients[:FLAT_OUT]))
            cpu = meter.percent() * seconds / sum(counts)
            return Figures(
                *(links, idle_stop, round(opened, 2)),
                round(process.memory_full_info().uss / MIB, 1),
                *(process.num_fds(), process.num_threads()),
                *(round(idle_cpu, 2), percentile(idle, 50), percentile(idle, 99)),
                *(round(busy_cpu, 1), len(times), percentile(times, 50), percentile(times, 99)),
                *(round(sum(counts) / seconds), round(10 * cpu, 2)),
            )
        finally:
            context.destroy(linger=0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__)
    parser.add_argument("--links", default="10,100,1000", help="numbers of links, with commas")
    parser.add_argument("--trips", type=int, default=1000, help="of each idle kernel's figure")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--output", type=Path, help="the figures as JSON")
    arguments = parser.parse_args(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found = []
    for count, idle_stop in itertools.product(map(int, arguments.links.split(",")), (True, False)):
        measuring = measure(count, arguments.trips, arguments.seconds, idle_stop=idle_stop)
        figures = asyncio.run(measuring)
        found.append(asdict(figures))
        print(json.dumps(found[-1]), flush=True)
    if arguments.output is not None:
        report = {"machine": describe_machine(), "figures": found}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
