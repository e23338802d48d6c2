"""Secrets and names that take for ever, and requests that wait: what they keep from others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gvisor_kernel.egress.addresses import NAMES_AT_ONCE, NameResolver, make_name_threads
from gvisor_kernel.egress.budgets import DailyBudgets
from gvisor_kernel.egress.gate import Services, Shared
from gvisor_kernel.egress.kinds import Limits, UrlRoute
from gvisor_kernel.egress.secret_reader import SecretReader
from gvisor_kernel.errors import SecretError

from ..patience import scale_seconds


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """What blocked threads wait for."""
    go = threading.Event()
    yield go
    go.set()


def test_a_kernels_slow_names_leave_threads_for_others(go: threading.Event) -> None:
    asked = []
    begun = threading.Semaphore(0)

    def find(host: str, port: int) -> list[str]:
        asked.append(host)
        if host.startswith("slow"):
            begun.release()
            go.wait()
        return ["192.0.2.1"]

    async def check() -> None:
        with make_name_threads() as threads:
            hostile, other = NameResolver(threads, find), NameResolver(threads, find)
            waiting = [asyncio.create_task(hostile.resolve(f"slow{i}", 80)) for i in range(100)]
            for _ in range(NAMES_AT_ONCE):
                await asyncio.to_thread(begun.acquire)
            assert await other.resolve("quick", 80) == ["192.0.2.1"]
            assert len([host for host in asked if host.startswith("slow")]) == NAMES_AT_ONCE
            for task in waiting:  # their requests have given up; their threads have not
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            last = asyncio.create_task(hostile.resolve("quick", 80))
            assert not (await asyncio.wait([last], timeout=0))[0]
            go.set()
            assert await last == ["192.0.2.1"]

    asyncio.run(check())


def test_a_secret_is_read_by_one_thread_however_many_wait(go: threading.Event) -> None:
    asked = []

    def read(reference: str, _: object) -> str:
        asked.append(reference)
        if "locked" in reference:
            go.wait()
        return "value"

    async def check() -> None:
        reader = SecretReader(read)
        waiting = [asyncio.create_task(reader.read("keyring:locked/x", {})) for _ in range(50)]
        assert await reader.read("file:/other", {}) == "value"
        waiting.pop().cancel()
        go.set()
        assert await asyncio.gather(*waiting) == ["value"] * 49
        assert await reader.read("keyring:locked/x", {}) == "value"
        assert sorted(asked) == ["file:/other", "keyring:locked/x"]

    asyncio.run(check())


def test_a_secret_that_is_not_read_in_time_is_given_up(go: threading.Event) -> None:
    reads = lambda *_: str(go.wait())  # noqa: E731 - short
    with pytest.raises(TimeoutError):
        asyncio.run(SecretReader(reads, 0.01).read("keyring:locked/x", {}))


def test_a_secret_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path.resolve() / "key"

    async def check() -> None:
        reader = SecretReader()
        with pytest.raises(SecretError):
            await reader.read(f"file:{path}", {})
        path.touch(0o600)
        path.write_text("value\n")
        assert await reader.read(f"file:{path}", {}) == "value"

    asyncio.run(check())


@pytest.mark.parametrize("daily", [None, 100])
def test_requests_that_come_together_wait_for_their_turn(
    daily: int | None, tmp_path: Path, go: threading.Event
) -> None:
    """Also if the threads that charge a daily budget are late."""
    limits = Limits(at_once=2, daily_requests=daily)
    route = UrlRoute("api", "https://example.org", limits=limits)

    async def check() -> None:
        shared = Shared(DailyBudgets(tmp_path / "budgets"))
        requests = Services(None, {}, shared, lambda _: None, lambda _: None)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, go.wait)
        waiting = {asyncio.create_task(requests.admit(route)) for _ in range(6)}
        await asyncio.wait(waiting, timeout=0)
        go.set()
        await blocked
        async with asyncio.timeout(scale_seconds(10)):
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for request in done:
                    await requests.dismiss(await request)
        shared.name_threads.shutdown()

    asyncio.run(check())


def test_a_variable_is_the_kernels_own() -> None:
    async def check() -> None:
        reader = SecretReader()
        assert await reader.read("env:KEY", {"KEY": "first"}) == "first"
        assert await reader.read("env:KEY", {"KEY": "second"}) == "second"
        with pytest.raises(SecretError):
            await reader.read("env:KEY", {})

    asyncio.run(check())
