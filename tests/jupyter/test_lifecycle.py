"""A kernel's life under jupyter_client: start, restart, crash, shutdown, many at once."""

from __future__ import annotations

import asyncio
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client import (
    AsyncKernelManager,
    AsyncMultiKernelManager,
    KernelManager,
    MultiKernelManager,
)
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_core.utils import ensure_event_loop
from traitlets.config import Config

from gvisor_kernel.errors import LaunchError

from .. import leaks
from ..sweeps import ALL, needs_all
from ..world import World
from .helpers import (
    SANDBOXED,
    SECONDS,
    SOONEST,
    connected,
    execute,
    finish,
    running_kernel,
    wait_for_text,
    wait_until,
)

FORK = "import subprocess; child = subprocess.Popen(['sleep', '600'])"


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(world: World, folder: Path) -> Iterator[None]:
    before = leaks.find_things(world, leaks.SANDBOX)
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))
    assert not left, "left behind:\n" + "\n".join(sorted(left))


def test_shutdown_runs_atexit_handlers(folder: Path) -> None:
    """The kernel's atexit handlers run, and its connection file is removed."""
    with running_kernel() as (manager, client):
        connection_file = Path(manager.connection_file)
        assert connection_file.exists()
        path = "/mnt/user-data/outputs" if SANDBOXED else "outputs"
        (folder / "outputs").mkdir(exist_ok=True)
        code = f"import atexit; atexit.register(lambda: open('{path}/bye', 'w').close())"
        assert execute(client, code).status == "ok"
    assert not manager.is_alive()
    assert not connection_file.exists()
    assert (folder / "outputs" / "bye").exists()


def test_shutdown_now_while_busy_with_children() -> None:
    with running_kernel() as (manager, client):
        execute(client, FORK)
        client.execute("print('busy')\nwhile True: pass")
        wait_for_text(client, "busy")
        manager.shutdown_kernel(now=True)
        assert not manager.is_alive()


def be_quick(manager: KernelManager) -> None:
    """Wait a second, not five, until a kernel that ignores a shutdown is killed."""
    manager.shutdown_wait_time = 1.0


def test_shutdown_kills_kernel_that_ignores_it() -> None:
    """It ignores the message, SIGINT and SIGTERM, but not SIGKILL."""
    code = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print('deaf', flush=True)
while True: pass
"""

    with running_kernel(prepare=be_quick) as (manager, client):
        client.execute(code)
        wait_for_text(client, "deaf")
    assert not manager.is_alive()


def test_calls_to_dead_kernel_do_not_raise() -> None:
    with running_kernel() as (manager, client):
        client.execute("import os; os._exit(3)")
        wait_until(lambda: not manager.is_alive(), "the end of the kernel", 10)
        manager.interrupt_kernel()
        manager.signal_kernel(signal.SIGTERM)
        manager.signal_kernel(signal.SIGKILL)
        manager.request_shutdown()
        manager.finish_shutdown()
        for _ in range(2):
            manager.cleanup_resources()
        assert not manager.is_alive()


def test_shutdown_before_kernel_answers() -> None:
    manager = KernelManager(kernel_name=SOONEST)
    manager.start_kernel()
    manager.shutdown_kernel(now=True)
    assert not manager.is_alive()


def test_restart_keeps_connection_and_files() -> None:
    """The namespace is new; the client's connection and files in the sandbox stay."""
    with running_kernel() as (manager, client):
        execute(client, "x = 1; open('/tmp/kept-' + str(__import__('os').getuid()), 'w').close()")
        session, connection = manager.session.key, manager.get_connection_info()
        manager.restart_kernel()
        client.wait_for_ready(timeout=SECONDS)
        assert execute(client, "x").error == "NameError"
        assert (manager.session.key, manager.get_connection_info()) == (session, connection)
        code = "import os; os.remove('/tmp/kept-' + str(os.getuid()))"
        assert execute(client, code).status == "ok"


def test_second_start_replaces_kernel() -> None:
    """jupyter_client allows a second start, and nbclient's tests do it."""
    if not SANDBOXED:
        pytest.skip("the local provisioner forgets the first kernel, and leaves it running")
    with running_kernel() as (manager, client):
        execute(client, "x = 1")
        manager.start_kernel()
        with connected(manager) as other:
            assert execute(other, "x").error == "NameError"


@pytest.mark.parametrize(
    "now", [pytest.param(False, marks=needs_all, id="polite"), pytest.param(True, id="now")]
)
def test_restart_while_busy(now: bool) -> None:
    with running_kernel(prepare=be_quick) as (manager, client):
        execute(client, FORK)
        client.execute("print('busy')\nwhile True: pass")
        wait_for_text(client, "busy")
        manager.restart_kernel(now=now)
        client.wait_for_ready(timeout=SECONDS)
        assert execute(client, "40 + 2").result == "42"


def test_failed_restart_can_be_retried(tmp_path: Path) -> None:
    """The notebook's folder is missing for a moment; the manager keeps the old addresses."""
    folder, away = tmp_path / "notebook", tmp_path / "away"
    folder.mkdir()
    settings = {"snapshot": "off", "restart": "sandbox"}
    with running_kernel(settings=settings, start={"cwd": str(folder)}) as (manager, client):
        folder.rename(away)
        with pytest.raises(LaunchError, match="Could not open"):
            manager.restart_kernel(now=True)
        away.rename(folder)
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=SECONDS)
        assert execute(client, "6 * 7").result == "42"


def test_requests_during_restart_are_answered() -> None:
    """Jupyter's server sends one kernel_info_request and then waits."""
    with running_kernel() as (manager, client):
        manager.restart_kernel()
        assert finish(client, client.kernel_info()).status == "ok"


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.timeout(300)
def test_many_restarts_leak_nothing(world: World) -> None:
    def size() -> dict[str, int]:
        return {
            "processes": len(leaks.processes(world, leaks.SANDBOX)),
            "fds": len(list(Path("/proc/self/fd").iterdir())),
            "threads": threading.active_count(),
            "mounts": len(leaks.mounts(world)),
            "files": len(leaks.files(world)),
        }

    with running_kernel() as (manager, client):
        for i in range(8):
            manager.restart_kernel(now=i % 2 == 1)
            client.wait_for_ready(timeout=SECONDS)
            if i == 1:
                before = size()
        assert execute(client, "40 + 2").result == "42"
        # A socket or two may be connecting now; a leak would be ten or more.
        grown = {name: count - before[name] for name, count in size().items()}
        assert all(count < 5 for count in grown.values()), grown
        assert grown["processes"] <= 0, grown


@pytest.mark.parametrize(
    "how", [pytest.param("os._exit(1)", marks=needs_all), "os.kill(os.getpid(), 9)"]
)
def test_crashed_kernel_is_restarted(how: str) -> None:
    """jupyter_client's restarter starts a new kernel, which the same client can use."""

    async def crash() -> None:
        # The second option: a crash soon after a start would count as a conflict about ports.
        restarter = {"time_to_dead": 0.2, "random_ports_until_alive": False}
        config = Config({"KernelRestarter": restarter})
        manager = AsyncIOLoopKernelManager(kernel_name=SOONEST, config=config, autorestart=True)
        restarted = asyncio.Event()
        await manager.start_kernel()
        manager.add_restart_callback(restarted.set)
        client = await ready(manager)
        try:
            client.execute(f"import os; {how}")
            await asyncio.wait_for(restarted.wait(), SECONDS)
            await client.wait_for_ready(timeout=SECONDS)
            reply = await client.execute("1", reply=True, timeout=SECONDS)
            assert reply["content"]["status"] == "ok"
            assert reply["content"]["execution_count"] == 1
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()

    asyncio.run(crash())


async def ready(manager: AsyncKernelManager) -> AsyncKernelClient:
    client: AsyncKernelClient = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=SECONDS)
    return client


async def double(manager: AsyncKernelManager, number: int) -> int:
    """Have the kernel compute, and read the result from iopub."""
    client = await ready(manager)
    try:
        msg_id = client.execute(f"{number} * 2")
        while True:
            message = await client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            if message["msg_type"] == "execute_result":
                return int(message["content"]["data"]["text/plain"])
    finally:
        client.stop_channels()


@pytest.mark.slow
@pytest.mark.once
def test_many_kernels_run_at_once() -> None:
    """Four; with ``--all`` ten."""
    count = 10 if ALL else 4

    async def run() -> list[int]:
        kernels = AsyncMultiKernelManager(default_kernel_name=SOONEST)

        async def one(number: int) -> int:
            kernel_id = await kernels.start_kernel(kernel_id=str(uuid.uuid4()))
            return await double(kernels.get_kernel(kernel_id), number)

        try:
            return await asyncio.gather(*(one(i) for i in range(count)))
        finally:
            await kernels.shutdown_all(now=True)

    assert asyncio.run(run()) == [2 * i for i in range(count)]


def test_sync_multi_kernel_manager_works() -> None:
    kernels = MultiKernelManager(default_kernel_name=SOONEST)
    try:
        ids = [kernels.start_kernel() for _ in range(2)]
        for number, kernel_id in enumerate(ids):
            with connected(kernels.get_kernel(kernel_id)) as client:
                assert execute(client, f"print({number})").text == f"{number}\n"
        kernels.shutdown_kernel(ids[0])
        with connected(kernels.get_kernel(ids[1])) as client:
            assert execute(client, "40 + 2").result == "42"
    finally:
        kernels.shutdown_all(now=True)


def test_managers_work_on_several_loops_and_threads() -> None:
    """A kernel outlives the loop that started it, and each thread may have its own."""

    async def start() -> AsyncKernelManager:
        manager = AsyncKernelManager(kernel_name=SOONEST)
        await manager.start_kernel()
        return manager

    async def use_and_stop(manager: AsyncKernelManager) -> int:
        number = await double(manager, 21)
        await manager.shutdown_kernel()
        return number

    manager = asyncio.run(start())
    results: list[int] = []

    def in_a_thread() -> None:
        try:
            with running_kernel() as (_, client):
                results.append(int(execute(client, "1 + 1").result))
        finally:
            ensure_event_loop().close()  # jupyter_core creates one per thread

    threads = [threading.Thread(target=in_a_thread) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert asyncio.run(use_and_stop(manager)) == 42
    finally:
        for thread in threads:
            thread.join()
    assert results == [2, 2]
