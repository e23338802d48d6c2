"""The sandbox of an idle kernel is stopped, and wakes transparently at the next request."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient, KernelManager

from gvisor_kernel.bridge import sleep
from gvisor_kernel.bridge.sleep import NapWatch, SleepPolicy
from gvisor_kernel.host.processes import is_alive
from gvisor_kernel.link import IdleReply

from .. import leaks
from ..jupyter.helpers import (
    SECONDS,
    call_sandbox,
    execute,
    finish,
    next_message,
    running_kernel,
    send,
    wait_for,
    wait_for_text,
    wait_until,
)
from ..world import World
from .test_owner_death import holder, record_of

QUICK = 0.05
REPLIES = 4
"""Number of negative replies after which a kernel counts as not stopped."""


def be_quick(patch: pytest.MonkeyPatch) -> None:
    """Ask soon whether a kernel is idle, and again at the same interval after a reply of no."""
    patch.setattr(sleep, "MIN_SILENCE_SECONDS", QUICK)
    patch.setattr(sleep, "MAX_WAIT_SECONDS", QUICK)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quick(monkeypatch)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebooks"))
        yield


class Watched:
    """A kernel, its client, and its guest's replies to whether it is idle."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self._link = self._find_link()
        self.replies: list[bool] = []
        self._replied = threading.Condition()
        take = self._link._on_idle_reply

        def take_reply(reply: IdleReply) -> None:
            take(reply)
            with self._replied:
                self.replies.append(reply.idle)
                self._replied.notify_all()

        self._link._on_idle_reply = take_reply

    def _find_link(self) -> Any:
        return self.manager.provisioner._kernel._kernel._link  # type: ignore[union-attr]

    @property
    def sandbox(self) -> Any:
        return self.manager.provisioner._kernel.sandbox  # type: ignore[union-attr]

    @property
    def sentry(self) -> int:
        pid: int = self.sandbox._sentry
        return pid

    @property
    def is_stopped(self) -> bool:
        return state_of(self.sentry) == "T"

    def wait_for_stop(self) -> None:
        wait_until(lambda: self.is_stopped, "the sandbox to be stopped")

    def assert_stays_awake(self) -> None:
        """Assert that the guest is asked a few times and replies each time that it is not idle."""
        with self._replied:
            del self.replies[:]
            assert self._replied.wait_for(lambda: len(self.replies) >= REPLIES, SECONDS)
            assert not any(self.replies)
        assert not self.is_stopped

    def assert_awake_again(self) -> None:
        wait_until(lambda: not self.is_stopped, "the sandbox to go on")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def watched_kernel(**settings: Any) -> Iterator[Watched]:
    with running_kernel(settings=settings) as (manager, client):
        yield Watched(manager, client)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        with watched_kernel() as kernel:
            yield kernel


# -- stopped, and woken --------------------------------------------------------------------------


def test_idle_kernel_is_stopped_and_continues(kernel: Watched) -> None:
    execute(kernel.client, "x = 40")
    kernel.wait_for_stop()
    assert execute(kernel.client, "x + 2").result == "42"


def complete(client: BlockingKernelClient) -> None:
    assert "print" in finish(client, client.complete("prin", 4)).reply["content"]["matches"]


def usage(client: BlockingKernelClient) -> None:
    msg_id = send(client, "usage_request")
    deadline = time.monotonic() + SECONDS
    while True:
        message = next_message(client, "control", deadline, "the usage reply")
        if message["parent_header"].get("msg_id") == msg_id:
            return


def comm(client: BlockingKernelClient) -> None:
    content = {"comm_id": "of-nobody", "data": {}}
    msg_id = send(client, "comm_close", content, channel="shell")
    deadline = time.monotonic() + SECONDS
    while True:
        message = next_message(client, "iopub", deadline, "the end of a comm message")
        if message["parent_header"].get("msg_id") == msg_id:
            return


@pytest.mark.parametrize("ask", [complete, usage, comm], ids=lambda ask: str(ask.__name__))
def test_message_wakes_stopped_kernel(
    kernel: Watched, ask: Callable[[BlockingKernelClient], None]
) -> None:
    ask(kernel.client)  # the first completion of a kernel takes seconds
    kernel.wait_for_stop()
    ask(kernel.client)


SLOW = """
import asyncio, time
handlers = get_ipython().kernel.control_handlers
usage = handlers["usage_request"]
async def slow(*args):
    {wait}
    await usage(*args)
handlers["usage_request"] = slow
"""
"""Longer than these tests' idle time; on a busy machine any answer can take that long."""


@pytest.mark.parametrize("wait", ["time.sleep(0.4)", "await asyncio.sleep(0.4)"])
def test_kernel_is_not_stopped_before_its_answer(kernel: Watched, wait: str) -> None:
    """Also if the host does not know of the request, which ipykernel's control thread handles."""
    assert execute(kernel.client, SLOW.format(wait=wait)).status == "ok"
    try:
        with pytest.MonkeyPatch.context() as patch:
            usage(kernel.client)
            patch.setattr(kernel._link, "_sleep", SleepPolicy(lambda: True, lambda stopped: None))
            usage(kernel.client)
    finally:
        assert execute(kernel.client, "handlers['usage_request'] = usage").status == "ok"
    kernel.wait_for_stop()


def test_call_wakes_stopped_kernel_which_is_stopped_again(
    kernel: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = kernel.manager.provisioner._kernel._kernel.service  # type: ignore[union-attr]
    monkeypatch.setattr(calls, "_idle_seconds", QUICK)
    kernel.wait_for_stop()
    answer = call_sandbox(kernel.manager, do="run", command="exit 7")
    assert answer == {"status": 7, "done": True}
    kernel.wait_for_stop()


def test_interrupt_wakes_stopped_kernel(kernel: Watched) -> None:
    execute(kernel.client, "x = 40")
    kernel.wait_for_stop()
    kernel.manager.interrupt_kernel()
    kernel.assert_awake_again()
    assert execute(kernel.client, "x + 2").result == "42"


def test_sandbox_that_is_still_busy_is_stopped_again(
    kernel: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP stops the sentry, not the processes that run the sandbox's code."""
    looks: list[bool] = []

    def look() -> bool:
        looks.append(len(looks) < 2)
        return looks[-1]

    monkeypatch.setattr(kernel.sandbox, "is_busy", look)
    execute(kernel.client, "x = 42")
    wait_until(lambda: looks == [True, True, False], "three stops")
    assert kernel.is_stopped
    assert execute(kernel.client, "x").result == "42"


def test_code_that_still_runs_is_noticed(kernel: Watched) -> None:
    msg_id = kernel.client.execute("print('begun', flush=True)\nwhile True: pass")
    wait_for_text(kernel.client, "begun")

    def runs_on() -> bool:  # false if the loop is just waiting for the sentry
        kernel.sandbox.pause()
        try:
            return bool(kernel.sandbox.is_busy())
        finally:
            kernel.sandbox.resume()

    try:
        wait_until(runs_on, "a loop without system calls to be seen")
    finally:
        kernel.manager.interrupt_kernel()
    assert finish(kernel.client, msg_id).error == "KeyboardInterrupt"
    kernel.wait_for_stop()
    wait_until(lambda: not kernel.sandbox.is_busy(), "a stopped sandbox to be at rest")


def test_memory_of_stopped_kernel_is_not_measured(
    kernel: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.wait_for_stop()
    watch = kernel.manager.provisioner._kernel._kernel._attached.memory  # type: ignore[union-attr]
    wait_until(lambda: watch._timer.cancelled(), "the end of looking")
    looked, look = threading.Event(), watch.start
    monkeypatch.setattr(watch, "start", lambda: (looked.set(), look()))
    execute(kernel.client, "1")
    assert looked.wait(SECONDS)  # the kernel may be stopped again by now


def check_heartbeats(watched: Watched) -> None:
    """Send heartbeats as a client does, and wait for the answer to each."""
    with zmq.Context() as context, context.socket(zmq.REQ) as heart:
        heart.linger = 0
        heart.connect(watched.client._make_url("hb"))
        for number in range(20):
            heart.send(b"beat %d" % number)
            assert heart.poll(1000 * SECONDS)
            assert heart.recv() == b"beat %d" % number


@pytest.mark.once
def test_heartbeat_does_not_wake_stopped_kernel(kernel: Watched) -> None:
    kernel.wait_for_stop()
    check_heartbeats(kernel)
    assert kernel.is_stopped


@pytest.mark.once
def test_clocks_advance_in_stopped_sandbox(kernel: Watched) -> None:
    """Both clocks advance while a sandbox is stopped."""
    begun = time.monotonic()
    execute(kernel.client, "import time; a = time.monotonic(), time.time()")
    kernel.wait_for_stop()
    since = time.monotonic()
    threading.Event().wait(1.0)
    text = execute(kernel.client, "print(time.monotonic() - a[0], time.time() - a[1])").text
    least, most = time.monotonic() - since - 0.1, time.monotonic() - begun + 0.1
    assert all(least < float(word) < most for word in text.split())


# -- not stopped ---------------------------------------------------------------------------------

BUSY = {
    "a busy thread": (
        "import threading; on = True\n"
        "def work():\n    while on: pass\n"
        "t = threading.Thread(target=work); t.start()",
        "on = False; t.join()",
    ),
    "a thread that sleeps": (
        "import threading; t = threading.Timer(1000, print); t.start()",
        "t.cancel(); t.join()",
    ),
    "a thread that threading does not know": (
        "import _thread; lock = _thread.allocate_lock(); lock.acquire()\n"
        "_thread.start_new_thread(lock.acquire, ())",
        "lock.release()",
    ),
    "a timer of the loop": (
        "import asyncio; h = asyncio.get_running_loop().call_later(1000, print)",
        "h.cancel()",
    ),
    "a task that sleeps": (
        "import asyncio; t = asyncio.create_task(asyncio.sleep(1000))",
        "t.cancel()",
    ),
    "a task that waits": (
        "import asyncio; t = asyncio.create_task(asyncio.wait([asyncio.Future()]))",
        "t.cancel()",
    ),
    "a descriptor that the loop watches": (
        "import asyncio, os; r, w = os.pipe(); l = asyncio.get_running_loop()\n"
        "l.add_reader(r, print)",
        "l.remove_reader(r); os.close(r); os.close(w)",
    ),
    "an alarm": ("import signal; signal.alarm(1000)", "signal.alarm(0)"),
}


@pytest.mark.once
@pytest.mark.parametrize("what", BUSY)
def test_kernel_with_pending_work_is_not_stopped(kernel: Watched, what: str) -> None:
    begin, end = BUSY[what]
    assert execute(kernel.client, begin).status == "ok"
    kernel.assert_stays_awake()
    assert execute(kernel.client, end).status == "ok"
    kernel.wait_for_stop()


@pytest.mark.once
@pytest.mark.parametrize(
    "code",
    [
        "import threading; threading.Event().wait(1000)",
        "import asyncio; await asyncio.Future()",
        "input()",
    ],
    ids=["blocks", "awaits", "reads input"],
)
def test_kernel_with_running_cell_is_not_stopped(kernel: Watched, code: str) -> None:
    """The bridge does not ask while a cell runs, so the test asks the guest."""
    msg_id = kernel.client.execute(code, allow_stdin=True)
    wait_for(
        kernel.client,
        lambda m: (m["msg_type"], m["parent_header"].get("msg_id")) == ("execute_input", msg_id),
        "the cell to run",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel._link, "_sleep", SleepPolicy(lambda: True, lambda stopped: None))
        kernel._link._loop.call_soon_threadsafe(kernel._link.note_activity)
        kernel.assert_stays_awake()
    kernel.manager.interrupt_kernel()
    kernel.client.kernel_info()  # ipykernel does not notice an interrupt while a cell only awaits
    assert finish(kernel.client, msg_id).status == "error"
    kernel.wait_for_stop()


HARMLESS = {
    "an idle pool of threads": (
        "import concurrent.futures as c; pool = c.ThreadPoolExecutor(2)\n"
        "pool.submit(print).result()"
    ),
    "the thread of asyncio.to_thread": "import asyncio; await asyncio.to_thread(print)",
    "a timer that was cancelled": (
        "import asyncio; asyncio.get_running_loop().call_later(1000, print).cancel()"
    ),
    "numpy and its threads": "import numpy; numpy.ones((400, 400)) @ numpy.ones((400, 400))",
    "the monitor of progress bars": (
        "import sys, threading, types; done = threading.Event()\n"
        "class TMonitor(threading.Thread):\n"
        "    def get_instances(self): return []\n"
        "    def run(self): done.wait(1000)\n"
        "TMonitor.__module__ = 'tqdm._monitor'; TMonitor(daemon=True).start()"
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("what", HARMLESS)
def test_kernel_with_harmless_threads_is_stopped(kernel: Watched, what: str) -> None:
    assert execute(kernel.client, HARMLESS[what]).status == "ok"
    kernel.wait_for_stop()


@pytest.mark.once
def test_idle_subshell_does_not_prevent_stop(kernel: Watched) -> None:
    """JupyterLab makes a subshell for messages of widgets, and keeps it."""

    def ask(kind: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        msg_id = send(kernel.client, kind, content)
        while True:
            message = next_message(kernel.client, "control", time.monotonic() + SECONDS, kind)
            if message["parent_header"].get("msg_id") == msg_id:
                return dict(message["content"])

    header = {"subshell_id": ask("create_subshell_request")["subshell_id"]}

    def run(code: str) -> None:
        content = {"code": code, "silent": False, "allow_stdin": False}
        msg_id = send(kernel.client, "execute_request", content, channel="shell", header=header)
        assert finish(kernel.client, msg_id).status == "ok"

    try:
        kernel.wait_for_stop()
        run("import asyncio; h = asyncio.get_running_loop().call_later(1000, print)")
        kernel.assert_stays_awake()
        run("h.cancel()")
        kernel.wait_for_stop()
    finally:
        ask("delete_subshell_request", header)


# -- naps of a kernel that cannot be asked -------------------------------------------------------


@pytest.fixture(scope="module")
def relayed() -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        with watched_kernel(kernel_mode="relay") as kernel:
            yield kernel


def wait_for_nap(kernel: Watched) -> None:
    wait_until(lambda: kernel._link._naps.napping, "a first nap")


def test_relayed_kernel_naps_and_wakes_for_a_message(
    relayed: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleep, "LOOK_SECONDS", 4 * QUICK)
    execute(relayed.client, "x = 40")
    wait_for_nap(relayed)
    relayed.wait_for_stop()
    assert relayed.manager.is_alive()
    assert execute(relayed.client, "x + 2").result == "42"
    wait_for_nap(relayed)


def test_heartbeat_does_not_end_naps(relayed: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleep, "LOOK_SECONDS", 4 * QUICK)
    wait_for_nap(relayed)
    ended: list[bool] = []
    monkeypatch.setattr(relayed._link._naps, "end", lambda: ended.append(True))
    check_heartbeats(relayed)
    assert not ended


def test_timer_goes_off_between_naps(relayed: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is sent meanwhile: only a break lets the timer go off."""
    monkeypatch.setattr(sleep, "LOOK_SECONDS", 4 * QUICK)
    monkeypatch.setattr(sleep, "NAP_SECONDS", QUICK)
    code = "import threading; threading.Timer(3, lambda: print('due', flush=True)).start()"
    assert execute(relayed.client, code).status == "ok"
    wait_for_nap(relayed)
    wait_for_text(relayed.client, "due")


CHILDREN = {
    "a child process": (
        "import subprocess; p = subprocess.Popen(['sleep', '1000'])",
        "p.kill(); p.wait()",
    ),
    "a detached child": (
        "import subprocess; s = 'sleep 1000 > /dev/null 2>&1 & echo $!'\n"
        "p = subprocess.run(['setsid', 'sh', '-c', s], stdout=subprocess.PIPE)",
        "import os; os.kill(int(p.stdout), 9)",
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("what", CHILDREN)
def test_kernel_with_a_child_that_sleeps_naps(
    kernel: Watched, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be stopped for good, but for the child."""
    monkeypatch.setattr(sleep, "LOOK_SECONDS", 4 * QUICK)
    begin, end = CHILDREN[what]
    assert execute(kernel.client, begin).status == "ok"
    with kernel._replied:
        del kernel.replies[:]
    wait_for_nap(kernel)
    assert not any(kernel.replies)
    assert execute(kernel.client, end).status == "ok"
    kernel.wait_for_stop()


def test_kernel_whose_thread_runs_often_does_not_nap(
    relayed: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleep, "LOOK_SECONDS", 4 * QUICK)
    looks = threading.Semaphore(0)
    give_up = NapWatch._give_up

    def note(watch: NapWatch) -> None:
        assert not watch.napping
        looks.release()
        give_up(watch)

    begin = (
        "import threading; on = threading.Event()\n"
        "def work():\n    while not on.wait(0.01): pass\n"
        "t = threading.Thread(target=work); t.start()"
    )
    assert execute(relayed.client, begin).status == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(NapWatch, "_give_up", note)
        for _ in range(REPLIES):
            assert looks.acquire(timeout=SECONDS)
        assert not relayed._link._naps.napping
    assert execute(relayed.client, "on.set(); t.join()").status == "ok"
    wait_for_nap(relayed)


@pytest.mark.once
def test_idle_stop_false_never_stops_kernel(kernel: Watched) -> None:
    """A kernel that is used before another one is not stopped when the other one is."""
    with running_kernel(settings={"idle_stop": False}) as (manager, client):
        execute(client, "1")
        execute(kernel.client, "1")
        kernel.wait_for_stop()
        sandbox = manager.provisioner._kernel.sandbox  # type: ignore[union-attr]
        assert state_of(sandbox._sentry) != "T"
        link = manager.provisioner._kernel._kernel._link  # type: ignore[union-attr]
        assert link._idle is None


# -- the end of a stopped one --------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True], ids=["polite", "now"])
def test_stopped_kernel_can_be_restarted_and_shut_down(now: bool) -> None:
    with watched_kernel() as kernel:
        kernel.wait_for_stop()
        kernel.manager.restart_kernel(now=now)
        kernel.client.wait_for_ready(timeout=SECONDS)
        assert execute(kernel.client, "6 * 7").result == "42"
        kernel.wait_for_stop()
        kernel.manager.shutdown_kernel(now=now)
        assert not kernel.manager.is_alive()


def test_signal_reaches_stopped_kernel() -> None:
    with watched_kernel() as kernel:
        kernel.wait_for_stop()
        kernel.manager.signal_kernel(signal.SIGTERM)
        wait_until(lambda: not kernel.manager.is_alive(), "the end of the kernel", 10)


def test_killed_sentry_of_stopped_kernel_is_noticed() -> None:
    with watched_kernel() as kernel:
        record = record_of(kernel.manager.provisioner._kernel.sandbox.identity)  # type: ignore[union-attr]
        kernel.wait_for_stop()
        signal.pidfd_send_signal(kernel._link._sandbox.exit_fd, signal.SIGKILL)
        wait_until(lambda: not kernel.manager.is_alive(), "the manager to see it", 10)
        wait_until(
            lambda: not any(map(is_alive, record.processes.values())), "the end of its processes"
        )


def test_killed_owner_of_stopped_kernels_leaves_nothing(world: World, tmp_path: Path) -> None:
    before = leaks.find_things(world)
    with holder(1, tmp_path, "idle") as (process, identities):
        sentries = [record_of(identity).processes["sentry"] for identity in identities]
        for sentry in sentries:
            wait_until(lambda pid=sentry.pid: state_of(pid) == "T", "a stop")  # type: ignore[misc]
        process.kill()
        process.wait()
        left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
        assert not {thing for thing in left if not thing.startswith("file ")}
    with running_kernel():
        pass
    assert not leaks.find_leftovers(before, lambda: leaks.find_things(world))
