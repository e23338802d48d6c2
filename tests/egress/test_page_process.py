"""The process that reads pages: what it keeps from other kernels, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress.package_cache import PackageCache
from gvisor_kernel.egress.package_catalog import Bounds
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import FOOTER_DIGITS
from gvisor_kernel.egress.packages import Packages
from gvisor_kernel.egress.page_reader import NICE
from gvisor_kernel.egress.process import EgressWorker
from gvisor_kernel.host.processes import read_children

from ..patience import scale_seconds
from .conftest import SECRET, Kernel
from .indexes import JSON, FakeIndex, Served, ask, route, run_route
from .peer import status_of
from .test_packages import PAGE
from .test_process import is_gone
from .upstream import Fake


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(scale_seconds(20)):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def index(index: FakeIndex) -> FakeIndex:
    """An index with one project."""
    index.add_project("demo")
    return index


LARGE = "/packages/npm/large"


def make_numbers(count: int) -> Served:
    """Return a document of npm that takes 8 times as much memory when it is read, and long."""
    content = b'{"versions":{},"x":[' + b"0.5," * count + b"0]}"
    return Served(content, "application/json")


async def stop_reader() -> int:
    """Stop the process that reads a page, as soon as there is one; return its pid."""
    children: list[int] = []

    def look() -> bool:
        children[:] = find_readers(os.getpid())
        return bool(children)

    await until(look)
    os.kill(children[0], signal.SIGSTOP)
    return children[0]


def find_readers(parent: int) -> list[int]:
    def is_reader(pid: int) -> bool:
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            # Its priority is lower once it is bound to its parent.
            least = min(19, os.getpriority(os.PRIO_PROCESS, parent) + NICE)
            return b"page_reader" in command and os.getpriority(os.PRIO_PROCESS, pid) >= least
        return False

    return [pid for pid in read_children(parent) if is_reader(pid)]


def test_a_kernels_page_holds_up_its_own_and_no_others(tmp_path: Path, index: FakeIndex) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index(), npm=Index(f"{index.url}/")) as packages:
            first = asyncio.create_task(ask(packages, LARGE))
            pid = await stop_reader()
            seen = len(index.seen)
            second = asyncio.create_task(ask(packages, PAGE, JSON))
            await until(lambda: len(index.seen) > seen)
            for kernel in (2, 3):
                other = PAGE.replace("demo", f"demo{kernel}")
                assert (await ask(packages, other, JSON, kernel=kernel)).status == 200
            assert not first.done()
            assert not second.done()
            assert len(find_readers(os.getpid())) == 2
            assert pid in find_readers(os.getpid())
            os.kill(pid, signal.SIGCONT)
            assert [(await task).status for task in (first, second)] == [200, 200]

    index.served["/large"] = make_numbers(500_000)
    for name in ("demo2", "demo3"):
        index.add_project(name)
    asyncio.run(check())


def test_a_process_that_was_killed_fails_one_request(tmp_path: Path, index: FakeIndex) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", npm=Index(f"{index.url}/")) as packages:
            task = asyncio.create_task(ask(packages, LARGE))
            os.kill(await stop_reader(), signal.SIGKILL)
            answer = await task
            assert answer.status == 502
            assert "ended with status -9" in answer.reason
            assert (await ask(packages, LARGE)).status == 200

    index.served["/large"] = make_numbers(500_000)
    asyncio.run(check())


def test_a_process_that_hangs_is_killed(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index(), npm=Index(f"{index.url}/")) as packages:
            task = asyncio.create_task(ask(packages, LARGE))
            await stop_reader()
            task.cancel()  # also when nobody waits for it any more
            await asyncio.wait([task])
            assert not find_readers(os.getpid())
            assert (await ask(packages, PAGE, JSON)).status == 200
            assert not list((tmp_path / "c" / "new").iterdir())

    index.served["/large"] = make_numbers(500_000)
    asyncio.run(check())


def test_a_page_that_takes_too_long_fails(tmp_path: Path, index: FakeIndex) -> None:
    async def check(packages: Packages) -> None:
        answer = await ask(packages, PAGE, JSON)
        assert answer.status == 502
        assert "takes longer than" in answer.reason
        assert not find_readers(os.getpid())

    run_route(check, tmp_path, index.index(), bounds=Bounds(seconds=0.0))


def test_a_page_is_read_once_until_it_changes(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            page = (await ask(packages, PAGE, JSON)).data
            monkeypatch.setattr(sys, "executable", "/nonexistent")  # no process can be started
            await packages._catalog.close()
            assert (await ask(packages, PAGE, JSON)).data == page
            assert (await ask(packages, PAGE, {b"accept": b"text/html"})).status == 200
            index.add_project("demo", b"other")
            assert (await ask(packages, PAGE, JSON)).status == 502

    asyncio.run(check())


def test_a_page_that_takes_too_much_memory_fails_alone(tmp_path: Path, index: FakeIndex) -> None:
    async def check(packages: Packages) -> None:
        for _ in range(2):
            answer = await ask(packages, LARGE)
            assert answer.status == 502
            assert "more than 32 MiB of memory" in answer.reason
            assert (await ask(packages, PAGE, JSON)).status == 200

    index.served["/large"] = make_numbers(1_000_000)
    npm, bounds = Index(f"{index.url}/"), Bounds(memory=32 * 1024 * 1024)
    run_route(check, tmp_path, index.index(), npm=npm, bounds=bounds)


@pytest.mark.slow
def test_a_page_that_takes_too_much_of_the_cpu_fails_alone(
    tmp_path: Path, index: FakeIndex
) -> None:
    async def check(packages: Packages) -> None:
        for path in (LARGE, PAGE.replace("demo", "slow")):
            answer = await ask(packages, path)
            assert answer.status == 502
            assert "of the CPU" in answer.reason
            assert (await ask(packages, PAGE, JSON)).status == 200

    # Python's parser looks for the end of a tag from each beginning.
    index.served["/simple/slow/"] = Served(b"<a " * 20_000, "text/html")
    content = b'{"versions":{},"x":[' + b"[]," * 3_000_000 + b"0]}"
    index.served["/large"] = Served(content, "application/json")
    npm = Index(f"{index.url}/")
    run_route(check, tmp_path, index.index(), npm=npm, bounds=Bounds(cpu=0))


# -- in the worker ---------------------------------------------------------------------------------


@pytest.fixture
def worker(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EgressWorker]:
    """A worker whose index has a credential."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/".replace("//", f"//u:{SECRET}@"))
    monkeypatch.setenv("npm_config_registry", f"{index.url}/".replace("//", f"//u:{SECRET}@", 1))
    index.served["/large"] = make_numbers(500_000)
    worker = EgressWorker()
    yield worker
    worker.end()


def make_routes(upstream: Fake) -> dict[str, Any]:
    plain = upstream.route()
    return {"plain": plain, "packages": {}}


def start_page_process(worker: EgressWorker, kernel: Kernel) -> tuple[int, Any]:
    """Let the worker start a process for a page, and stop it; return the pid and the stream."""
    assert worker.pid is not None
    stream = kernel.open(b"GET %s HTTP/1.0\r\nHost: 127.0.0.1:3128\r\n\r\n" % LARGE.encode())
    parent = worker.pid
    kernel.wait_for(lambda: bool(find_readers(parent)), stream)
    (pid,) = find_readers(parent)
    os.kill(pid, signal.SIGSTOP)
    return pid, stream


def test_requests_of_another_kernel_pass_while_a_page_is_read(
    worker: EgressWorker, upstream: Fake
) -> None:
    one, other = (Kernel(worker, make_routes(upstream), None) for _ in range(2))
    pid, stream = start_page_process(worker, one)
    assert status_of(other.get("/plain/x")) == 200
    assert status_of(one.get("/plain/x")) == 200
    assert not stream.closed
    os.kill(pid, signal.SIGCONT)
    assert status_of(one.wait(stream)) == 200
    for kernel in (one, other):
        kernel.close()


@pytest.mark.parametrize("way", ["killed", "ended"])
def test_the_page_process_ends_with_the_worker(
    worker: EgressWorker, upstream: Fake, way: str
) -> None:
    """Also when it is stopped, and could take no note of anything."""
    kernel = Kernel(worker, make_routes(upstream), None)
    pid, _ = start_page_process(worker, kernel)
    assert worker.pid is not None
    if way == "killed":
        os.kill(worker.pid, signal.SIGKILL)
    else:
        worker.end()
    assert is_gone(pid)
    kernel.close()


def test_the_page_process_gets_no_credential(worker: EgressWorker, upstream: Fake) -> None:
    kernel = Kernel(worker, make_routes(upstream), None)
    pid, _ = start_page_process(worker, kernel)
    folder = Path(f"/proc/{pid}")
    assert SECRET.encode() not in (folder / "cmdline").read_bytes()
    if os.geteuid() == 0:
        assert SECRET.encode() not in (folder / "environ").read_bytes()
    else:
        with pytest.raises(PermissionError):
            (folder / "environ").read_bytes()
    kernel.close()


# -- what is kept --------------------------------------------------------------------------------


def test_a_damaged_page_of_the_cache_is_not_used(tmp_path: Path) -> None:
    cache = PackageCache.open(tmp_path / "c")
    page = cache.begin()
    page.write(b"body")
    kept = page.keep_page("0123", {"size": 4, "etag": "x"})
    page.close()
    assert cache.open_page("0123") == kept
    path = cache.place("pages", "0123")
    whole = path.read_bytes()
    for damaged in (b"", b"x", whole[:-1], whole[1:], whole[:-FOOTER_DIGITS], b"9" * 20):
        path.write_bytes(damaged)
        assert cache.open_page("0123") is None, damaged
