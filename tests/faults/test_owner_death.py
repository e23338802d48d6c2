"""After any process is killed nothing is left, and other kernels are not affected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.host.processes import is_alive
from gvisor_kernel.runtimes.state import records

from .. import leaks
from ..jupyter.helpers import execute, running_kernel, wait_for, wait_until
from ..world import PROJECT, World

PARTS = ("sentry", "gofer")


@contextmanager
def holder(
    count: int, folder: Path, then: str = "busy"
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run another process with ``count`` kernels, busy or idle; kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.holder", str(count), str(folder), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def record_of(identity: str) -> Any:
    """Wait until a sandbox's record names all its processes; return the record."""

    def find() -> Any:
        for _, record in records.find_sandboxes():
            if record.identity == identity and set(record.processes) >= set(PARTS):
                return record
        return None

    return wait_until(find, f"a whole record of {identity}")


@pytest.fixture(scope="module")
def survivor() -> Iterator[Any]:
    """A kernel of this process that must not be affected."""
    with running_kernel() as (_, client):
        assert execute(client, "survived = 1").status == "ok"
        yield client
        answer = execute(client, "survived += 1; survived")
        assert answer.result == "2"


def test_killed_server_leaves_nothing(survivor: Any, world: World, tmp_path: Path) -> None:
    """SIGKILL to the process that owns the kernels and the bridge."""
    before = leaks.find_things(world)
    with holder(2, tmp_path) as (process, identities):
        records = [record_of(identity) for identity in identities]
        assert all(is_alive(p) for record in records for p in record.processes.values())
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
        assert not {thing for thing in left if not thing.startswith("file ")}
        with running_kernel():
            pass  # the next start removes files
        assert not leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert execute(survivor, "survived").result == "1"


@pytest.mark.parametrize("part", PARTS)
def test_killed_sandbox_process_ends_the_kernel(survivor: Any, world: World, part: str) -> None:
    """SIGKILL to sentry or gofer: the kernel has died, and Jupyter is told."""
    with running_kernel() as (manager, client):
        sandbox = manager.provisioner._kernel.sandbox
        record = record_of(sandbox.identity)
        busy = client.execute("import time; time.sleep(1000)")
        wait_for(client, lambda m: m["msg_type"] == "execute_input", "the cell to run")
        os.kill(record.processes[part].pid, signal.SIGKILL)
        wait_until(lambda: not manager.is_alive(), f"the death of the kernel after its {part}")
        wait_until(
            lambda: not any(is_alive(p) for p in record.processes.values()),
            "the end of every process of the sandbox",
            leaks.GRACE_SECONDS,
        )
        died = _error_of(client, busy)
        assert died["ename"] == "KernelDied"
        assert "sandbox" in died["evalue"]
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert execute(client, "6 * 7").result == "42"
    assert execute(survivor, "survived").result == "1"


def test_killed_kernel_keeps_its_sandbox(survivor: Any, world: World) -> None:
    """When the kernel is killed its sandbox stays for a restart, with its files."""
    with running_kernel() as (manager, client):
        execute(client, "open('kept', 'w').write('x')")
        identity = manager.provisioner._kernel.sandbox.identity
        dying = client.execute("import os; os.kill(os.getpid(), 9)")
        wait_until(lambda: not manager.is_alive(), "the death of the kernel")
        assert "SIGKILL" in _error_of(client, dying)["evalue"]
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert manager.provisioner._kernel.sandbox.identity == identity
        assert execute(client, "import os; os.path.exists('kept')").result == "True"
    assert execute(survivor, "survived").result == "1"


def _error_of(client: Any, msg_id: str) -> dict[str, Any]:
    """Return the content of the error output of a cell whose kernel has died."""
    message = wait_for(
        client,
        lambda m: m["msg_type"] == "error" and m["parent_header"].get("msg_id") == msg_id,
        "an error output that says why the kernel died",
    )
    content: dict[str, Any] = message["content"]
    return content
