"""Run the cells of a notebook in a kernel, as nbclient does. Runs in a worker.

A cell that fails does not end the run: a notebook may mean to, and the next cells still count.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.manager import KernelManager

from benchmarks import egress, figures, processes

CELL_SECONDS = 300.0
LOOK_SECONDS = 1.0
"""After that without output, the kernel's process is looked at."""


def settings_with_route(port: int) -> dict[str, Any]:
    """Return Jupyter's configuration for kernels that may reach ``port`` of the host's loopback."""
    routes = egress.routes_to(port)
    return {"GVisorProvisioner": {"egress": [*routes]}, "GVisorEgress": {"routes": routes}}


def begin(manager: KernelManager, folder: Path) -> figures.Kernel:
    manager.start_kernel(cwd=str(folder))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=figures.SECONDS)
    except BaseException:
        figures.end_kernel((manager, client))
        raise
    return manager, client


def end(kernel: figures.Kernel) -> None:
    manager, client = kernel
    manager.shutdown_kernel()
    client.stop_channels()


def run_cells(kernel: figures.Kernel, cells: list[str], *, look: bool) -> dict[str, Any]:
    """Run ``cells``; ``look``: count page faults of this process's descendants at each one.

    :raises Failed: when the kernel dies, or a cell takes more than CELL_SECONDS
    """
    begun = time.perf_counter()
    done = [run_cell(kernel, source, look=look) for source in cells]
    return {"seconds": time.perf_counter() - begun, "cells": done}


def run_cell(kernel: figures.Kernel, source: str, *, look: bool) -> dict[str, Any]:
    manager, client = kernel
    outputs: Counter[str] = Counter()
    faults = processes.usage(processes.descendants()).faults if look else 0
    at, begun = time.time(), time.perf_counter()
    request = client.execute(source, stop_on_error=False, allow_stdin=False)
    while True:
        try:
            message = client.get_iopub_msg(timeout=LOOK_SECONDS)
        except Empty:
            if not manager.is_alive():
                raise figures.Failed(f"the kernel died in {source[:100]!r}") from None
            if time.perf_counter() - begun > CELL_SECONDS:
                raise figures.Failed(f"{source[:100]!r} took too long") from None
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["content"].get("execution_state") == "idle":
            break
        if kind := name_output(message["msg_type"], message["content"]):
            outputs[kind] += 1
    figures.shell_reply(client, request, figures.SECONDS)
    seconds = time.perf_counter() - begun
    if look:
        faults = processes.usage(processes.descendants()).faults - faults
    kinds = [kind if n == 1 or kind in STREAMS else f"{n} of {kind}" for kind, n in outputs.items()]
    return {"at": at, "seconds": seconds, "outputs": sorted(kinds), "faults": faults}


STREAMS = ("stdout", "stderr")


def name_output(kind: str, content: dict[str, Any]) -> str:
    """Return what a notebook would keep of a message, by its kind; empty if nothing."""
    match kind:
        case "stream":
            return str(content["name"])
        case "display_data" | "execute_result":
            return "+".join(sorted(content["data"]))
        case "error":
            return f"error {content['ename']}"
    return ""
