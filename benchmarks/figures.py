"""The measurements: each function takes or starts a kernel, and returns samples by figure.

Values are seconds unless the name says otherwise. The functions run in a worker's process, which
also runs the manager of the kernels. No statistics and no printing here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

SECONDS = 120.0
"""Seconds that any step may take at most."""
IMPORTS = "import numpy, pandas, matplotlib.pyplot"
PRINTS = "for i in range(100_000): print(i)"
FIVE_THOUSAND = "for i in range(5_000): print(i)"
SYSCALLS = "import os\nfor _ in range(100_000): os.stat('/')"
CPU = "sum(i * i for i in range(3_000_000))"
ARRAYS = "import numpy as np\na, b = np.ones(5 << 17), np.ones(5 << 17)"
ARITHMETIC = "for _ in range(100): c = a * 2 + b; d = c - a; del c, d"
SETTLE_SECONDS = 2.0
"""After that a restored sandbox has measured its clock: before, each reading is a system call."""
ENDLESS = "print('running', flush=True)\nwhile True: pass"
FORKS = """
import os
for _ in range(20):
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)
"""
SUBPROCESSES = "import subprocess\nfor _ in range(20): subprocess.run(['true'])"
TABLE = """
import os, tempfile, numpy, pandas
folder = tempfile.mkdtemp()
random = numpy.random.default_rng(1)
count = 900_000
columns = {name: random.random(count) for name in "ab"}
columns["key"] = random.integers(0, 1000, count)
columns["word"] = random.choice(["x", "yy", "zzz"], count)
pandas.DataFrame(columns).to_csv(folder + "/table.csv", index=False)
"""
"""Writes a CSV of about 50 MB."""
READ_CSV = "table = pandas.read_csv(folder + '/table.csv')"
GROUP_BY = "for _ in range(5): table.groupby(['key', 'word']).agg(['mean', 'max'])"
PARQUET = "table.to_parquet(folder + '/t.parquet'); pandas.read_parquet(folder + '/t.parquet')"
SMALL_FILES = """
for number in range(10_000):
    with open(f"{folder}/{number}", "w") as file: file.write("x" * 100)
for number in range(10_000):
    with open(f"{folder}/{number}") as file: file.read()
for number in range(10_000): os.unlink(f"{folder}/{number}")
"""
REMOVE_TABLE = "import shutil; shutil.rmtree(folder)"
FLOOD = """
from IPython.display import display
while True: display({"text/plain": "x" * 120_000_000}, raw=True)
"""
GIGABYTE = "for _ in range(1000): print('x' * 1_000_000)"
GIGABYTE_FLUSHED = "for _ in range(1000): print('x' * 1_000_000, flush=True)"

INFO = "start to kernel_info reply"
FIRST = "start to first execute reply"
IMPORT = f"`{IMPORTS}`, after the first cell"
IMPORTED = f"start to `{IMPORTS}` done"
FIRST_READY = "start, with wait_for_ready, to first execute reply"
PROGRAM = "a program of its own, from its start to the reply to its first cell"
IMPORTED_READY = f"start, with wait_for_ready, to `{IMPORTS}` done"
SHUTDOWN = "shutdown"
TRIP = "round trip of 1+1"
TRIP_AT_ONCE = "round trip of 1+1, right after the start"
PRINT_TRIP = "round trip of print"
TRIP_ALONE = "round trip of 1+1, before neighbours come"
TRIP_CROWDED = "round trip of 1+1, 30 idle neighbours"
TRIP_FLOODED = "round trip of 1+1, a neighbour sends messages of 120 MB"
NOTEBOOK = "notebook {}: {}"
"""The name of a notebook, and what of it: one of the five below, or a cell's number and time."""
NOTEBOOK_CELL = "cell {}"
"""The title of a cell, of which the last time counts."""
WALL, CPU_TIME, FAULTS = "wall", "CPU", "page faults"
MEMORY_WORKED = "memory of a kernel that ran notebooks, after a minute, MiB"
CELLS, STEADY = "cells", "cells, last time"
LONGEST_TURN = "longest CPU time of the bridge at a stretch meanwhile"
TRIP_WOKEN = "round trip of 1+1, the first after 20 s of idling"
INTERRUPT = "time to interrupt"
OUTPUT_1 = "1 MB of output"
OUTPUT_10 = "10 MB of output"
OUTPUT_100 = "100 MB of output"
SMALL_PRINTS = "100,000 small prints"
FEWER_PRINTS = "5,000 small prints"
STATS = "100,000 stat calls"
CPU_BOUND = "CPU-bound cell"
FORK = "fork and exit of an idle kernel"
SUBPROCESS = "subprocess.run of true"
CSV = "read_csv of 50 MB"
GROUPED = "groupby of its rows, 5 times"
PARQUET_TRIP = "its rows written as Parquet, and read"
FILES = "10,000 small files written, read and removed"
ARRAYS_BOUND = "arithmetic with arrays of 5 MiB"
MEMORY = "memory per idle kernel, {} of them, MiB"
MEMORY_IMPORTED = "memory of one kernel that has imported numpy, pandas and pyplot, MiB"
BRIDGE_MEMORY = "memory of the manager's process per kernel, MiB"
IDLE_CPU = "idle CPU of the kernel's processes, % of a core"
IDLE_BRIDGE_CPU = "idle CPU of the manager's process, % of a core"
STALLED = "more memory in the bridge, 1 GB to a stalled client, MiB"
LARGEST = "largest message of 1 GB of output, MiB"
STALLED_FLUSHED = "more memory in the bridge, 1 GB in messages of 1 MB to a stalled client, MiB"

Samples = dict[str, list[float]]
Kernel = tuple[KernelManager, BlockingKernelClient]


class Failed(Exception):
    """A kernel did not do what was requested; the text says what."""


def ignore(_: dict[str, Any]) -> None:
    """An output hook that drops the output."""


def run(client: BlockingKernelClient, code: str) -> float:
    """Run ``code``; return the seconds until its reply and its idle status have arrived."""
    begin = time.perf_counter()
    reply = client.execute_interactive(code, timeout=SECONDS, output_hook=ignore)
    took = time.perf_counter() - begin
    check(reply, code)
    return took


def check(reply: dict[str, Any], code: str) -> None:
    if reply["content"].get("status") != "ok":
        raise Failed(f"{code!r} failed: {str(reply['content'])[:500]}")


def shell_reply(client: BlockingKernelClient, request: str, seconds: float) -> dict[str, Any]:
    """Return the reply to ``request``.

    :raises Empty: when it does not arrive within ``seconds``
    """
    deadline = time.monotonic() + seconds
    while True:
        message: dict[str, Any] = client.get_shell_msg(
            timeout=max(deadline - time.monotonic(), 0.001)
        )
        if message["parent_header"].get("msg_id") == request:
            return message


def await_info(manager: KernelManager, client: BlockingKernelClient, resend: float) -> None:
    """Wait until the kernel answers a kernel_info_request, sent again every ``resend`` seconds.

    jupyter_client's own wait_for_ready takes 0.2 s more at its end, which would blur every start.
    """
    deadline = time.monotonic() + SECONDS
    asked = set()
    while True:
        asked.add(client.kernel_info())
        until = time.monotonic() + resend
        while (left := until - time.monotonic()) > 0:
            try:
                message = client.get_shell_msg(timeout=left)
            except Empty:
                break
            if message["parent_header"].get("msg_id") in asked:
                return
        if time.monotonic() > deadline:
            raise Failed(f"no answer to kernel_info_request within {SECONDS:.0f} s")
        if not manager.is_alive():
            raise Failed("the kernel died while it started")


def execute(client: BlockingKernelClient, code: str) -> None:
    """Run ``code`` and wait for its reply, not for its output."""
    request = client.execute(code)
    try:
        check(shell_reply(client, request, SECONDS), code)
    except Empty:
        raise Failed(f"no reply to {code!r} within {SECONDS:.0f} s") from None


def await_iopub(client: BlockingKernelClient) -> None:
    """Wait until output arrives: a new subscription misses earlier messages."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        request = client.kernel_info()
        try:
            shell_reply(client, request, 1.0)
            while True:
                message = client.get_iopub_msg(timeout=0.5)
                if (
                    message["parent_header"].get("msg_id") == request
                    and message["content"].get("execution_state") == "idle"
                ):
                    return
        except Empty:
            continue
    raise Failed("no output arrived")


def begin_kernel(manager: KernelManager, resend: float) -> BlockingKernelClient:
    """Start a kernel, and wait until its client gets output."""
    manager.start_kernel()
    client: BlockingKernelClient = manager.client()
    client.start_channels()
    try:
        await_info(manager, client, resend)
        await_iopub(client)
        run(client, "1+1")
    except BaseException:
        end_kernel((manager, client))
        raise
    return client


def end_kernel(kernel: Kernel) -> None:
    manager, client = kernel
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@contextmanager
def started(prepare: Callable[[], KernelManager], resend: float = 1.0) -> Iterator[Kernel]:
    """Start a kernel that has run one cell; shut it down at the end."""
    manager = prepare()
    kernel = (manager, begin_kernel(manager, resend))
    try:
        yield kernel
    finally:
        end_kernel(kernel)


# -- figures of a start ----------------------------------------------------------------------------


def measure_start(prepare: Callable[[], KernelManager], resend: float = 1.0) -> Samples:
    """Measure one start, from ``start_kernel``, and the kernel's shutdown as a server does it.

    Times are up to the reply to a cell; its output may still be on the way.
    """
    manager = prepare()
    begin = time.perf_counter()
    manager.start_kernel()
    client: BlockingKernelClient = manager.client()
    client.start_channels()
    try:
        await_info(manager, client, resend)
        info = time.perf_counter() - begin
        execute(client, "1+1")
        first = time.perf_counter() - begin
        execute(client, IMPORTS)
        imported = time.perf_counter() - begin
    finally:
        begin = time.perf_counter()
        client.stop_channels()
        manager.shutdown_kernel()
        shutdown = time.perf_counter() - begin
    samples = {INFO: info, FIRST: first, IMPORTED: imported, SHUTDOWN: shutdown}
    return {name: [seconds] for name, seconds in {**samples, IMPORT: imported - first}.items()}


def measure_ready(prepare: Callable[[], KernelManager], _: float = 1.0) -> Samples:
    """Measure one start as nbclient does it: a cell is sent after wait_for_ready.

    wait_for_ready listens for another 0.2 s at its end, for any kernel.
    """
    manager = prepare()
    begin = time.perf_counter()
    manager.start_kernel()
    client: BlockingKernelClient = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        execute(client, "1+1")
        first = time.perf_counter() - begin
        execute(client, IMPORTS)
        imported = time.perf_counter() - begin
    finally:
        end_kernel((manager, client))
    return {FIRST_READY: [first], IMPORTED_READY: [imported]}


# -- figures of a running kernel -------------------------------------------------------------------


def measure_trips(kernel: Kernel, count: int = 40) -> Samples:
    client = kernel[1]
    at_once = [run(client, "1+1") for _ in range(20)]
    time.sleep(SETTLE_SECONDS)
    return {
        TRIP_AT_ONCE: at_once,
        TRIP: [run(client, "1+1") for _ in range(count)],
        PRINT_TRIP: [run(client, "print(1)") for _ in range(count)],
    }


def measure_interrupt(kernel: Kernel, count: int = 3) -> Samples:
    return {INTERRUPT: [interrupt_once(*kernel) for _ in range(count)]}


def measure_output(kernel: Kernel) -> Samples:
    client = kernel[1]
    return {
        OUTPUT_1: [run(client, "print('x' * 10**6)") for _ in range(3)],
        OUTPUT_10: [run(client, "print('x' * 10**7)")],
    }


def measure_large(kernel: Kernel) -> Samples:
    return {OUTPUT_100: [run(kernel[1], "print('x' * 10**8)")]}


def measure_prints(kernel: Kernel) -> Samples:
    client = kernel[1]
    return {
        FEWER_PRINTS: [run(client, FIVE_THOUSAND) for _ in range(3)],
        SMALL_PRINTS: [run(client, PRINTS)],
    }


def measure_compute(kernel: Kernel) -> Samples:
    samples = {STATS: [run(kernel[1], SYSCALLS)], CPU_BOUND: [run(kernel[1], CPU)]}
    run(kernel[1], ARRAYS)
    return {**samples, ARRAYS_BOUND: [run(kernel[1], ARITHMETIC)]}


def measure_forks(kernel: Kernel) -> Samples:
    client = kernel[1]
    return {
        FORK: [run(client, FORKS) / 20 for _ in range(3)],
        SUBPROCESS: [run(client, SUBPROCESSES) / 20 for _ in range(3)],
    }


def measure_data(kernel: Kernel) -> Samples:
    """Measure work with a table and with files; Parquet only where pandas has what it needs."""
    client = kernel[1]
    run(client, TABLE)
    samples = {CSV: [run(client, READ_CSV) for _ in range(2)], GROUPED: [run(client, GROUP_BY)]}
    with suppress(Failed):
        run(client, "import pyarrow")
        samples[PARQUET_TRIP] = [run(client, PARQUET) for _ in range(2)]
    samples[FILES] = [run(client, SMALL_FILES)]
    run(client, REMOVE_TABLE)
    return samples


def interrupt_once(manager: KernelManager, client: BlockingKernelClient) -> float:
    """Return the seconds from ``interrupt_kernel`` to the reply of an endless loop."""
    request = client.execute(ENDLESS)
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            message = client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.001))
        except Empty:
            raise Failed("an endless loop did not begin") from None
        if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == request:
            break
    begin = time.perf_counter()
    manager.interrupt_kernel()
    try:
        shell_reply(client, request, 30.0)
    except Empty:
        raise Failed("an endless loop was not interrupted within 30 s") from None
    return time.perf_counter() - begin


def measure_stalled(
    prepare: Callable[[], KernelManager], folder: Path, resend: float = 1.0, seconds: float = 10.0
) -> Samples:
    """Measure the growth of this process while a kernel prints 1 GB to a client that reads nothing.

    The client waits for ``seconds`` and then reads everything; the peak size counts. This process
    only sends the request. ipykernel makes one message of everything printed within 0.2 s, so
    there are two measurements: with such messages and with messages of 1 MB.
    """
    samples: Samples = {}
    for code, figure in ((GIGABYTE_FLUSHED, STALLED_FLUSHED), (GIGABYTE, STALLED)):
        manager = prepare()
        manager.start_kernel()
        client: BlockingKernelClient = manager.client()
        client.start_channels(iopub=False)
        try:
            await_info(manager, client, resend)
            more, largest = stall(manager, client, code, folder / "stalled.json", seconds)
        finally:
            end_kernel((manager, client))
        samples[figure] = [more / 1024]
        samples[LARGEST] = [largest / 1024**2]  # of the last code
    return samples


def stall(
    manager: KernelManager, client: BlockingKernelClient, code: str, file: Path, seconds: float
) -> tuple[int, int]:
    """Return the growth of this process in KiB, and the bytes of the largest message."""
    execute(client, "1+1")
    info = {k: v for k, v in manager.get_connection_info(session=False).items() if k != "key"}
    file.write_text(json.dumps(info))
    argv = [sys.executable, "-P", str(Path(__file__).with_name("stalled.py")), str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        try:
            # until the reader has received output
            while reader.stdout.readline() != "subscribed\n":
                execute(client, "1+1")
            before = memory_status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
            request = client.execute(code)
            time.sleep(seconds)
            reader.stdin.write("read\n")
            reader.stdin.flush()
            check(shell_reply(client, request, SECONDS), code)
            taken, largest = map(int, reader.stdout.readline().split())
            more = memory_status("VmHWM") - before
        except Empty:
            raise Failed("1 GB of output did not end") from None
        finally:
            reader.kill()
    if taken < 10**9:
        raise Failed(f"only {taken} bytes of 1 GB arrived")
    return more, largest


def measure_flooded(
    prepare: Callable[[], KernelManager],
    folder: Path,
    longest_turn: Callable[[], float],
    resend: float = 1.0,
    count: int = 150,
) -> Samples:
    """Measure round trips of one kernel while another sends messages of 120 MB without end.

    A separate process reads these messages; this one, which runs the bridge, only passes them on.
    ``longest_turn`` returns the longest CPU time, since its last call, for which the bridge's
    thread could do nothing else.
    """
    with started(prepare, resend) as (_, near), started(prepare, resend) as (manager, far):
        far.stop_channels()
        info = {k: v for k, v in manager.get_connection_info(session=False).items() if k != "key"}
        file = folder / "flooded.json"
        file.write_text(json.dumps(info))
        argv = [sys.executable, "-P", str(Path(__file__).with_name("drain.py")), str(file)]
        loud: BlockingKernelClient = manager.client()
        loud.start_channels(iopub=False, stdin=False, hb=False, control=False)
        try:
            await_info(manager, loud, resend)
            with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as reader:
                assert reader.stdout is not None
                try:
                    loud.execute(FLOOD)
                    while int(reader.stdout.readline()) < 120_000_000:
                        pass
                    longest_turn()
                    trips = [run(near, "1+1") for _ in range(count)]
                    return {TRIP_FLOODED: trips, LONGEST_TURN: [longest_turn()]}
                finally:
                    reader.kill()
        finally:
            loud.stop_channels()


def memory_status(name: str) -> int:
    """Return a value of this process's /proc status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


OF_A_KERNEL: dict[str, Callable[..., Samples]] = {
    "trips": measure_trips,
    "interrupt": measure_interrupt,
    "output": measure_output,
    "large": measure_large,
    "prints": measure_prints,
    "compute": measure_compute,
    "forks": measure_forks,
    "data": measure_data,
}
OF_MANY = {
    "memory": "memory for 1, 10 and 30 kernels, and round trips with 30 neighbours",
    "idle": "CPU time of idle kernels",
}
NOTEBOOKS = "notebooks"
NAMES = ("start", "ready", "program", *OF_A_KERNEL, "stalled", "flooded", *OF_MANY, NOTEBOOKS)
