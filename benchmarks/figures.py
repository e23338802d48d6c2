"""What is measured: each figure takes a started kernel, or starts one, and returns samples.

Seconds unless the name says otherwise. No statistics and no printing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

IMPORTS = "import numpy, pandas, matplotlib.pyplot"
PRINTS = "for i in range(100_000): print(i)"
SYSCALLS = "import os\nfor _ in range(100_000): os.stat('/')"
CPU = "sum(i * i for i in range(3_000_000))"
SECONDS = 120.0


def ignore(_: dict[str, Any]) -> None:
    """An output hook that drops the output."""


def run(client: BlockingKernelClient, code: str) -> float:
    """Seconds from sending ``code`` to its reply and idle."""
    begin = time.perf_counter()
    reply = client.execute_interactive(code, timeout=SECONDS, output_hook=ignore)
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"{code!r} failed: {reply['content']}")
    return time.perf_counter() - begin


@contextmanager
def started(prepare: Callable[[], KernelManager]) -> Iterator[tuple[KernelManager, Any]]:
    """A kernel that has run one cell; shut down at the end."""
    manager = prepare()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        run(client, "1+1")
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def measure_start(prepare: Callable[[], KernelManager]) -> dict[str, float]:
    """One start, from ``start_kernel`` on: to kernel_info, to the first cell, to the imports."""
    begin = time.perf_counter()
    manager = prepare()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        info = time.perf_counter() - begin
        run(client, "1+1")
        execute = time.perf_counter() - begin
        run(client, IMPORTS)
        imports = time.perf_counter() - begin
        begin = time.perf_counter()
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    return {
        "start to kernel_info": info,
        "start to first execute": execute,
        f"start to {IMPORTS}": imports,
        "shutdown": time.perf_counter() - begin,
    }


def measure_kernel(manager: KernelManager, client: BlockingKernelClient) -> dict[str, list[float]]:
    """One round of everything that a running kernel is measured by."""
    return {
        "round trip of 1+1": [run(client, "1+1") for _ in range(30)],
        "round trip of print": [run(client, "print(1)") for _ in range(30)],
        "1 MB of output": [run(client, "print('x' * 10**6)")],
        "10 MB of output": [run(client, "print('x' * 10**7)")],
        "100 MB of output": [run(client, "print('x' * 10**8)")],
        "100,000 small prints": [run(client, PRINTS)],
        "100,000 stat calls": [run(client, SYSCALLS)],
        "CPU-bound cell": [run(client, CPU)],
        "time to interrupt": [measure_interrupt(manager, client) for _ in range(3)],
    }


def measure_interrupt(manager: KernelManager, client: BlockingKernelClient) -> float:
    """Seconds from ``interrupt_kernel`` to the reply of an endless loop."""
    running = client.execute("print('running', flush=True)\nwhile True: pass")
    while True:
        message = client.get_iopub_msg(timeout=SECONDS)
        if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == running:
            break
    begin = time.perf_counter()
    manager.interrupt_kernel()
    while client.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != running:
        pass
    return time.perf_counter() - begin


def descendants() -> set[psutil.Process]:
    """The processes below this one: the kernels', and what keeps their sandboxes."""
    return set(psutil.Process().children(recursive=True))


def memory_mib(processes: set[psutil.Process]) -> float:
    """Proportional memory of ``processes`` in MiB: what is shared counts once."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1024**2


def cpu_seconds(processes: set[psutil.Process]) -> float:
    """CPU time that ``processes`` have used so far."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
