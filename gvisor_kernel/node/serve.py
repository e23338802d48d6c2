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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gvisor_kernel import __version__
from gvisor_kernel.errors import GvisorKernelError, LaunchError
from gvisor_kernel.host.folders import find_identity
from gvisor_kernel.host.memory_pace import (
    MAX_INTERVAL_SECONDS,
    MAX_OVERRUN,
    seconds_to_next_measurement,
)
from gvisor_kernel.node.relay import Lane
from gvisor_kernel.node.start import start_sandbox
from gvisor_kernel.runtimes.base import Sandbox
from gvisor_kernel.runtimes.mounts.covers import hide_also
from gvisor_kernel.runtimes.nodes.orders import (
    HEAD,
    MAX_ORDER,
    Order,
    OrderError,
    read_head,
    read_order,
    write_fact,
)

if TYPE_CHECKING:
    from gvisor_kernel.node.files import Copy

ORDER_SECONDS = 60.0
"""Seconds that the order may take to come."""
END_SECONDS = 3.0
"""Seconds that a sandbox may take to end after its host has closed the link."""
WRITE_SECONDS = 10.0
"""Seconds that the host may take to read what is written last."""
STEP = 1024 * 1024
"""The host is told of memory that has changed by as many bytes."""
REPORT_SECONDS = 0.25
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


End: TypeAlias = Literal["itself", "signal", "memory"]
"""The cause of a sandbox's end: itself or its host, a signal to this process, its memory limit."""


class HostGone(OrderError):
    """The host's end of stdin is closed before everything has come."""


class FactWriter:
    """Writes facts to stderr. Those that may be lost are dropped while the pipe is full."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # A pipe is ready when a page of it is free, and a fact may be longer.
        os.set_blocking(fd, False)

    def tell(self, kind: str, **values: Any) -> None:
        """Write a fact, for at most a few seconds. Never raises."""
        data = memoryview(write_fact(kind, **values))
        deadline = time.monotonic() + WRITE_SECONDS
        with suppress(OSError):
            while data and time.monotonic() < deadline:
                if select.select([], [self._fd], [], min(1, WRITE_SECONDS))[1]:
                    with suppress(BlockingIOError):
                        data = data[os.write(self._fd, data) :]

    def tell_if_room(self, kind: str, **values: Any) -> None:
        """Write a fact if that does not block; another one follows soon."""
        with suppress(OSError, ValueError):
            if select.select([], [self._fd], [], 0)[1]:
                os.write(self._fd, write_fact(kind, **values))


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
    told.tell("here", release=__version__, node=host, job=os.environ.get("SLURM_JOB_ID", ""))
    copy: Copy | None = None
    try:
        order = receive_order(sys.stdin.fileno(), wake)
        adopt_places(order)
        check_shared(order, host)
        if order.copy:
            copy, order = receive_files(order, sys.stdin.fileno(), wake)
        sandbox, found = start_sandbox(order)
    except (GvisorKernelError, OrderError) as error:
        if copy is not None:
            copy.remove()
        told.tell("failed", **describe_error(error))
        return 1
    try:
        if copy is not None:
            copy.mark_used()
        told.tell("ready", **describe_sandbox(sandbox), **describe_copy(copy), **found)
        end = watch(sandbox, order.spec.memory_limit, wake, told)
        told.tell("ended", **describe_end(sandbox, end))
    except GvisorKernelError as error:
        told.tell("failed", **describe_error(error))
        return 1
    finally:
        with suppress(OSError):
            os.close(sys.stdout.fileno())
        sandbox.close()
        kept = copy is not None and copy.finish()
        told.tell("removed", whole=not sandbox.directory.exists(), kept=kept)
        if copy is not None and kept:
            copy.linger(wake)
    return 0


def receive_order(fd: int, wake: int) -> Order:
    """Read an order and not one byte more.

    :raises OrderError: when none comes in time, or it is malformed
    """
    return read_order(_read(fd, read_head(_read(fd, HEAD, wake)), wake))


def receive_files(order: Order, fd: int, wake: int) -> tuple[Copy, Order]:
    """Read the files that follow the order, and not one byte more; see ``files.take_files``.

    :raises GvisorKernelError, OrderError: when they do not come, or cannot be kept
    """
    from gvisor_kernel.node.files import take_files
    from gvisor_kernel.runtimes.nodes.archive_chunks import read_chunks

    limit = 2 * order.spec.disk_limit + MAX_ORDER
    return take_files(order, read_chunks(lambda size: _read(fd, size, wake), limit))


def _read(fd: int, size: int, wake: int) -> bytes:
    data = b""
    deadline = time.monotonic() + ORDER_SECONDS
    while len(data) < size:
        rest = deadline - time.monotonic()
        ready = select.select([fd, wake], [], [], max(rest, 0))[0]
        if wake in ready or not ready:
            raise OrderError("No order came.")
        with suppress(BlockingIOError):
            more = os.read(fd, size - len(data))  # no timeout: it is ready, or does not block
            if not more:
                raise HostGone("The host has gone.")
            data += more
    return data


def adopt_places(order: Order) -> None:
    """Look for images, skills and keys where the server's user has them."""
    os.environ.update(order.places)
    hide_also([str(Path(os.environ["XDG_STATE_HOME"]).parent), *order.hidden])


def check_shared(order: Order, host: str) -> None:
    """Check that this node has the very folders that the host means.

    :raises LaunchError: when it does not
    """
    for path, inode in order.shared:
        found = find_identity(path)
        if found is None or found.inode != inode:
            what = "does not exist" if found is None else "is another folder"
            raise LaunchError(
                f"The folder {path} of the server {what} on the node {host}.",
                "start the kernel in a folder that the server and the nodes share, or set uploads"
                " and outputs to such folders.",
            )


def describe_sandbox(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "identity": sandbox.identity,
        "environment": dict(sandbox.view.environment),
        "python": sandbox.view.python,
        "workdir": sandbox.view.workdir,
    }


def describe_copy(copy: Copy | None) -> dict[str, Any]:
    return {} if copy is None else {"copy": str(copy.path), "left_out": copy.left_out}


def describe_end(sandbox: Sandbox, end: End) -> dict[str, Any]:
    return {
        "by": end,
        "kills": sandbox.memory_kills() + (end == "memory"),
        "panic": sandbox.find_panic(),
        "stderr": sandbox.stderr_tail(),
    }


def describe_error(error: Exception) -> dict[str, str]:
    if isinstance(error, GvisorKernelError):
        kind = type(error).__name__
        return {"error": kind, "fact": error.fact, "hint": error.hint, "detail": error.detail}
    return {"error": "LaunchError", "fact": str(error), "hint": "", "detail": ""}


def watch(sandbox: Sandbox, limit: int, wake: int, told: FactWriter) -> End:
    """Relay the link until the sandbox has ended; end it when the host is gone.

    Returns what has ended it.

    The host reads the memory that is reported and asks PID 1 to end a kernel above its limit. This
    side does not wait for that where the excess is large.
    """
    into = Lane(sys.stdin.fileno(), sandbox.link_in)
    out = Lane(sandbox.link_out, sys.stdout.fileno())
    deadline: float | None = None
    measured, reported, reported_at = 0.0, 0, 0.0
    wait = 0.0
    kills = 0
    end: End = "itself"
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
        now = time.monotonic()
        if not into.open and deadline is None:
            into.end_target()
            deadline = now + END_SECONDS
        if wake in ready or sandbox.gofer_fd in ready or (deadline or now) < now:
            end = "signal" if wake in ready else "itself"
            sandbox.kill()
            break
        if sandbox.exit_fd in ready or not out.open:
            break
        used = sandbox.memory_used() or 0
        if used > limit + MAX_OVERRUN:
            told.tell("memory", used=used, kills=kills)
            end = "memory"
            sandbox.kill()
            break
        if now - measured >= REPORT_SECONDS:
            measured, kills = now, sandbox.memory_kills()
        if abs(used - reported) >= STEP and (now - reported_at >= REPORT_SECONDS or used > limit):
            told.tell_if_room("memory", used=used, kills=kills)
            reported, reported_at = used, now
        wait = min(seconds_to_next_measurement(used, limit), MAX_INTERVAL_SECONDS)
    _drain(out)
    return end


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
