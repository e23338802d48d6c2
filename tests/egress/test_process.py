"""The worker's life: it ends with its owner, and another one takes its place when it dies."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gvisor_kernel.egress import process
from gvisor_kernel.egress.own_process import is_out_of_memory
from gvisor_kernel.egress.process import EgressWorker, _Worker
from gvisor_kernel.egress.worker import MAX_MEMORY
from gvisor_kernel.errors import LaunchError
from gvisor_kernel.host.processes import wait_until_gone

from ..patience import scale_seconds
from ..world import PROJECT
from .conftest import SECRET, Kernel
from .peer import status_of
from .upstream import Fake


def is_gone(pid: int) -> bool:
    """Wait until a process has ended."""
    return wait_until_gone([pid], time.monotonic() + scale_seconds(10))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + scale_seconds(10)
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def running_owner(*words: str) -> Iterator[subprocess.Popen[str]]:
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.egress.owner", *words],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        try:
            yield owner
        finally:
            owner.kill()


def read_pids(owner: subprocess.Popen[str]) -> list[int]:
    assert owner.stdout is not None
    return [int(word) for word in owner.stdout.readline().split()]


def test_the_worker_ends_when_its_owner_is_killed() -> None:
    with running_owner() as owner:
        (worker,) = read_pids(owner)
        owner.send_signal(signal.SIGKILL)
        assert is_gone(worker)


def test_the_worker_ends_when_its_owner_exits() -> None:
    with running_owner() as owner:
        (worker,) = read_pids(owner)
        assert owner.stdin is not None
        owner.stdin.close()
        assert owner.wait(scale_seconds(20)) == 0
        assert is_gone(worker)


def test_a_forked_child_has_a_worker_of_its_own_and_keeps_no_other_alive() -> None:
    with running_owner("fork") as owner:
        lines = sorted((read_pids(owner), read_pids(owner)), key=len)
        (workers,), (child, childs) = lines
        assert workers != childs
        owner.send_signal(signal.SIGKILL)
        assert is_gone(workers)
        assert Path(f"/proc/{childs}").exists()
        os.kill(child, signal.SIGKILL)
        assert is_gone(childs)


def test_the_worker_ends_when_it_is_told_to() -> None:
    worker = EgressWorker()
    kernel = Kernel(worker, {}, None)
    pid = worker.pid
    assert status_of(kernel.get("/x")) == 403
    worker.end()
    assert pid is not None
    assert is_gone(pid)
    with pytest.raises(LaunchError):
        Kernel(worker, {}, None)
    kernel.close()


def test_a_worker_that_was_killed_is_replaced(upstream: Fake) -> None:
    routes = {"plain": upstream.route()}
    worker = EgressWorker()
    first = Kernel(worker, routes, None)
    upstream.seen.clear()
    stream = first.open(b"GET /plain/wait HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n")
    first.wait_for(lambda: bool(upstream.seen), stream)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    first.wait_for(lambda: first.ended, stream)
    assert stream.closed == "reset"
    second = Kernel(worker, routes, None)
    assert status_of(second.get("/plain/x")) == 200
    assert worker.pid != pid
    for kernel in (first, second):
        kernel.close()
    worker.end()
    # A thread writes it, after the socket's end and perhaps after the next start.
    wait_until(lambda: bool(first.log))
    assert first.log == ["the process for routes ended with status -9"]


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, upstream: Fake) -> None:
    routes = {"plain": upstream.route()}
    worker = EgressWorker()
    with monkeypatch.context() as patch:
        patch.setattr(process, "SILENCE_SECONDS", 0.5)
        first = Kernel(worker, routes, None)
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        first.wait_for(lambda: first.ended, first.open())
    assert is_gone(pid)
    second = Kernel(worker, routes, None)
    assert status_of(second.get("/plain/x")) == 200
    for kernel in (first, second):
        kernel.close()
    worker.end()
    wait_until(lambda: len(first.log) == 2)
    assert first.log[0] == "the process for routes was silent for 0.5 s"


def test_the_end_of_a_worker_that_still_seems_to_live_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed closes its sockets before it has a status."""
    monkeypatch.setattr(_Worker, "_read_messages", lambda worker: None)  # it is late
    worker = EgressWorker()
    first = Kernel(worker, {}, None)
    pid = worker.pid
    assert pid is not None
    monkeypatch.setattr(_Worker, "alive", True)
    os.kill(pid, signal.SIGKILL)
    assert is_gone(pid)
    second = Kernel(worker, {}, None)
    monkeypatch.undo()
    assert status_of(second.get("/x")) == 403
    for kernel in (first, second):
        kernel.close()
    worker.end()
    wait_until(lambda: bool(first.log))
    assert first.log == ["the process for routes ended with status -9"]
    assert not second.log


def test_a_worker_without_memory_ends_and_is_replaced(upstream: Fake) -> None:
    routes = {"plain": upstream.route()}
    worker = EgressWorker()
    first = Kernel(worker, routes, None)
    assert status_of(first.get("/plain/x")) == 200
    pid = worker.pid
    assert pid is not None
    assert resource.prlimit(pid, resource.RLIMIT_DATA)[0] == MAX_MEMORY
    resource.prlimit(pid, resource.RLIMIT_DATA, (4096, MAX_MEMORY))  # it can get no more
    first.keeps = False
    stream = first.open(b"GET /plain/big?mib=150 HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n")
    first.wait_for(lambda: first.ended, stream)
    assert stream.closed == "reset"
    second = Kernel(worker, routes, None)
    assert status_of(second.get("/plain/x")) == 200
    assert worker.pid != pid
    for kernel in (first, second):
        kernel.close()
    worker.end()
    for said in ("more memory than it may have", "the process for routes ended with status -9"):
        wait_until(lambda said=said: any(said in line for line in first.log))  # by two threads


def test_errors_that_mean_that_no_memory_is_left_are_known() -> None:
    inner = ExceptionGroup("of a tunnel", [ValueError(), MemoryError()])
    caused = RuntimeError()
    caused.__cause__ = inner
    caused.__context__ = caused.__cause__
    for error in (MemoryError(), inner, caused):
        assert is_out_of_memory(error)
    for other in (None, ValueError(), ExceptionGroup("other", [ValueError()])):
        assert not is_out_of_memory(other)


def test_a_thread_that_gets_no_stack_means_so_too() -> None:
    code = (
        "import threading\n"
        "from gvisor_kernel.egress.own_process import is_out_of_memory, limit_memory\n"
        "limit_memory(4096)\n"
        "try: threading.Thread(target=print).start()\n"
        "except RuntimeError as error: print(is_out_of_memory(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_the_end_of_a_kernel_ends_its_requests_only(worker: EgressWorker, upstream: Fake) -> None:
    routes = {"plain": upstream.route()}
    upstream.gone.clear()
    one, other = Kernel(worker, routes, None), Kernel(worker, routes, None)
    stream = one.open(b"GET /plain/endless HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n")
    one.wait_for(lambda: stream.count > 1000, stream)
    one.close()
    assert upstream.gone.wait(scale_seconds(10))
    assert status_of(other.get("/plain/x")) == 200
    other.close()


def test_a_kernel_that_violates_the_protocol_ends_alone(
    worker: EgressWorker, upstream: Fake
) -> None:
    routes = {"plain": upstream.route()}
    bad, good = Kernel(worker, routes, None), Kernel(worker, routes, None)
    bad.sock.send(b"\x12\0\0\0\0\0\0\x05\0\0\0\x09x")  # bytes on a stream that was never opened
    while not bad.ended:
        bad.pump(1)
    assert status_of(good.get("/plain/x")) == 200
    bad.close()
    good.close()


def test_the_workers_environment_and_command_line_have_no_secret(worker: EgressWorker) -> None:
    kernel = Kernel(worker, {}, None)
    folder = Path(f"/proc/{worker.pid}")
    kernel.get("/x")
    assert SECRET.encode() not in (folder / "cmdline").read_bytes()
    if os.geteuid() == 0:
        assert SECRET.encode() not in (folder / "environ").read_bytes()
    else:
        with pytest.raises(PermissionError):
            (folder / "environ").read_bytes()
    kernel.close()


def test_the_workers_memory_stays_small(worker: EgressWorker, upstream: Fake) -> None:
    """Not a measurement: a body that is held as a whole would be far above."""
    routes = {"plain": upstream.route()}
    kernel = Kernel(worker, routes, None)
    kernel.keeps = False
    stream = kernel.open(b"GET /plain/big?mib=150 HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n")
    kernel.wait_for(lambda: stream.count > 150 * 1024 * 1024, stream, 60)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    assert peak < 100 * 1024
    kernel.close()


def test_a_process_knows_when_its_memory_is_short() -> None:
    """From then on the worker refuses requests (``Services.admit``), before it has to end."""
    code = (
        "from gvisor_kernel.egress.own_process import is_memory_short, limit_memory\n"
        "print(is_memory_short()); limit_memory(400 << 20); print(is_memory_short())\n"
        "held = bytearray(320 << 20); print(is_memory_short())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "True"]
