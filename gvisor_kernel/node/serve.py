"""Runs one sandbox for a host: reads the order, starts it, relays its link, watches and removes it.

The host hears of it by facts on stderr (``runtimes/nodes/orders.py``). It may die at any time, and
so may the network: the end of stdin, PID 1's own patience, or a signal ends the sandbox. When this
process is killed, the small process that ``lifeline`` has started removes what is left.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.host.cgroups import (
    MAX_OVERRUN,
    seconds_to_next_measurement,
)
from gvisor_kernel.node.start import (
    adopt_places,
    check_shared,
    receive_files,
    receive_image,
    receive_order,
    start_sandbox,
)
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.nodes.orders import (
    Ended,
    EndedBy,
    Fact,
    Failed,
    Here,
    Leaving,
    Memory,
    Order,
    OrderError,
    Ready,
    Removed,
    save_word,
    write_fact,
)
from gvisor_kernel.runtimes.state.records import read_record

if TYPE_CHECKING:
    from gvisor_kernel.node.files import Copy

END_SECONDS = 3.0
"""Seconds that a sandbox may take to end after its host has closed the link."""
WRITE_SECONDS = 10.0
"""Seconds that the host may take to read what is written last."""
STEP = 1024 * 1024
"""The host is told of memory that has changed by as many bytes."""
REPORT_SECONDS = 0.25
NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which Slurm says that it will end the job: it is preempted, cancelled, over its time,
or has ``--signal``."""
SIGNALS = (*NOTICES, signal.SIGINT, signal.SIGHUP)
PIECE = 256 * 1024
"""Bytes that are moved at once."""
PIECE_SECONDS = 60.0
"""Seconds that the host may take to read a piece of what was saved."""
SAVED_SECONDS = 1800.0
"""Seconds that it may take to write it on its disk."""


class FactWriter:
    """Writes facts to stderr. Those that may be lost are dropped while the pipe is full."""

    def __init__(self, fd: int, seconds: float = WRITE_SECONDS) -> None:
        """``seconds``: how long one that must not be lost may take."""
        self._fd = fd
        self._seconds = seconds
        # A pipe is ready when a page of it is free, and a fact may be longer.
        os.set_blocking(fd, False)

    def tell(self, fact: Fact) -> bool:
        """Write a fact, for at most a few seconds; return whether it was taken. Never raises."""
        data = memoryview(write_fact(fact))
        deadline = time.monotonic() + self._seconds
        with suppress(OSError):
            while data and time.monotonic() < deadline:
                if select.select([], [self._fd], [], min(1, self._seconds))[1]:
                    with suppress(BlockingIOError):
                        data = data[os.write(self._fd, data) :]
        return not data

    def tell_if_room(self, fact: Fact) -> None:
        """Write a fact if that does not block; another one follows soon."""
        with suppress(OSError, ValueError):
            if select.select([], [self._fd], [], 0)[1]:
                os.write(self._fd, write_fact(fact))


def serve() -> int:
    """Serve the sandbox that the host orders on stdin; return the exit status of this process.

    0: the sandbox was started and has ended; 1: it was not started, and a fact says why.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[logging.NullHandler()])
    wake, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    for signum in SIGNALS:
        signal.signal(signum, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    told = FactWriter(sys.stderr.fileno())
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    told.tell(Here(host, os.environ.get("SLURM_JOB_ID", "")))
    copy: Copy | None = None
    image: Copy | None = None
    try:
        order = receive_order(sys.stdin.fileno(), wake)
        adopt_places(order)
        check_shared(order, host)
        if order.copy:
            copy, order = receive_files(order, sys.stdin.fileno(), wake)
        if order.image:
            image = receive_image(order, sys.stdin.fileno(), wake)
        try:
            sandbox, found, lacks = start_sandbox(order, None if image is None else image.files)
        finally:
            if image is not None:
                image.remove()  # before the host hears of a failure, and ends this process
    except (GvisorKernelError, OrderError) as error:
        if copy is not None:
            copy.remove()
        told.tell(describe_error(error))
        return 1
    try:
        if copy is not None:
            copy.mark_used()
        kernel = (dict(sandbox.view.environment), sandbox.view.python, sandbox.view.workdir)
        files = ("", 0) if copy is None else (str(copy.path), copy.left_out)
        record = read_record(sandbox.directory)
        runsc = record.runsc if record is not None else ""
        ends = os.environ.get("SLURM_JOB_END_TIME", "")
        left = max(0.0, int(ends) - time.time()) if ends.isdecimal() else 0.0
        told.tell(Ready(*kernel, *files, found, lacks, runsc, left))
        hibernates = bool(os.environ.get("SLURM_JOB_ID")) and copy is None
        end = watch(sandbox, order, wake, told, hibernates=hibernates)
        kills = sandbox.memory_kills() + (end == "memory")
        told.tell(Ended(end, kills, sandbox.find_panic(), sandbox.stderr_tail()))
    except GvisorKernelError as error:
        told.tell(describe_error(error))
        return 1
    finally:
        with suppress(OSError):
            os.close(sys.stdout.fileno())
        sandbox.close()
        kept = copy is not None and copy.finish()
        told.tell(Removed(whole=not sandbox.directory.exists(), kept=kept))
        if copy is not None and kept:
            copy.linger(wake)
    return 0


def describe_error(error: Exception) -> Failed:
    if isinstance(error, GvisorKernelError):
        return Failed(type(error).__name__, error.fact, error.hint, error.detail)
    return Failed("LaunchError", str(error))


def watch(
    sandbox: Sandbox, order: Order, wake: int, told: FactWriter, *, hibernates: bool
) -> EndedBy:
    """Relay the link until the sandbox has ended; end it when the host is gone.

    Returns what has ended it. ``hibernates``: one of NOTICES ends nothing while the host is there,
    which is told. The host may ask for it to be saved and sent; nothing is relayed meanwhile.

    The host reads the memory that is reported and asks PID 1 to end a kernel above its limit. This
    side does not wait for that where the excess is large.
    """
    limit = order.spec.memory_limit
    into = Inlet(sys.stdin.fileno(), sandbox.link_in, save_word(order))
    is_saved = False
    out = Lane(sandbox.link_out, sys.stdout.fileno())
    deadline: float | None = None
    measured, reported, reported_at = 0.0, 0, 0.0
    wait = 0.0
    kills = 0
    end: EndedBy = "itself"
    while True:
        poller = select.poll()
        for fd in (sandbox.exit_fd, wake, sandbox.gofer_fd):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        lanes = {lane.waits_for[0]: lane for lane in (into, out) if lane.open}
        for lane in lanes.values():
            poller.register(*lane.waits_for)
        ready = {fd for fd, _ in poller.poll(wait * 1000)}
        for fd, lane in lanes.items():
            if fd in ready:
                lane.move()
        if into.asked:
            from gvisor_kernel.node.images import send_saved

            pieces = FactWriter(sys.stderr.fileno(), PIECE_SECONDS)
            saver = Thread(target=send_saved, args=(sandbox, pieces.tell, into.await_word))
            saver.start()
            while saver.is_alive():
                used = sandbox.memory_used() or 0
                if used > limit + MAX_OVERRUN:
                    end = "memory"
                    sandbox.kill()
                saver.join(seconds_to_next_measurement(used, limit))
            into.asked, is_saved = False, True
        now = time.monotonic()
        if not into.open and deadline is None:
            into.end_target()
            # PID 1 of one that was saved does not end by itself.
            deadline = now + END_SECONDS * (not is_saved)
        if wake in ready and into.open and hibernates and _is_notice(wake):
            told.tell(Leaving())
            ready.discard(wake)
        if wake in ready or sandbox.gofer_fd in ready or (deadline or now) < now:
            end = "signal" if wake in ready else "itself"
            sandbox.kill()
            break
        if sandbox.exit_fd in ready or not out.open:
            break
        used = sandbox.memory_used() or 0
        if used > limit + MAX_OVERRUN:
            told.tell(Memory(used, kills))
            end = "memory"
            sandbox.kill()
            break
        if now - measured >= REPORT_SECONDS:
            measured, kills = now, sandbox.memory_kills()
        if abs(used - reported) >= STEP and (now - reported_at >= REPORT_SECONDS or used > limit):
            told.tell_if_room(Memory(used, kills))
            reported, reported_at = used, now
        wait = seconds_to_next_measurement(used, limit)
    _drain(out)
    return end


def _is_notice(wake: int) -> bool:
    with suppress(BlockingIOError):
        return set(os.read(wake, PIECE)) <= set(NOTICES)  # no timeout: it does not block
    return False


def _drain(out: Lane) -> None:
    """Pass on what the sandbox has written last: a pipe's content, while somebody reads."""
    deadline = time.monotonic() + WRITE_SECONDS
    while out.open and time.monotonic() < deadline:
        fd, event = out.waits_for
        poller = select.poll()
        poller.register(fd, event)
        if not poller.poll(1000 if event == select.POLLOUT else 0):
            if event == select.POLLIN:
                return
            continue
        out.move()


class Lane:
    """One direction of a link: from the descriptor ``source`` to ``target``. One of both is a pipe,
    so ``splice`` moves pages in the kernel, without a copy. A reader that stops stalls its writer,
    and nothing is kept here.

    ``waits_for``: the descriptor and the event of ``select.poll`` that it waits for now.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.open = True
        self._full = False
        for fd in (source, target):
            os.set_blocking(fd, False)

    @property
    def waits_for(self) -> tuple[int, int]:
        return (self.target, select.POLLOUT) if self._full else (self.source, select.POLLIN)

    def move(self) -> None:
        """Move what there is. Called when the awaited event has come; then ``open`` is False if
        either end was closed."""
        try:
            moved = os.splice(
                self.source, self.target, PIECE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            # One of both is not ready. The other one was: that is what was waited for.
            self._full = not self._full
            return
        except OSError:
            self.open = False
            return
        self._full = False
        self.open = moved > 0

    def end_target(self) -> None:
        """Let the target's reader see the end. The descriptor stays its owner's to close."""
        self.open = False
        # by path: the kernel's own file systems, /proc, /sys and /dev
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.dup2(null, self.target, inheritable=False)
        finally:
            os.close(null)


class Inlet(Lane):
    """The direction from the host. ``asked``: it has sent ``word``, which is not passed on. It
    sends that while it awaits nothing of the sandbox, so it comes in one piece."""

    def __init__(self, source: int, target: int, word: bytes) -> None:
        super().__init__(source, target)
        self.asked = False
        self._word = word
        self._data = b""

    def move(self) -> None:
        try:
            if not self._data:
                data = os.read(self.source, PIECE)  # no timeout: it does not block
                # Twice: the host has given up what it asked for.
                self.open, self.asked = bool(data), data.count(self._word) == 1
                self._data = data.replace(self._word, b"")
            while self._data:
                self._data = self._data[os.write(self.target, self._data) :]
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        self._full = bool(self._data)

    def await_word(self) -> None:
        """Wait until the host has sent something, as it does once it has what was saved."""
        poller = select.poll()
        poller.register(self.source, select.POLLIN)
        if poller.poll(SAVED_SECONDS * 1000):
            self.move()
