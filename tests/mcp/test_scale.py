"""Many sessions in one server: what each takes, and that a thousand of them leave nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mcp import ClientSession

from gvisor_kernel.runtimes.state.listed import Listed, find_all

from .. import leaks
from ..jupyter.helpers import execute, running_kernel
from ..patience import scale_seconds
from ..sweeps import needs_all
from ..world import World
from .servers import HttpServer, call, fail, http_server, http_session

MIB = 1024 * 1024
SESSIONS = int(os.environ.get("GK_TEST_SESSIONS", "1000"))
"""Of the soak."""
FIRST = 60
"""Sessions before the soak, after which a server has what it has only once."""
AT_ONCE = 3
"""Clients of the soak at any time."""
EACH = 10
"""Sessions of one client of the soak, before it leaves and another one comes."""
MAX_GROWTH = 64 * MIB
"""By how much the soak may let a server grow: allocators keep freed memory."""


@dataclass(frozen=True)
class Footprint:
    """What a server has: its descriptors and threads, and bytes of its own memory."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, server: HttpServer) -> Footprint:
        process = psutil.Process(server.process.pid)
        return cls(process.num_fds(), process.num_threads(), process.memory_full_info().uss)


def used_sandboxes() -> list[Listed]:
    """Return the sandboxes of this run, but for one that is ready for the next start."""
    return [sandbox for sandbox in find_all() if sandbox.state != "spare"]


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Wait, within a limit, for what happens without an event that reaches this process."""
    deadline = time.monotonic() + scale_seconds(30)
    while not (found := is_so()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


async def ends_it(session: ClientSession, name: str) -> None:
    await call(session, "stop_session", session=name)


async def ends_it_in_a_run(session: ClientSession, name: str) -> None:
    code = {"code": "print('begun', flush=True)\nwhile True: pass", "session": name}
    begun = asyncio.Event()

    async def note(progress: float, total: float | None, message: str | None) -> None:
        begun.set()

    running = asyncio.ensure_future(
        session.call_tool("sandbox_run_code", code, progress_callback=note)
    )
    await begun.wait()
    await call(session, "stop_session", session=name)
    assert (await running).is_error


async def ends_a_dead_one(session: ClientSession, name: str) -> None:
    await fail(session, "run_code", code="import os; os._exit(3)", session=name)
    await call(session, "stop_session", session=name)


async def restarts_and_ends_it(session: ClientSession, name: str) -> None:
    await call(session, "restart_session", session=name)
    await call(session, "stop_session", session=name)


async def leaves_it(session: ClientSession, name: str) -> None:
    """The server ends it when the client has left."""


ENDS = (*[ends_it] * 5, ends_it_in_a_run, ends_a_dead_one, leaves_it, restarts_and_ends_it)


async def use_sessions(server: HttpServer, numbers: Iterator[int]) -> None:
    """Clients that come one after the other, and start and end sessions of those numbers."""
    while mine := list(itertools.islice(numbers, EACH)):
        async with http_session(server) as session:
            for number in mine:
                name = f"s{number}"
                await call(session, "start_session", session=name)
                run = await call(session, "run_code", code=f"{number} + 1", session=name)
                assert run["result"] == str(number + 1)
                await ENDS[number % len(ENDS)](session, name)


async def soak(server: HttpServer, count: int) -> None:
    numbers = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(use_sessions(server, numbers))


@needs_all
@pytest.mark.timeout(1800)
def test_a_thousand_sessions_leave_nothing(world: World) -> None:
    things = leaks.find_things(world, leaks.SANDBOX)
    with http_server("--memory", "256M") as server:
        asyncio.run(soak(server, FIRST))
        assert wait_until(lambda: not used_sandboxes())
        before = Footprint.of(server)
        asyncio.run(soak(server, SESSIONS))
        assert wait_until(lambda: not used_sandboxes())
        assert len(find_all()) <= 1
        assert wait_until(lambda: Footprint.of(server).descriptors <= before.descriptors)
        after = Footprint.of(server)
        print(f"{SESSIONS} sessions: {before}, then {after}")
        assert after.threads <= before.threads
        assert after.memory - before.memory < MAX_GROWTH
    left = leaks.find_leftovers(things, lambda: leaks.find_things(world, leaks.SANDBOX))
    assert not left


@needs_all
@pytest.mark.timeout(600)
def test_fifty_sessions_take_what_idle_kernels_take(
    world: World, shared_snapshot: str, tmp_path: Path
) -> None:
    with running_kernel("gvisor-python-restored") as (_, client):
        execute(client, "1 + 1")
        (alone,) = [sandbox.memory_used for sandbox in used_sandboxes()]
    assert alone is not None

    async def scenario(server: HttpServer) -> tuple[int, list[int]]:
        async with http_session(server) as session:
            turns = asyncio.Semaphore(4)

            async def start(number: int) -> None:
                async with turns:
                    await call(session, "start_session", session=f"s{number}")
                    code = f"x = {number}; x"
                    run = await call(session, "run_code", code=code, session=f"s{number}")
                    assert run["result"] == str(number)

            await start(0)
            before = Footprint.of(server).memory
            await asyncio.gather(*map(start, range(1, 50)))
            assert "which is the limit" in await fail(session, "start_session", session="s50")
            for number in range(50):
                run = await call(session, "run_code", code="x", session=f"s{number}")
                assert run["result"] == str(number)
            each = (Footprint.of(server).memory - before) // 49
            found = [sandbox.memory_used for sandbox in used_sandboxes()]
            return each, [size for size in found if size is not None]

    options = ("--outputs", str(tmp_path), "--sessions", "50", "--set", "snapshot=auto")
    with http_server(*options) as server:
        each, sizes = asyncio.run(scenario(server))
    print(f"a kernel: {alone}; sessions: {min(sizes)} to {max(sizes)}; in the server: {each}")
    assert len(sizes) == 50
    assert max(sizes) < 1.25 * alone
    assert each < 2 * MIB
    assert not list(tmp_path.iterdir())
