"""A process that runs kernels through their lives, and kills something at a point.

    python -m tests.faults.points

Reads one JSON object per line and answers with one line. The points are not listed anywhere. They
are the effects on the host that Python's audit hook reports of the package's code (a folder is
made, a file is opened to write, a process is started), events on the link, the steps of a start's
trace, and some moments after a program was started. A request without a point lists the points that
the stage passes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import gvisor_kernel
from gvisor_kernel import tracing
from gvisor_kernel.bridge import Bridge
from gvisor_kernel.bridge.addresses import sweep_bases
from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.jupyter.plan_factory import make_plan
from gvisor_kernel.kernel import snapshot_builder
from gvisor_kernel.kernel.client import OwnClient, connect, private_connection_info, wait_for_reply
from gvisor_kernel.kernel.plan import KernelPlan
from gvisor_kernel.kernel.session import SandboxedKernel
from gvisor_kernel.kernel.snapshot_queue import SnapshotQueue
from gvisor_kernel.link import (
    Channel,
    Connection,
    IdleQuery,
    IdleReply,
    Log,
    Message,
    Ping,
    Pong,
    Stats,
)
from gvisor_kernel.runtimes import get_runtime
from gvisor_kernel.runtimes.state import lifeline
from gvisor_kernel.snapshots.snapshot_store import Store

from ..patience import scale_seconds
from . import parts

PACKAGE = str(Path(gvisor_kernel.__file__).parent) + os.sep
EFFECTS = frozenset(
    {
        *("os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.symlink", "os.link", "os.chown"),
        *("os.chmod", "os.truncate", "shutil.rmtree", "subprocess.Popen", "fcntl.flock"),
    }
)
"""Audit events of Python. ``os.utime`` is left out because reads raise it, too."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SILENT = re.compile(
    r"^subprocess.Popen in runtimes/runsc/(starting.py:spawn|checkpoint.py:save_snapshot)"
)
LATER = (0.02, 0.05, 0.1, 0.15)
"""Seconds after such a program was started; its own effects raise no audit events."""
IN_NO_ORDER = (IdleQuery, Log, Ping, Pong, IdleReply, Stats)
SECONDS = scale_seconds(60)


class Points:
    """Record points while it is armed, and act at the chosen one."""

    def __init__(self) -> None:
        self.armed = False
        self.passed: dict[str, list[str]] = {}
        """Each point, in order, with the parts of a sandbox that are alive there."""
        self.at: str | None = None
        self.act: Callable[[], None] = lambda: None
        self.look: Callable[[], list[str]] = list
        self._lock = threading.RLock()
        self._watch()

    def begin(self, at: str | None, act: Callable[[], None], look: Callable[[], list[str]]) -> None:
        self.passed, self.at, self.act, self.look = {}, at, act, look

    def _watch(self) -> None:
        sys.addaudithook(self._audit)
        note, send, hear = tracing.Trace.note, Connection.send, Connection.next_event

        def noted(traced: tracing.Trace, words: str) -> None:
            note(traced, words)
            self.reach(f"step: {words}")

        def sent(link: Connection, event: Any) -> None:
            if not isinstance(event, IN_NO_ORDER):
                self.reach(f"the host sends {type(event).__name__}")
            send(link, event)

        def heard(link: Connection) -> Any:
            event = hear(link)
            if isinstance(event, Message):
                if event.channel is not Channel.HB:
                    self.reach(f"the host hears on {event.channel.name.lower()}")
            elif event is not None and not isinstance(event, IN_NO_ORDER):
                self.reach(f"the host hears {type(event).__name__}")
            return event

        tracing.Trace.note = noted  # type: ignore[method-assign]
        Connection.send = sent  # type: ignore[method-assign]
        Connection.next_event = heard  # type: ignore[method-assign]

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in EFFECTS or (event == "open" and arguments[2] & WRITES):
            place = _find_place(sys._getframe(1))
            if place is not None:
                self.reach(f"{event} in {place}")

    def reach(self, name: str) -> None:
        """Pass a point. Only the first time counts, because the number of retries may differ."""
        with self._lock:
            if not self.armed or name in self.passed:
                return
            self.passed[name] = []
            if self.at is None:
                self.armed = False  # looking has effects that must not count
                self.passed[name] = self.look()
                self.armed = True
        later = LATER if SILENT.match(name) else ()
        for seconds in later:
            shown = f"{1000 * seconds:.0f} ms after {name}"
            if self.at is None:
                self.passed[shown] = ["runsc"]
            elif self.at == shown:
                threading.Timer(seconds, self._act, (shown,)).start()
        if name == self.at:
            self._act(name)

    def _act(self, name: str) -> None:
        self.passed[name] = ["done"]
        self.act()


def _find_place(frame: FrameType | None) -> str | None:
    """Return the package's function that caused an effect, and its caller; else None."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return None  # a module is cached
        if file == __file__:
            return None  # an effect of this module
        if file.startswith(PACKAGE):
            place = f"{file.removeprefix(PACKAGE)}:{frame.f_code.co_name}"
            above = frame.f_back
            while above is not None and not above.f_code.co_filename.startswith(PACKAGE):
                above = above.f_back
            if above is not None:
                place += f", for {above.f_code.co_name}:{above.f_lineno}"
            return place
        frame = frame.f_back
    return None


class Life:
    """One kernel's life up to the requested stage, for which ``points`` are armed."""

    def __init__(self, points: Points, plan: KernelPlan) -> None:
        self.kernel = SandboxedKernel()
        self.said: list[str] = []
        """Error texts that a person would see."""
        self._points = points
        self._plan = plan

    def launch(self) -> None:
        with self._connect() as client:
            self._run(client, "x = 6 * 7; print(x)")

    def _connect(self) -> AbstractContextManager[OwnClient]:
        address = asyncio.run(self.kernel.launch(self._plan))
        return connect(address, self._plan, self.kernel.find_end)

    def _run(self, client: OwnClient, code: str) -> None:
        """Run a cell until it ends or the kernel dies."""
        message_id = client.execute(code)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(Exception):
                reply = client.get_shell_msg(timeout=0.2)
                if reply["parent_header"].get("msg_id") == message_id:
                    assert reply["content"]["status"] == "ok", reply["content"]
                    return
            if self.kernel.exit_status is not None:
                self._record_death(client)
                return
        raise AssertionError("neither a reply nor the end of the kernel")

    def _record_death(self, client: OwnClient) -> None:
        with suppress(Exception):
            while True:
                message = client.get_iopub_msg(timeout=1)
                if message["msg_type"] == "error":
                    self.said.append(message["content"]["evalue"])
                    return

    def start(self) -> None:
        self._points.armed = True
        self.launch()

    def run(self) -> None:
        with self._connect() as client:
            wait_for_reply(client, client.kernel_info())
            self._points.armed = True
            self._run(client, "import time; print('x' * 100_000, flush=True); time.sleep(0.2)")

    def restart(self) -> None:
        self.launch()
        self._points.armed = True
        asyncio.run(self.kernel.kill())
        self.launch()

    def renew(self) -> None:
        """A restart with a new sandbox."""
        self.launch()
        self._points.armed = True
        asyncio.run(self.kernel.kill())
        asyncio.run(self.kernel.end_sandbox())
        self.launch()

    def shutdown(self) -> None:
        """Shut down as Jupyter does: request, wait, clean up."""
        with self._connect() as client:
            wait_for_reply(client, client.kernel_info())
            self._points.armed = True
            client.shutdown()
            deadline = time.monotonic() + SECONDS
            while self.kernel.exit_status is None and time.monotonic() < deadline:
                time.sleep(0.01)
        asyncio.run(self.kernel.close())

    def end(self) -> None:
        """End the bridge as an exiting server does, without a request to its kernels."""
        self.launch()
        self._points.armed = True
        Bridge.instance().end()

    def snapshot(self) -> None:
        """Make a snapshot."""
        self._points.armed = True
        snapshot_builder.make_snapshot(self._plan, lambda words, done: None)

    def sweep(self) -> None:
        """Do the cleanup with which each next start begins."""
        get_runtime("runsc").sweep()
        Store.open().sweep()
        sweep_bases(state_root() / "sockets")

    def close(self) -> None:
        if not Bridge.instance().ended:
            asyncio.run(self.kernel.close())

    def go_on(self, request: dict[str, Any]) -> None:
        """Use the kernel, or the next one, after a part of it was killed."""
        if request["stage"] != "snapshot" and request["at"] is not None:
            self.launch()  # the next start must work in any case


Find = Callable[[dict[str, Any], Points], Life]


def find_life(request: dict[str, Any], points: Points) -> Life:
    plan = make_plan("gvisor-python", private_connection_info(), "")
    spec = replace(plan.spec, snapshot=request["snapshot"], spare=False, start_timeout=20.0)
    return Life(points, replace(plan, spec=spec))


def settle_in(request: dict[str, Any]) -> None:
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    os.chdir(request["folder"])


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def live_and_die(request: dict[str, Any], find: Find) -> dict[str, Any]:
    """In a child process: run a stage, and be killed at a point of it."""
    settle_in(request)
    SnapshotQueue.instance().stop()
    points = Points()
    points.begin(request["at"], kill_self, list)
    life = find(request, points)
    getattr(life, request["stage"])()
    points.armed = False
    life.close()
    Bridge.instance().end()
    return {"points": points.passed, "said": life.said}


def answer(request: dict[str, Any], find: Find) -> dict[str, Any]:
    """Run a request in a child process; return how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(live_and_die(request, find), pipe)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), **json.loads(text or "{}")}


class Survivor:
    """Runs stages in this process while parts of its sandboxes are killed."""

    def __init__(self, find: Find) -> None:
        self._points = Points()
        self._find = find
        # A failed restore would discard the snapshot, which is good.
        Store.discard = lambda self, key, reason: None  # type: ignore[method-assign]
        SnapshotQueue.instance().stop()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        settle_in(request)
        before = count_descriptors()
        life = self._find(request, self._points)
        victim = request["victim"]
        self._points.begin(
            request["at"],
            lambda: parts.kill(victim) if victim else None,
            parts.living,
        )
        answer: dict[str, Any] = {"raised": ""}
        try:
            getattr(life, request["stage"])()
        except GvisorKernelError as error:
            answer["raised"] = type(error).__name__
            life.said.append(str(error))
        self._points.armed = False
        life.go_on(request)
        life.close()
        assert lifeline._process is None, f"{lifeline._held} sandboxes are still held"
        return {
            **answer,
            "said": life.said,
            "points": self._points.passed,
            "descriptors": [before, self._settled(before)],
        }

    @staticmethod
    def _settled(before: int) -> int:
        """Wait until libzmq's thread has closed its descriptors."""
        deadline = time.monotonic() + 5
        while count_descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        return count_descriptors()


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def main(find: Find = find_life) -> None:
    survivor: Survivor | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["victim"] == "owner":
            assert survivor is None, "a process with threads does not fork here"
            answered = answer(request, find)
        else:
            survivor = survivor or Survivor(find)
            answered = survivor.answer(request)
        print(json.dumps(answered), flush=True)


if __name__ == "__main__":
    main()
