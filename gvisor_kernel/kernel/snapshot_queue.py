"""Starts processes that make snapshots in the background: one at a time, with low priority.

Such a process ends with this one if this is a server. A program leaves its last one to finish
(below). It runs ``snapshot_builder``, which makes the snapshot.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gvisor_kernel.errors import StateError
from gvisor_kernel.host.descriptors import is_ready
from gvisor_kernel.host.locks import PerProcess
from gvisor_kernel.host.private_directories import read_file, replace_file, state_root
from gvisor_kernel.kernel.plan import KernelPlan, write_plan
from gvisor_kernel.runtimes.base import Builder, FoundSandbox, Sandbox
from gvisor_kernel.snapshots.snapshot_store import MAX_BUILD_SECONDS

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
"""The wait after a cold start: its user has just begun to work, and may start more kernels."""
END_SECONDS = 15.0
"""Seconds that a builder has to remove its unfinished snapshot when this process exits."""
LAST_SECONDS = 5.0
BUILD = ("-P", "-m", "gvisor_kernel", "snapshot", "build", "--plan")
"""``-P``: import nothing from the working directory, which may be a folder of notebooks."""
MAX_TRIES = 2
"""Attempts to make one snapshot in the life of this process."""


@dataclass(frozen=True)
class Wanted:
    """A plan as text, what makes its snapshot, whether that is still wanted, and what to call once
    there is one."""

    plan: str
    builder: Builder
    is_wanted: Callable[[], bool]
    on_made: Callable[[], None]


class SnapshotQueue(PerProcess):
    """Queue of snapshots to make. One per process: use ``instance()``. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: deque[Wanted] = deque()
        self._current = ""
        self.leaves_builder = True
        """True if a builder goes on when this process exits. A server sets it to False: it has one
        made when it begins, and whoever stops a server wants nothing to go on."""
        self._builder: Builder | None = None
        """The builder in the process, once it has its order."""
        self._failed: Counter[str] = Counter()
        self._changed = threading.Condition()  # no timeout: held for a few steps that do not wait
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def request(
        self,
        plan: KernelPlan,
        is_wanted: Callable[[], bool] = lambda: True,
        on_made: Callable[[], None] = lambda: None,
        sandbox: Sandbox | None = None,
    ) -> None:
        """Have a snapshot made for kernels like ``plan``'s, unless it exists by then.

        Returns at once. Failures are only logged. ``is_wanted`` is asked just before: a kernel
        that died as it started would die in the same way in the process that makes a snapshot.
        ``on_made`` is called by a thread once the snapshot exists; not if an equal plan waits.
        ``sandbox``: one of such a kernel. The snapshot is made where that is.
        """
        content = write_plan(plan)
        plan_text = json.dumps(content, sort_keys=True)
        if sandbox is not None and isinstance(sandbox, FoundSandbox):
            builder = sandbox.make_builder(content)
            if builder is None:
                return
        else:
            builder = Builder((sys.executable, *BUILD), os.environ, _line(plan_text), "")
        text = f"{builder.place} {plan_text}"
        with self._changed:
            if self._ended or text in (self._current, *(one.plan for one in self._wanted)):
                return
            if self._failed[text] >= MAX_TRIES:
                return
            self._wanted.append(Wanted(text, builder, is_wanted, on_made))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="gvisor-kernel-snapshots", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                # no timeout: a thread of its own, which waits for work until it is told to end
                self._changed.wait_for(lambda: self._ended or bool(self._wanted))
                if self._ended or self._changed.wait_for(lambda: self._ended, WAIT_SECONDS):
                    return
                wanted = self._wanted.popleft()
                if not wanted.is_wanted():
                    continue
                self._current = wanted.plan
                self._builder = None
                try:
                    process = self._process = _start(wanted.builder, subprocess.PIPE)
                except OSError as error:
                    log.info("Could not start the process that makes snapshots: %s", error)
                    continue
            made = self._wait(process, wanted)
            with self._changed:
                self._current = ""
            if made:
                wanted.on_made()

    def _wait(self, process: subprocess.Popen[bytes], wanted: Wanted) -> bool:
        """Send the order to the builder, wait for its end, and return whether it succeeded.

        It also ends when its stdin closes.
        """
        assert process.stdin is not None
        assert process.stderr is not None
        message = b""
        late = threading.Timer(MAX_BUILD_SECONDS, process.kill)
        late.daemon = True
        late.start()
        with suppress(OSError, ValueError):
            process.stdin.write(wanted.builder.order)
            self._builder = wanted.builder
            # no timeout: MAX_BUILD_SECONDS later it is killed
            message = process.stderr.read()[-2000:]
        with suppress(OSError):
            process.stdin.close()
        status = process.wait()  # no timeout: MAX_BUILD_SECONDS later it is killed, or it was
        late.cancel()
        if status and not self._ended:
            self._failed[wanted.plan] += 1
            words = message.decode(errors="replace").strip()
            where = f" on {wanted.builder.place}" if wanted.builder.place else ""
            told = "Could not make a snapshot%s, so kernels start without it, more slowly: %s"
            log.warning(told, where, words)
        process.stderr.close()
        return status == 0 and not self._ended

    def end(self) -> None:
        """Leave the builder to itself, or stop it. Called at exit. Does nothing in a forked child.

        Blocks up to END_SECONDS if it is stopped.
        """
        if self.is_inherited or not (self.leaves_builder and self.leave()):
            self.stop()

    def leave(self) -> bool:
        """Let the builder that runs finish, or begin the next one; return False if neither can be.

        A builder on another machine cannot be left: its client ends with this process. Nor can one
        of a snapshot that another program has left: that one goes on, or has failed lately.
        """
        with self._changed:
            if self._ended:
                return False
            self._ended = True
            self._changed.notify_all()
        process, builder = self._process, self._builder
        if process is not None and process.poll() is None:
            if builder is None:  # FINISH must not come before the order
                return False
        else:
            wanted = next(iter(self._wanted), None)
            if wanted is None or not wanted.is_wanted():
                return False
            builder, process = wanted.builder, None
        if builder.place or was_left(builder.order):
            return False
        if process is None:
            try:
                process = _start(builder, subprocess.DEVNULL)
                assert process.stdin is not None
                process.stdin.write(builder.order)
            except OSError:
                return False
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(FINISH)
            process.stdin.close()
        process.returncode = 0  # nobody waits for it
        return True

    def stop(self) -> None:
        """Stop the builder and drop waiting plans. Does nothing in a forked child. Idempotent.

        Blocks up to END_SECONDS.
        """
        if self.is_inherited:
            return
        with self._changed:
            self._ended = True
            self._wanted.clear()
            process = self._process
            self._changed.notify_all()
        if process is None or process.poll() is not None:
            return
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # a client of an engine then takes its job from the queue
            try:
                process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()  # no timeout: MAX_BUILD_SECONDS later it is killed, or it was


def _start(builder: Builder, stderr: int) -> subprocess.Popen[bytes]:
    """Start the process of ``builder``, which waits for its order. ``stderr``: as for ``Popen``."""
    return subprocess.Popen(
        builder.argv,
        env=dict(builder.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        bufsize=0,
        start_new_session=True,
    )


def _line(text: str) -> bytes:
    return text.encode() + b"\n"


def _in_child() -> None:
    """Close a forked child's copy of the builder's stdin: the builder ends with the parent."""
    instance = SnapshotQueue._instance
    process = instance._process if instance is not None else None
    if process is not None and process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
        process.returncode = 0  # it is not a child of this process


os.register_at_fork(after_in_child=_in_child)


# -- a builder that goes on when its program has ended ---------------------------------------------
# A program that runs one notebook ends before its snapshot is made, and the next one would start
# cold again, for 2.8 times the CPU time of a restored start (1.37 s and 0.49 s, medians of 18 and
# 20). So it leaves the builder to itself: the builder then ends after LEFT_SECONDS at the latest.
# If it does not finish, no other program leaves one for the same snapshot for AGAIN_SECONDS. Here
# is what program and builder tell each other.

# by path: below the state directory, whose parents only this user can change; and the null device

FINISH = b"finish\n"
"""Sent after the order: the program ends, and its builder goes on."""
LEFT_SECONDS = 120.0
"""Seconds that a builder may go on without its program. It takes some five seconds of CPU time, at
the lowest priority."""
AGAIN_SECONDS = 3600.0
GIVE_UP_SECONDS = 10.0
"""Seconds that a builder that must end may take to remove what it has begun."""
MAX_ORDER = 1024 * 1024
"""Bytes of an order, which is a plan and a newline."""
FILE = "left-snapshot"


def read_order(fd: int) -> tuple[bytes, bytes]:
    """Return the order, which is the first line from ``fd``, and what has come after it. Blocks.

    Reads no further than it must: ``end_with`` reads the rest.
    """
    content = b""
    while b"\n" not in content and len(content) < MAX_ORDER:
        # no timeout: the order is there, or its program has ended; the rest is read after a poll
        more = os.read(fd, 65536)
        if not more:
            break
        content += more
    order, _, rest = content.partition(b"\n")
    return order, rest


def end_with(fd: int, order: bytes = b"", said: bytes = b"") -> None:
    """Let this process end, and remove what it has begun, when ``fd`` ends: then its program has.

    After FINISH it goes on for LEFT_SECONDS. ``said``: what was read from ``fd`` already.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        if _hear_finish(fd, said):
            note_left(order)
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)  # nobody reads it any more
            time.sleep(LEFT_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GIVE_UP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _hear_finish(fd: int, heard: bytes) -> bool:
    """Wait for FINISH, or for the end of ``fd``; return whether it was FINISH.

    Does not wait for the end after FINISH: a child of the program may have a copy of the pipe.
    """
    with suppress(OSError):
        # no timeout: a thread of its own, which waits for work until it is told to end
        while len(heard) < len(FINISH) and is_ready(fd, None):
            with suppress(BlockingIOError):
                # no timeout: the order is there, or its program has ended; the rest is read after a
                # poll
                more = os.read(fd, 65536)
                if not more:
                    break
                heard += more
    return heard.startswith(FINISH)


# -- the note about the last one, for all programs of this user ------------------------------------


def was_left(order: bytes) -> bool:
    """Return whether the snapshot of ``order`` was left lately, and not finished since."""
    with suppress(OSError, StateError):
        path = state_root() / FILE
        if 0 <= time.time() - path.stat().st_mtime < AGAIN_SECONDS:
            return read_file(path, len(_name(order))).decode(errors="replace") == _name(order)
    return False


def note_left(order: bytes) -> None:
    """Note that the snapshot of ``order`` was left. Never raises: then it may be begun again."""
    with suppress(OSError, StateError):
        replace_file(state_root() / FILE, _name(order))


def note_finished(order: bytes) -> None:
    """Forget that the snapshot of ``order`` was left. Never raises."""
    if was_left(order):
        with suppress(OSError, StateError):
            (state_root() / FILE).unlink()


def _name(order: bytes) -> str:
    return hashlib.sha256(order.strip()).hexdigest()
