"""PID 1 and kernels that misbehave, in real sandboxes."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.session import Session

from gvisor_kernel.guest import process

from ..jupyter.helpers import (
    SANDBOXED,
    SECONDS,
    SOONEST,
    execute,
    finish,
    next_message,
    running_kernel,
    sandbox_of,
    wait_for_text,
    wait_until,
)
from ..sweeps import needs_all

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no PID 1 of ours")

MIB = 1024 * 1024
STOP = "import os, time; print('now', flush=True); time.sleep(0.5); os.kill(os.getpid(), 19)"


Running = tuple[KernelManager, BlockingKernelClient]


@pytest.fixture(autouse=True)
def notebook_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "notebooks"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A kernel that each test restarts in its sandbox, whatever it has done."""
    with running_kernel(start={"cwd": str(tmp_path_factory.mktemp("shared"))}) as running:
        yield running


def restart_in_same_sandbox(manager: Any, client: Any) -> None:
    """Restart the kernel. It must be in the same sandbox, and the only process besides PID 1."""
    identity = sandbox_of(manager).identity
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=SECONDS)
    assert sandbox_of(manager).identity == identity
    code = "import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))"
    inside = execute(client, code).text
    assert len(inside.split(",")) == 2, inside


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import os; os.close(1); os.close(2)", id="closes its output"),
        pytest.param(
            "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)",
            id="makes zombies",
            marks=needs_all,
        ),
        pytest.param(
            "import subprocess\n"
            "for _ in range(20): subprocess.run(['sh', '-c', 'setsid sleep 600 &'])",
            id="leaves orphans in sessions of their own",
        ),
        pytest.param(
            "import os\nx = os.open('/dev/stderr', os.O_WRONLY)\n"
            "for _ in range(2000): os.write(x, b'x' * 4095 + b'\\n')",
            id="floods stderr",
            marks=needs_all,
        ),
    ],
)
def test_misbehaving_kernel_continues_and_can_be_restarted(kernel: Running, code: str) -> None:
    manager, client = kernel
    assert execute(client, code).status == "ok"
    assert execute(client, "6 * 7").result == "42"
    restart_in_same_sandbox(manager, client)


def test_libraries_are_told_to_sleep_soon_and_programs_are_not(kernel: Running) -> None:
    """What an extension module's library would see, and a thread's room; a program sees neither."""
    code = """
import ctypes, os, subprocess, threading
from importlib.machinery import ExtensionFileLoader, ModuleSpec
getenv = ctypes.CDLL(None).getenv
getenv.restype, name = ctypes.c_char_p, "OPENBLAS_THREAD_TIMEOUT"
class Spec(ModuleSpec):
    name = property(lambda self: seen.append(getenv(name.encode())) or "gk_none", lambda *_: None)
seen, spec = [], Spec("gk_none", None, origin="/none.so")
try:
    ExtensionFileLoader("gk_none", "/none.so").create_module(spec)
except ImportError:
    pass
child = subprocess.run(["env"], capture_output=True, text=True).stdout
roomy = threading.Thread._bootstrap.__code__.co_stacksize > 10_000
{*seen}, name in child or name in os.environ, getenv(name.encode()), roomy
"""
    result = f"({{b'25'}}, False, None, {sys.version_info >= (3, 11)})"
    assert execute(kernel[1], code).result == result


def test_kernel_that_stops_itself_can_be_restarted_and_shut_down() -> None:
    with running_kernel() as (manager, client):
        client.execute(STOP)
        wait_for_text(client, "now")
        restart_in_same_sandbox(manager, client)
        client.execute(STOP)
        wait_for_text(client, "now")
        manager.shutdown_kernel(now=True)


def test_kernel_that_breaks_its_sockets_can_be_restarted(kernel: Running) -> None:
    """It closes them and answers PID 1 with bytes that are not ZMTP."""
    code = """
import glob, os, socket, threading, time
listeners = []
for path in glob.glob('/run/gvisor-kernel/kernel/*/s-*'):
    os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listeners.append(listener)
def answer(listener):
    while True:
        listener.accept()[0].sendall(b'garbage' * 10000)
for listener in listeners:
    threading.Thread(target=answer, args=(listener,), daemon=True).start()
print('ready', flush=True)
time.sleep(0.5)
os.closerange(3, 256)
time.sleep(600)
"""
    manager, client = kernel
    client.execute(code)
    wait_for_text(client, "ready")
    for _ in range(3):
        client.execute("1")
        client.kernel_info()
    restart_in_same_sandbox(manager, client)


def test_forged_messages_are_dropped(kernel: Running) -> None:
    """The kernel bypasses its session: no key, no message, another topic."""
    code = """
import zmq
socket = get_ipython().kernel.iopub_socket
forged = [
    [b'x'], [b'x'] * 100, [b'<IDS|MSG>'], [b'<IDS|MSG>'] * 6,
    [b'stream', b'<IDS|MSG>', b'0' * 64, b'{}', b'{}', b'{}', b'{"text": "forged"}'],
    [b'stream', b'<IDS|MSG>', b'', b'[' * 50000, b'{}', b'{}', b'{}'],
    [b'', b'<IDS|MSG>', b'', b'\\xff', b'\\xff', b'\\xff', b'\\xff'],
    [b'x'] * 5000,
]
for parts in forged * 20:
    socket.send_multipart(parts)
"""
    _, client = kernel
    answer = execute(client, code)
    assert answer.status == "ok"
    told = [message["content"] for message in answer.of_type("stream")]
    assert all("5000 parts" in content["text"] for content in told)  # said by the kernel's end
    assert execute(client, "6 * 7").result == "42"


def test_kernel_that_ignores_sigterm_can_be_restarted(kernel: Running) -> None:
    manager, client = kernel
    execute(client, "import signal; x = signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    manager.signal_kernel(signal.SIGTERM)
    assert execute(client, "6 * 7").result == "42"
    restart_in_same_sandbox(manager, client)


@pytest.mark.slow
@pytest.mark.once
def test_stalled_client_slows_the_kernel_and_loses_nothing() -> None:
    """100 MB in messages of 1 MB are neither dropped in PID 1 nor kept in this process."""
    count = 100
    code = f"""
import time
begin = time.monotonic()
for i in range({count}):
    print(str(i) + ' ' * 1000000, flush=True)
    if i == 0:
        open('/mnt/user-data/outputs/started', 'w').close()
open('/mnt/user-data/outputs/done', 'w').write(str(time.monotonic() - begin))
"""
    with stalling_client() as (manager, client):
        execute(client, "1")
        gc.collect()
        before = read_resident_bytes()
        msg_id = client.execute(code)
        outputs = Path("outputs")
        wait_until(lambda: (outputs / "started").exists(), "the first output")
        wait_until(lambda: prints_no_more(manager), "the kernel to be stopped", 20)
        peak = read_resident_bytes()
        assert not (outputs / "done").exists(), "the kernel was not stopped"
        assert peak - before < 64 * MIB
        got: list[int] = []
        end = time.monotonic() + SECONDS
        while len(got) < count:
            message = next_message(client, "iopub", end, f"all output; {len(got)} came")
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            # ipykernel may print to stderr that its output is not read.
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                got += [int(line) for line in message["content"]["text"].split()]
        assert got == list(range(count))
        assert finish(client, msg_id).status == "ok"


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    "how",
    [
        "interrupt",
        pytest.param("shutdown", marks=needs_all),
        pytest.param("shutdown now", marks=needs_all),
    ],
)
def test_stopped_kernel_can_be_interrupted_and_shut_down(how: str) -> None:
    code = """
open('/mnt/user-data/outputs/started', 'w').close()
try:
    while True: print('x' * 1000000, flush=True)
except KeyboardInterrupt:
    open('/mnt/user-data/outputs/interrupted', 'w').close()
"""
    with stalling_client() as (manager, client):
        manager.shutdown_wait_time = 2.0
        client.execute(code)
        wait_until(Path("outputs/started").exists, "the first output")
        wait_until(lambda: prints_no_more(manager), "the kernel to be stopped", 20)
        if how == "interrupt":
            manager.interrupt_kernel()
            wait_until(Path("outputs/interrupted").exists, "the interrupt", 20)
            return
        manager.shutdown_kernel(now=how == "shutdown now")
        assert not manager.is_alive()


def prints_no_more(manager: Any) -> bool:
    """Return whether the sandbox's memory has not grown for a second: the kernel prints no more."""
    sandbox = sandbox_of(manager)
    before = sandbox.memory_used()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if sandbox.memory_used() != before:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def stalling_client() -> Iterator[tuple[KernelManager, Any]]:
    """A kernel whose only client holds hardly any messages, so that it stalls at once."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.setsockopt(zmq.RCVHWM, 2)
    manager = KernelManager(kernel_name=SOONEST)
    manager.start_kernel()
    client = manager.client(session=Session(key=manager.session.key), context=context)
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield manager, client
    finally:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
        context.destroy(linger=0)


def read_resident_bytes() -> int:
    """Return the resident bytes of this process: client, server and bridge in one."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_step_of_a_start_that_does_not_come_is_given_up() -> None:
    """A kernel can stop a process that starts beside it. PID 1 must not wait for ever."""
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match=r"did not start within 0\.01 s"):
            process._read_within(read, 1, 0.01)
        os.write(write, b".")
        assert process._read_within(read, 1, None) == b"."
    finally:
        os.close(read)
        os.close(write)
