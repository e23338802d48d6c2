"""Destructors of unreachable objects run in other threads than those that must not wait."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from gvisor_kernel.host.quiet_loop import make_quiet_loop, run_quietly

from ..jupyter.helpers import SANDBOXED
from ..patience import scale_seconds
from ..world import PROJECT

SECONDS = scale_seconds(60)


class Dropped:
    """Unreachable from the start, and only the collector finds that out."""

    def __init__(self, threads: set[str], found: threading.Event) -> None:
        self.me, self.threads, self.found = self, threads, found

    def __del__(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.found.set()


@pytest.fixture
def quiet() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread named "quiet"."""
    loop = make_quiet_loop()
    thread = threading.Thread(target=run_quietly, args=(loop,), name="quiet")
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert gc.isenabled()


def test_a_loop_runs_no_destructor_while_it_works(quiet: asyncio.AbstractEventLoop) -> None:
    """It allocates much in each turn, and so does another thread, which collects meanwhile."""
    threads: set[str] = set()
    found = threading.Event()
    began: Counter[str] = Counter()
    gc.callbacks.append(note := lambda *_: began.update([threading.current_thread().name]))
    held: list[list[list[int]]] = []

    async def work() -> None:
        for _ in range(300):
            held.append([[1] for _ in range(300)])
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    try:
        done = asyncio.run_coroutine_threadsafe(work(), quiet)
        while not done.done():
            for _ in range(1000):
                Dropped(threads, found)
        done.result()
    finally:
        gc.callbacks.remove(note)
    assert "quiet" not in began
    assert "quiet" not in threads
    assert began[threading.current_thread().name] > 10


def test_what_a_program_has_switched_off_stays_off(quiet: asyncio.AbstractEventLoop) -> None:
    async def turn() -> bool:
        return gc.isenabled()

    def ask() -> bool:
        return asyncio.run_coroutine_threadsafe(turn(), quiet).result(SECONDS)

    assert not ask()
    gc.disable()
    try:
        assert not ask()
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert not ask()


FORKS = """
import gc, os, threading, time
from gvisor_kernel.host.quiet_loop import make_quiet_loop, run_quietly

loop = make_quiet_loop()
working, forked = threading.Event(), threading.Event()

def turn():
    working.set()
    forked.wait()

threading.Thread(target=run_quietly, args=(loop,), daemon=True).start()
loop.call_soon_threadsafe(turn)
working.wait()
assert not gc.isenabled()
child = os.fork()
if child == 0:
    os._exit(0 if gc.isenabled() else 1)
forked.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_is_forked_meanwhile_collects() -> None:
    argv = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.stdout == "0\n", done.stderr


DROPS = """
import gc
import threading
import jupyter_client
from gvisor_kernel import Sandbox
from gvisor_kernel.api.loop_thread import LoopThread
from gvisor_kernel.bridge import Bridge

def make():
    client = jupyter_client.KernelManager().client()
    client.load_connection_info({**client.get_connection_info(), "shell_port": 1, "iopub_port": 1,
                                 "stdin_port": 1, "hb_port": 1, "control_port": 1})
    client.start_channels(hb=False)  # and no stop_channels
    client.me = client
    return client

async def allocate():
    return len([[] for _ in range(1_000_000)])

with Sandbox(snapshot="off") as sandbox:
    held = [make() for _ in range(3)]
    gc.collect()  # so that this thread does not begin another collection soon
    held.clear()
    assert Bridge.instance().call(allocate()).result(30) == 1_000_000
    assert LoopThread.instance().run(allocate()) == 1_000_000
    threading.Thread(target=gc.collect, daemon=True).start()  # which may never return
    print(sandbox.run("1 + 1").text, flush=True)
"""


@pytest.mark.skipif(not SANDBOXED, reason="it is about sandboxes")
def test_a_program_that_drops_managers_is_answered() -> None:
    """zmq's context waits in its destructor for sockets that nobody closes, for ever."""
    done = subprocess.run(
        [sys.executable, "-c", DROPS],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=scale_seconds(90),
        check=False,
    )
    assert done.stdout == "2\n", done.stderr
    assert done.returncode == 0, done.stderr
