"""What programs leave behind, and several sandboxes at once."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gvisor_kernel import AsyncSandbox, Sandbox, SandboxPool
from gvisor_kernel.api import mapping
from gvisor_kernel.errors import GvisorKernelError, SandboxError

from .. import leaks
from ..patience import scale_seconds
from ..sweeps import needs_all
from ..world import PROJECT, World


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        pytest.param("leave_open", "2\n", marks=needs_all),  # a pool has open ones, too
        ("die", "2\n"),
        ("fork", "SandboxError\n'child'\n'parent'\n"),
        ("fork_while_starting", "'child'\n'child'\n'parent'\n"),
        pytest.param("use_loops", "2\n", marks=needs_all),
        ("leave_pool", "2\n"),
    ],
)
def test_a_program_that_ends_leaves_nothing(world: World, way: str, expected: str) -> None:
    before = leaks.find_things(world)
    done = subprocess.run(
        [sys.executable, "-m", "tests.api.owner", way],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=scale_seconds(90),
        check=False,
    )
    assert done.stdout == expected, done.stderr
    assert done.returncode == (-9 if way == "die" else 0), done.stderr
    left = leaks.find_leftovers(before, lambda: leaks.find_things(world))
    assert not left


@needs_all
@pytest.mark.timeout(600)
def test_fifty_sandboxes_leave_nothing_behind(world: World, shared_snapshot: str) -> None:
    def count() -> tuple[int, int]:
        gc.collect()  # sockets of zmq that nobody closed would be found here
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = leaks.find_things(world, leaks.SANDBOX)
    counts = []
    for number in range(50):
        with Sandbox() as sandbox:
            assert sandbox.run(f"{number}").text == f"{number}"
        counts.append(count())
    assert not leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))
    files, threads = zip(*counts, strict=True)
    assert min(files[25:]) <= max(files[:10]), files
    assert min(threads[25:]) <= max(threads[:10]), threads


def test_a_start_that_is_cancelled_leaves_nothing(world: World) -> None:
    async def check() -> None:
        starting = asyncio.ensure_future(AsyncSandbox.create(snapshot="off"))
        await asyncio.wait([starting], timeout=0.3)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    before = leaks.find_things(world, leaks.SANDBOX)
    asyncio.run(check())
    assert not leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))


def test_a_pool_gives_clean_sandboxes_that_have_started(shared_snapshot: str) -> None:
    found = []

    def use(pool: SandboxPool) -> None:
        with pool.take() as sandbox:
            found.append((sandbox.id, sandbox.run("'x' in globals()").text))
            sandbox.run("x = 1")

    with SandboxPool(size=2) as pool:
        threads = [threading.Thread(target=use, args=(pool,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = pool.take()
        assert len({name for name, _ in found}) == 3
        assert {text for _, text in found} == {"False"}
    assert not kept.alive
    with pytest.raises(SandboxError, match="closed"):
        pool.take()


def test_a_pool_whose_sandboxes_cannot_start_says_why() -> None:
    with pytest.raises(GvisorKernelError, match="no-such-image"):
        SandboxPool(size=2, image="no-such-image")


def test_map_calls_in_clean_sandboxes_and_in_order(shared_snapshot: str) -> None:
    source = """
    def check(value):
        import os
        assert not os.path.exists("mark")
        open("mark", "w").close()
        if value is None:
            return object()
        if isinstance(value, str):
            return len(value)
        print("seen", value)
        return {"half": 1 / value}
    """
    results = Sandbox.map(source, [2, 0, None, "x" * 3_000_000], workers=2)
    values = [result.value for result in results]
    assert values == [{"half": 0.5}, None, None, 3_000_000]
    assert [result.error and result.error.name for result in results] == [
        None,
        "ZeroDivisionError",
        "TypeError",
        None,
    ]
    assert results[0].execution.stdout == "seen 2\n"


def test_map_refuses_what_it_cannot_send() -> None:
    for function, inputs, message in (
        (len, [1], "no source"),
        ("x = 1", [1], "no function"),
        ("def f(:", [1], "not Python"),
        ("def f(x): return x", [{1}], "not JSON"),
        ("def f(x): return x", [float("nan")], "not JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            asyncio.run(mapping.run_map(function, inputs))  # type: ignore[arg-type]
