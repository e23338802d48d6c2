"""The exit of a process that owns kernels, and of its forked child."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import leaks
from ..jupyter.helpers import SANDBOXED, execute, running_kernel
from ..sweeps import needs_all
from ..world import PROJECT, World

pytestmark = pytest.mark.skipif(not SANDBOXED, reason="the local kernel has no bridge")


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    before = leaks.find_things(world, leaks.SANDBOX)
    yield
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))
    assert not left, "left behind:\n" + "\n".join(sorted(left))


def run_program(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


def test_forked_child_does_not_touch_parents_kernels() -> None:
    """Calls to the inherited provisioner have no effect in the child, and do not hang."""
    with running_kernel() as (manager, client):
        assert execute(client, "kept = 1").status == "ok"
        pid = os.fork()
        if pid == 0:
            try:
                provisioner = manager.provisioner
                for call in (provisioner.kill(), provisioner.wait(), provisioner.cleanup()):
                    try:
                        call.send(None)
                    except StopIteration:
                        continue
                    os._exit(1)
                provisioner._kernel._bridge.end()
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert execute(client, "kept").result == "1"


def test_exit_without_shutdown_ends_kernels() -> None:
    done = run_program("""
from jupyter_client import KernelManager
manager = KernelManager(kernel_name="gvisor-python-restored")
manager.start_kernel()
""")
    assert done.returncode == 0, done.stderr


def test_shutdown_after_bridge_ended_is_harmless() -> None:
    """An exit handler of before the first kernel, such as nbclient's, runs after the bridge's."""
    done = run_program("""
import atexit
from jupyter_client import KernelManager
manager = KernelManager(kernel_name="gvisor-python-restored")
def end():
    manager.shutdown_kernel(now=True)
    print("ended")
atexit.register(end)
manager.start_kernel()
""")
    assert done.stdout == "ended\n", done.stderr


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.3, marks=needs_all), 0.8])
def test_cancelled_start_leaves_nothing(delay: float) -> None:
    """The process exits right after the cancellation."""
    done = run_program(f"""
import asyncio
from jupyter_client import AsyncKernelManager
async def main():
    manager = AsyncKernelManager(kernel_name="gvisor-python")
    starting = asyncio.ensure_future(manager.start_kernel())
    await asyncio.wait({{starting}}, timeout={delay})
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await manager.shutdown_kernel(now=True)
asyncio.run(main())
print("ended")
""")
    assert done.stdout.endswith("ended\n"), done.stderr


def test_concurrent_shutdowns_are_harmless() -> None:
    done = run_program("""
import asyncio
from jupyter_client import AsyncKernelManager
async def main():
    manager = AsyncKernelManager(kernel_name="gvisor-python-restored")
    await manager.start_kernel()
    provisioner = manager.provisioner
    await asyncio.gather(
        *(provisioner.kill() for _ in range(2)), *(provisioner.cleanup() for _ in range(3))
    )
    assert await provisioner.poll() is not None
    await manager.shutdown_kernel(now=True)
asyncio.run(main())
print("ended")
""")
    assert done.stdout == "ended\n", done.stderr
