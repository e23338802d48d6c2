"""The process that reads pages: what it keeps from other kernels, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress import page_process, page_writer
from gvisor_kernel.egress.fair_turns import FairTurns
from gvisor_kernel.egress.package_cache import FOOTER_DIGITS, PackageCache
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import SIMPLE_JSON, Page, read_simple
from gvisor_kernel.egress.packages import Packages
from gvisor_kernel.egress.page_writer import MAX_PARSED, PageWriter
from gvisor_kernel.egress.process import EgressWorker
from gvisor_kernel.host.processes import read_children

from ..patience import scale_seconds
from .conftest import SECRET, Kernel
from .indexes import JSON, Answer, FakeIndex, Served, ask, route, serving
from .peer import status_of
from .test_packages import PAGE
from .test_process import is_gone
from .upstream import Fake


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(scale_seconds(20)):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def index() -> Iterator[FakeIndex]:
    """An index with one project."""
    with serving() as index:
        index.add_project("demo")
        yield index


@asynccontextmanager
async def stopped(packages: Packages) -> AsyncIterator[tuple[int, asyncio.Task[Answer]]]:
    """A process that was stopped in a job of kernel 1; its pid, and that kernel's request."""
    assert (await ask(packages, PAGE, JSON)).status == 200
    (pid,) = packages.processes.pids
    os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(ask(packages, PAGE, JSON))
    await until(lambda: not packages.processes._idle)
    yield pid, task


def test_a_kernels_page_holds_up_its_own_and_no_others(tmp_path: Path, index: FakeIndex) -> None:
    async def check() -> None:
        async with (
            route(tmp_path / "c", index.index()) as packages,
            stopped(packages) as (pid, first),
        ):
            seen = len(index.seen)
            second = asyncio.create_task(ask(packages, PAGE, JSON))
            await until(lambda: len(index.seen) > seen)
            for kernel in (2, 3):
                assert (await ask(packages, PAGE, JSON, kernel=kernel)).status == 200
            assert not first.done()
            assert not second.done()
            assert len(packages.processes.pids) == 2
            os.kill(pid, signal.SIGCONT)
            assert [(await task).status for task in (first, second)] == [200, 200]

    asyncio.run(check())


def test_a_process_that_was_killed_is_replaced(tmp_path: Path, index: FakeIndex) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            async with stopped(packages) as (pid, task):
                os.kill(pid, signal.SIGKILL)
                answer = await task
                assert answer.status == 502
                assert "ended with status -9" in answer.reason
            assert (await ask(packages, PAGE, JSON)).status == 200
            (pid,) = packages.processes.pids
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not packages.processes.pids)
            assert (await ask(packages, PAGE, JSON)).status == 200

    asyncio.run(check())


def test_a_process_that_hangs_is_killed(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            with monkeypatch.context() as patch:
                async with stopped(packages) as (_, task):
                    task.cancel()  # also when nobody waits for it any more
                await until(lambda: not packages.processes.pids)
                assert (await ask(packages, PAGE, JSON)).status == 200
                (pid,) = packages.processes.pids
                os.kill(pid, signal.SIGSTOP)
                patch.setattr(page_process, "JOB_SECONDS", 0.01)
                answer = await ask(packages, PAGE, JSON)
                assert answer.status == 502
                assert "takes longer than" in answer.reason
                await until(lambda: pid not in packages.processes.pids)
            assert (await ask(packages, PAGE, JSON)).status == 200

    asyncio.run(check())


def make_numbers(count: int) -> Served:
    """Return a document of npm that takes 8 times as much memory when it is read."""
    content = b'{"versions":{},"x":[' + b"0.5," * count + b"0]}"
    return Served(content, "application/json")


def test_a_page_that_takes_too_much_memory_fails_alone(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_process, "MAX_MEMORY", 32 * 1024 * 1024)

    async def check() -> None:
        async with route(tmp_path / "c", index.index(), npm=Index(f"{index.url}/")) as packages:
            for _ in range(2):
                answer = await ask(packages, "/packages/npm/large")
                assert answer.status == 502
                assert "more than 32 MiB of memory" in answer.reason
                assert (await ask(packages, PAGE, JSON)).status == 200

    index.served["/large"] = make_numbers(1_000_000)
    asyncio.run(check())


@pytest.mark.slow
def test_a_page_that_takes_too_much_of_the_cpu_fails_alone(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_process, "CPU_SECONDS", 0)

    async def check() -> None:
        async with route(tmp_path / "c", index.index(), npm=Index(f"{index.url}/")) as packages:
            for path in ("/packages/npm/large", PAGE.replace("demo", "slow")):
                answer = await ask(packages, path)
                assert answer.status == 502
                assert "of the CPU" in answer.reason
                assert (await ask(packages, PAGE, JSON)).status == 200

    # Python's parser looks for the end of a tag from each beginning.
    index.served["/simple/slow/"] = Served(b"<a " * 20_000, "text/html")
    content = b'{"versions":{},"x":[' + b"[]," * 3_000_000 + b"0]}"
    index.served["/large"] = Served(content, "application/json")
    asyncio.run(check())


def test_a_process_that_has_read_a_large_page_ends(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask(packages, PAGE, JSON)).status == 200
            await until(lambda: not packages.processes.pids)

    monkeypatch.setattr(page_process, "MAX_PARSED_BYTES", 10)
    asyncio.run(check())


# -- in the worker ---------------------------------------------------------------------------------


@pytest.fixture
def worker(
    tmp_path: Path, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EgressWorker]:
    """A worker whose index has a credential."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/".replace("//", f"//u:{SECRET}@"))
    worker = EgressWorker()
    yield worker
    worker.end()


def make_routes(upstream: Fake) -> dict[str, Any]:
    plain = {"url": f"http://127.0.0.1:{upstream.port}", "allow_private": True}
    return {"plain": plain, "packages": {}}


def start_page_process(worker: EgressWorker, kernel: Kernel) -> int:
    """Let the worker start its process for pages; return the pid."""
    assert status_of(kernel.get(PAGE)) == 200
    assert worker.pid is not None
    (pid,) = read_children(worker.pid)
    return pid


def test_requests_of_another_kernel_pass_while_a_page_is_read(
    worker: EgressWorker, upstream: Fake, index: FakeIndex
) -> None:
    one, other = (Kernel(worker, make_routes(upstream), None) for _ in range(2))
    pid = start_page_process(worker, one)
    os.kill(pid, signal.SIGSTOP)
    seen = len(index.seen)
    stream = one.open(b"GET %s HTTP/1.0\r\nHost: 127.0.0.1:3128\r\n\r\n" % PAGE.encode())
    one.wait_for(lambda: len(index.seen) > seen, stream)
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
    pid = start_page_process(worker, kernel)
    os.kill(pid, signal.SIGSTOP)
    assert worker.pid is not None
    if way == "killed":
        os.kill(worker.pid, signal.SIGKILL)
    else:
        worker.end()
    assert is_gone(pid)
    kernel.close()


def test_the_page_process_gets_no_credential(worker: EgressWorker, upstream: Fake) -> None:
    kernel = Kernel(worker, make_routes(upstream), None)
    folder = Path(f"/proc/{start_page_process(worker, kernel)}")
    assert SECRET.encode() not in (folder / "cmdline").read_bytes()
    if os.geteuid() == 0:
        assert SECRET.encode() not in (folder / "environ").read_bytes()
    else:
        with pytest.raises(PermissionError):
            (folder / "environ").read_bytes()
    kernel.close()


# -- what is kept ----------------------------------------------------------------------------------


def test_a_page_is_parsed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def note(data: bytes, kind: str, url: str) -> Page:
        parsed.append(data)
        return read_simple(data, kind, url)

    def write(name: str) -> None:
        file = {"filename": f"{name}-1.0.tar.gz", "url": f"{name}-1.0.tar.gz"}
        path = tmp_path / "page"
        path.write_bytes(json.dumps({"files": [file]}).encode())
        size, url = path.stat().st_size, "https://x/simple/"
        page = {"index": url, "url": url, "type": SIMPLE_JSON, "size": size}
        job = {"job": "simple", "project": "demo", "json": True, "pages": [page]}
        with path.open("rb") as read, (tmp_path / "answer").open("wb") as to:
            answer = writer.do(job, [to.fileno(), read.fileno()])
        assert answer == {"written": True, "faults": []}
        assert name.encode() in (tmp_path / "answer").read_bytes()

    monkeypatch.setattr(page_writer, "read_simple", note)
    writer = PageWriter(b"key")
    for _ in range(3):
        write("demo")
    assert len(parsed) == 1
    for number in range(MAX_PARSED):
        write(f"other{number}")
    assert len(writer._parsed) == MAX_PARSED
    write("demo")
    assert len(parsed) == MAX_PARSED + 2
    monkeypatch.setattr(page_writer, "MAX_PARSED_BYTES", 10)
    write("large")
    write("large")
    assert len(parsed) == MAX_PARSED + 4


def test_a_damaged_page_of_the_cache_is_not_used(tmp_path: Path) -> None:
    cache = PackageCache.open(tmp_path / "c")
    page = cache.new_page()
    page.write(b"body")
    fields = {"url": "u", "content_type": "t", "etag": None, "modified": None}
    kept = page.keep("key", **fields, fetched=1.0, max_age=0.0)
    page.close()
    assert cache.open_page("key") == kept
    path = next((tmp_path / "c" / "pages").rglob("?" * 64))
    whole = path.read_bytes()
    for damaged in (b"", b"x", whole[:-1], whole[1:], whole[:-FOOTER_DIGITS], b"9" * 20):
        path.write_bytes(damaged)
        assert cache.open_page("key") is None, damaged


# -- turns -----------------------------------------------------------------------------------------


async def take_turns(turns: FairTurns, kernels: str, most: int) -> str:
    """Let each letter be a request of a kernel, all made at once; return them in their order."""
    order: list[str] = []
    active: list[str] = []

    async def request(kernel: str) -> None:
        async with turns.take(kernel):
            order.append(kernel)
            active.append(kernel)
            assert len(active) <= most
            await asyncio.sleep(0)
            active.remove(kernel)

    await asyncio.gather(*map(request, kernels))
    assert not turns._active
    assert not turns._waiting
    return "".join(order)


def test_kernels_take_turns() -> None:
    async def check() -> None:
        assert await take_turns(FairTurns(1), "aaaabbc", 1) == "aabcaba"
        assert (await take_turns(FairTurns(2), "aaaaaab", 2))[:2] == "ab"
        assert (await take_turns(FairTurns(4, 3), "aaaaab", 4))[:4] == "aaab"

    asyncio.run(check())


def test_a_request_that_is_given_up_leaves_its_turn_to_the_next() -> None:
    async def hold(turns: FairTurns, kernel: str) -> None:
        async with turns.take(kernel):
            await asyncio.Event().wait()

    async def check() -> None:
        turns = FairTurns(1)
        tasks = [asyncio.create_task(hold(turns, kernel)) for kernel in "aab"]
        await asyncio.sleep(0)
        for task in tasks:  # one that has it, one that waits, and one that gets it now
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await take_turns(turns, "ab", 1) == "ab"

    asyncio.run(check())
