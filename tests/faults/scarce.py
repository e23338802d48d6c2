"""A process with kernels that runs out of descriptors: ``python -m tests.faults.scarce HOW``.

``start``: starts a kernel with more and more free descriptors. ``run``: uses, restarts and ends a
kernel while none is free. In both the limit cannot be raised. ``raised``: it can. ``runsc``: the
program has enough, and runsc too few. Prints one JSON object: the errors, and the number of open
descriptors before and after each try.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jupyter_client.manager import KernelManager

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host import open_files

from ..jupyter.helpers import connected, execute, running_kernel
from ..sweeps import ALL

SETTINGS = {"snapshot": "off"}
EACH = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 64)
FEWEST = EACH if ALL else (0, 1, 2, 4, 8, 12, 16, 24, 32, 64)
"""Numbers of free descriptors at a start."""


def count() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208


def settled(before: int) -> int:
    """Wait until libzmq has closed its descriptors; return the number of open ones."""
    deadline = time.monotonic() + 5
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return count()


@contextmanager
def left(number: int) -> Iterator[None]:
    """Allow only ``number`` more descriptors."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes = []
    while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) < count() - 1:
        holes.append(fd)  # the limit bounds descriptor numbers, so fill the gaps below
    os.close(fd)
    highest = max(map(int, os.listdir("/proc/self/fd")[:-1]))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + number, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        for fd in holes:
            os.close(fd)


def raised() -> dict[str, object]:
    limits = [resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    with running_kernel(settings=SETTINGS):
        limits.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        with left(8):
            limits.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            with running_kernel(settings=SETTINGS) as (_, client):
                works = execute(client, "6 * 7").result == "42"
            limits.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return {"limits": limits, "works": works}


def runsc() -> dict[str, object]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    try:
        with running_kernel(settings=SETTINGS):
            return {"said": ""}
    except GvisorKernelError as error:
        return {"said": str(error)}


def start() -> dict[str, object]:
    with running_kernel(settings=SETTINGS):
        pass
    tries = []
    for number in FEWEST:
        before = count()
        said = kind = ""
        manager = KernelManager(kernel_name="gvisor-python")
        with left(number):
            try:
                manager.start_kernel()
            except Exception as error:
                said, kind = str(error), type(error).__name__
        if manager.has_kernel:
            with connected(manager) as client:
                assert execute(client, "6 * 7").result == "42"
            manager.shutdown_kernel()
        else:
            manager.cleanup_connection_file()
        del manager
        after = settled(before)
        tries.append({"left": number, "said": said, "kind": kind, "open": [before, after]})
    return {"tries": tries}


def run() -> dict[str, object]:
    with running_kernel(settings=SETTINGS) as (manager, client):
        with left(0):
            answer = execute(client, "print('x' * 1_000_000); 6 * 7")
            whole = answer.text == "x" * 1_000_000 + "\n" and answer.result == "42"
            manager.interrupt_kernel()
            interrupted = execute(client, "6 * 7").result == "42"
        with left(1):
            said = ""
            try:
                manager.restart_kernel(now=True)
            except GvisorKernelError as error:
                said = str(error)
        if said:
            manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        again = execute(client, "6 * 7").result == "42"
        with left(2):
            manager.shutdown_kernel(now=True)
    with running_kernel(settings=SETTINGS) as (_, client):
        last = execute(client, "6 * 7").result == "42"
    return {"works": [whole, interrupted, again, last], "said": said}


if __name__ == "__main__":
    if sys.argv[1] in ("start", "run"):
        open_files.MAX_OPEN_FILES = 0
    print(json.dumps(globals()[sys.argv[1]]()))
