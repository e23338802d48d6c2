"""Calls that are cancelled at any moment: the sandbox stays as it was, or is ended."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gvisor_kernel import AsyncSandbox, AsyncSandboxPool, Sandbox, SandboxError, SettingError
from gvisor_kernel.api import pool as pools
from gvisor_kernel.bridge.service import MAX_CALLS

from .. import leaks
from ..world import World

LONG = "import time\nprint('go', flush=True)\ntime.sleep(600)"


@asynccontextmanager
async def started(**settings: object) -> AsyncIterator[AsyncSandbox]:
    async with AsyncSandbox(**settings) as sandbox:  # type: ignore[arg-type]
        await sandbox.run("x = 40")
        yield sandbox


async def cancel(task: asyncio.Task[object], times: int = 1) -> None:
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await task


def test_a_run_may_be_cancelled_at_its_beginning(shared_snapshot: str) -> None:
    """An interrupt between the request and its code ends ipykernel, or is lost."""

    async def check() -> None:
        async with started() as sandbox:
            for turns in (0, 1, 2, 5, 20, 100):
                task = asyncio.ensure_future(sandbox.run(LONG))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await cancel(task)
                assert (await sandbox.run("x + 2", timeout=60)).text == "42"
            execution = await sandbox.run(LONG, timeout=0.0001)
            assert execution.ended_by == "interrupt"
            assert (await sandbox.run("x + 2")).text == "42"

    asyncio.run(check())


def test_a_second_cancellation_leaves_the_turn_with_the_run(shared_snapshot: str) -> None:
    async def check() -> None:
        async with started() as sandbox:
            begun = asyncio.Event()
            task = asyncio.ensure_future(sandbox.run(LONG, on_stdout=lambda _: begun.set()))
            await begun.wait()
            await cancel(task, times=3)
            assert (await sandbox.run("x + 2", timeout=60)).text == "42"

    asyncio.run(check())


def test_a_listener_that_waits_ends_with_its_run(shared_snapshot: str) -> None:
    async def check() -> None:
        async with started() as sandbox:
            called = asyncio.Event()

            async def wait(_: str) -> None:
                called.set()
                await asyncio.Event().wait()

            for timeout in (None, 0.5):
                task = asyncio.ensure_future(
                    sandbox.run("print('go', flush=True)", on_stdout=wait, timeout=timeout)
                )
                if timeout is None:
                    await called.wait()
                    await cancel(task)
                else:
                    await task
                assert (await sandbox.run("x + 2", timeout=60)).text == "42"

    asyncio.run(check())


def test_calls_that_are_cancelled_leave_neither_a_place_nor_a_command(
    shared_snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with started() as sandbox:
            await sandbox.files.write("data", "x")
            for turns in (0, 1, 2, 5, 30):
                for times in (1, 3):
                    for ask in (
                        lambda: sandbox.shell("sleep 1000"),
                        lambda: sandbox.files.write("data", b"x" * 3_000_000),
                    ):
                        task = asyncio.ensure_future(ask())
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        await cancel(task, times)

            def fail(_: str) -> None:
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await sandbox.shell("echo x; exec sleep 1000", on_output=fail)
            async with asyncio.timeout(60):
                await asyncio.gather(*(sandbox.files.exists("data") for _ in range(MAX_CALLS)))
                while "sleep" in (await sandbox.shell("cat /proc/*/cmdline")).stdout.replace(
                    "cat /proc", ""
                ):
                    await asyncio.sleep(0.05)

    asyncio.run(check())


def test_a_close_that_is_cancelled_goes_on(world: World, shared_snapshot: str) -> None:
    async def check() -> None:
        sandbox = await AsyncSandbox.create()
        await cancel(asyncio.ensure_future(sandbox.close()))
        await sandbox.close()

    before = leaks.find_things(world, leaks.SANDBOX)
    asyncio.run(check())
    assert not leaks.find_leftovers(before, lambda: leaks.find_things(world, leaks.SANDBOX))


def test_a_restart_that_is_cancelled_is_whole(shared_snapshot: str) -> None:
    async def check() -> None:
        async with started() as sandbox:
            await cancel(asyncio.ensure_future(sandbox.restart()))
            assert (await sandbox.run("6 * 7", timeout=60)).text == "42"

    asyncio.run(check())


def test_a_sandbox_belongs_to_its_loop(shared_snapshot: str) -> None:
    async def check() -> None:
        async with started() as sandbox:
            errors = []

            def use() -> None:
                try:
                    asyncio.run(sandbox.run("1"))
                except SandboxError as error:
                    errors.append(error.fact)

            thread = threading.Thread(target=use)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert errors == ["This sandbox belongs to another event loop."]

    asyncio.run(check())


# -- pools -----------------------------------------------------------------------------------------


def test_a_take_that_is_cancelled_loses_no_sandbox(shared_snapshot: str) -> None:
    async def check() -> None:
        async with AsyncSandboxPool(size=1) as pool:
            for turns in range(4):
                task = asyncio.ensure_future(pool.take())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await (await task).close()
            async with asyncio.timeout(60), pool.take() as sandbox:
                assert (await sandbox.run("6 * 7")).text == "42"

    asyncio.run(check())


def test_a_take_that_waits_ends_with_its_pool(shared_snapshot: str) -> None:
    async def check() -> None:
        async with AsyncSandboxPool(size=1) as pool:
            taking = [asyncio.ensure_future(pool.take()) for _ in range(8)]
            await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
        for taken in await asyncio.gather(*taking, return_exceptions=True):
            if isinstance(taken, AsyncSandbox):
                assert taken.closed
            else:
                assert isinstance(taken, SandboxError)

    asyncio.run(check())


def test_a_pool_that_is_closed_while_it_refills_prints_nothing(
    shared_snapshot: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with AsyncSandboxPool(size=3) as pool:
            await pool.take()
            while not any(sandbox._provisioner for sandbox in starting[1:]):
                await asyncio.sleep(0)

    starting: list[AsyncSandbox] = []
    start = AsyncSandbox.start

    async def note(self: AsyncSandbox) -> AsyncSandbox:
        starting.append(self)
        return await start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncSandbox, "start", note)
        asyncio.run(check())
    starting.clear()
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_pool_goes_on_after_any_failed_start(
    shared_snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "RETRY_SECONDS", 0.05)
    create = AsyncSandbox.create
    failures = [OSError("Too many open files")] * 3

    async def fail(**arguments: object) -> AsyncSandbox:
        if failures:
            raise failures.pop()
        return await create(**arguments)

    async def check() -> None:
        async with AsyncSandboxPool(size=1) as pool:
            monkeypatch.setattr(AsyncSandbox, "create", fail)
            async with asyncio.timeout(60):
                await (await pool.take()).close()
                with pytest.raises(SandboxError, match="Too many open files"):
                    await pool.take()
                while failures:
                    await asyncio.sleep(0.01)
                taken = None
                while taken is None:
                    with suppress(SandboxError):
                        taken = await pool.take()
                    await asyncio.sleep(0.01)
                await taken.close()

    asyncio.run(check())


def test_map_raises_what_a_sandbox_raises() -> None:
    with pytest.raises(SettingError, match="memory"):
        Sandbox.map("def f(x): return x", [1, 2], memory="lots")
    with pytest.raises(SettingError, match="the function is Python"):
        Sandbox.map("def f(x): return x", [1, 2], language="bash")
