"""``python -m benchmarks.node``: what real kernels take on this machine.

Memory of an idle kernel by its processes, CPU time of idle kernels that are stopped and that are
not, what one measurement of memory takes, descriptors of the server, and starts per second, cold
and from a snapshot, one by one and several at once. One process starts all kernels, as a server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine
from benchmarks.processes import adopt_orphans, cpu_seconds, descendants, memory
from benchmarks.soak.__main__ import KERNEL, private_home

MIB = 1024**2


@dataclass(frozen=True)
class Idle:
    """Idle kernels; memory in MiB for each, CPU in percent of a core for each."""

    kernels: int
    idle_stop: bool
    by_process: dict[str, float]
    """PSS of each kind of process; the memory file is counted with the sentry."""
    memory: float
    counted: float
    """What the memory limit counts."""
    server_memory: float
    server_descriptors: float
    threads: int
    cpu: float
    server_cpu: float
    measurement_us: float


@dataclass(frozen=True)
class Starts:
    """``count`` starts, each to the reply of its first cell, ``at_once`` at a time."""

    snapshot: str
    at_once: int
    count: int
    per_second: float
    cpu_seconds: float
    """CPU time for each start, of all processes."""


def kind_of(process: psutil.Process) -> str:
    words = process.cmdline()
    name = " ".join(words[:3])
    if "gofer" in name:
        return "gofer"
    if "runsc-sandbox" in name or "boot" in words:
        return "sentry"
    return "stubs" if "exe" in name or not words else Path(words[0]).name


def pss(kind: str, found: set[psutil.Process]) -> float:
    """Return MiB. The memory file, which sentry and stubs map, is the sentry's."""
    used = memory(found)
    return (used.processes + (used.files if kind == "sentry" else 0)) / MIB


async def start(snapshot: str, settings: dict[str, Any]) -> Any:
    """Start a kernel and wait for its first cell."""
    from traitlets.config import Config

    from benchmarks.soak.kernels import Kernel

    kernel = Kernel(KERNEL)
    kernel.manager.config = Config(
        {"GVisorProvisioner": {"snapshot": snapshot, "spare": False, **settings}}
    )
    kernel.manager.transport = "ipc"
    await kernel.start()
    await kernel.expect("print(1 + 1)", "2\n")
    return kernel


async def measure_idle(count: int, seconds: float, *, idle_stop: bool) -> Idle:
    own = psutil.Process()
    first = await start("auto", {"idle_stop": idle_stop})
    before = own.memory_full_info().uss, own.num_fds()
    others = descendants()
    kernels = [await start("auto", {"idle_stop": idle_stop}) for _ in range(count)]
    try:
        found = descendants() - others
        kinds: dict[str, set[psutil.Process]] = defaultdict(set)
        for process in found:
            kinds[kind_of(process)].add(process)
        await asyncio.sleep(3)
        began, spent, mine = time.monotonic(), cpu_seconds(found), cpu_seconds([own])
        await asyncio.sleep(seconds)
        passed = time.monotonic() - began
        sandbox = kernels[0].manager.provisioner._kernel.sandbox
        began_counting = time.perf_counter()
        for _ in range(200):
            counted = sandbox.memory_used()
        counting = (time.perf_counter() - began_counting) / 200
        return Idle(
            *(count, idle_stop),
            {kind: round(pss(kind, each) / count, 1) for kind, each in sorted(kinds.items())},
            round(memory(found).mib / count, 1),
            round(counted / MIB, 1),
            round((own.memory_full_info().uss - before[0]) / MIB / count, 2),
            round((own.num_fds() - before[1]) / count, 1),
            own.num_threads(),
            round(100 * (cpu_seconds(found) - spent) / passed / count, 2),
            round(100 * (cpu_seconds([own]) - mine) / passed / count, 2),
            round(1e6 * counting),
        )
    finally:
        for kernel in (first, *kernels):
            await kernel.close(now=True)


async def measure_starts(snapshot: str, at_once: int, count: int) -> Starts:
    turns = asyncio.Semaphore(at_once)
    kernels: list[Any] = []

    async def one() -> None:
        async with turns:
            kernels.append(await start(snapshot, {}))

    used = os.times()
    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(count)))
    passed = time.monotonic() - began
    mine = os.times().user + os.times().system - used.user - used.system
    spent = cpu_seconds(descendants()) + mine
    for kernel in kernels:
        await kernel.close(now=True)
    return Starts(snapshot, at_once, count, round(count / passed, 2), round(spent / count, 2))


async def measure(kernels: int, seconds: float) -> dict[str, Any]:
    import subprocess
    import sys

    build = [sys.executable, "-m", "gvisor_kernel", "snapshot", "build", "--kernel", KERNEL]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = {"machine": describe_machine(), "idle": [], "starts": []}
    for idle_stop in (True, False):
        found = asdict(await measure_idle(kernels, seconds, idle_stop=idle_stop))
        report["idle"].append(found)
        print(json.dumps(found), flush=True)
    for snapshot in ("auto", "off"):
        for at_once in (1, 4):
            started = asdict(await measure_starts(snapshot, at_once, kernels))
            report["starts"].append(started)
            print(json.dumps(started), flush=True)
    return report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node", description=__doc__)
    parser.add_argument("--kernels", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which CPU is measured")
    parser.add_argument("--output", type=Path, help="the figures as JSON")
    arguments = parser.parse_args(argv)
    output = arguments.output.resolve() if arguments.output is not None else None
    adopt_orphans()
    with private_home("auto"):
        report = asyncio.run(measure(arguments.kernels, arguments.seconds))
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
