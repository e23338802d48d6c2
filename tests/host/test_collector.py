"""Destructors of unreachable objects run in other threads than those that must not wait."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from gvisor_kernel.host import collector
from gvisor_kernel.host.collector import Collector

from ..jupyter.helpers import SANDBOXED
from ..patience import scale_seconds
from ..world import PROJECT


class Dropped:
    """Unreachable from the start, and only the collector finds that out."""

    def __init__(self, threads: set[str], found: threading.Event) -> None:
        self.me, self.threads, self.found = self, threads, found

    def __del__(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.found.set()


@pytest.mark.parametrize("is_collected", ["by itself", "by a call"])
def test_a_thread_that_is_kept_out_runs_no_destructor(
    monkeypatch: pytest.MonkeyPatch, is_collected: str
) -> None:
    monkeypatch.setattr(collector, "MAX_SECONDS", 0.01)
    ours = Collector()  # that of the process may rest after a collection
    keep_out = ours.keep_out
    threads: set[str] = set()
    found = threading.Event()
    began: list[str] = []

    def note(phase: str, info: object) -> None:
        began.append(threading.current_thread().name)

    def work() -> None:
        keep_out()
        held = []
        while "kept out" not in began and len(held) < 1_000_000:
            Dropped(threads, found)
            held.append([Dropped(threads, found)])  # what stays makes a collection begin
            if is_collected == "by a call":
                gc.collect()

    gc.callbacks.append(note)
    try:
        thread = threading.Thread(target=work, name="kept out")
        thread.start()
        thread.join()
        assert "kept out" in began
        assert found.wait(scale_seconds(60)), "nobody has collected"
    finally:
        gc.callbacks.remove(note)
        ours.end()
    assert "kept out" not in threads
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_other_threads_collect_as_before() -> None:
    Collector.instance()
    threads: set[str] = set()
    Dropped(threads, threading.Event())
    gc.collect()
    assert threads == {threading.current_thread().name}


DROPS = """
import sys
import jupyter_client
from gvisor_kernel import Sandbox
from gvisor_kernel.api.loop_thread import LoopThread
from gvisor_kernel.bridge import Bridge
from gvisor_kernel.host import collector

collector.MANY = 0

def drop():
    manager = jupyter_client.KernelManager()
    client = manager.client()
    client.load_connection_info({**client.get_connection_info(), "shell_port": 1, "iopub_port": 1,
                                 "stdin_port": 1, "hb_port": 1, "control_port": 1})
    client.start_channels(hb=False)  # and no stop_channels
    client.me = client

async def allocate():
    return len([[] for _ in range(50_000)])

with Sandbox(snapshot="off") as sandbox:
    for number in range(3):
        drop()
        assert Bridge.instance().call(allocate()).result(30) == 50_000
        assert LoopThread.instance().run(allocate()) == 50_000
        print(sandbox.run(f"{number} + 1").text, flush=True)
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
    assert done.stdout.split() == ["1", "2", "3"], done.stderr
    assert done.returncode == 0, done.stderr
