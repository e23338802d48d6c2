"""The route ``packages`` is shared: what one kernel asks for, or gives up, keeps nothing from
another."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress.addresses import NAMES_AT_ONCE, NameResolver
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import SIMPLE_JSON
from gvisor_kernel.egress.package_upstream import MAX_CONNECTIONS
from gvisor_kernel.egress.packages import MAX_AT_ONCE, MAX_OF_ONE, PAGES_OF_ONE, Packages

from ..patience import scale_seconds
from .indexes import JSON, THREADS, Answer, ask, resolve_below, route, sha256
from .test_packages import run


def name_of(path: str) -> bytes:
    """Return what the file at ``path`` contains."""
    return path.rpartition("/")[2].encode()


class Held:
    """An index in the test's own loop, with a connection for each request.

    What has ``slow`` in its path is answered when ``go`` is set. ``seen``: how often each path was
    asked for; ``open``: requests that wait. The files of a page are on ``file_host``, if any, with
    their number in the place of ``*``.
    """

    def __init__(self, host: str) -> None:
        self.host, self.port = host, 0
        self.file_host = ""
        self.seen: Counter[str] = Counter()
        self.open = 0
        self.go = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def index(self) -> Index:
        return Index(f"http://{self.host}:{self.port}/simple/")

    async def until(self, seen: int = 0, waiting: int | None = None) -> None:
        """Wait until so many requests have come for what is slow, or so many wait."""
        async with asyncio.timeout(scale_seconds(20)):
            while sum(n for path, n in self.seen.items() if "slow" in path) < seen or (
                waiting is not None and self.open != waiting
            ):
                self._changed.clear()
                await self._changed.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            self.seen[path] += 1
            if "slow" in path:
                await self._hold(reader)
            kind, body = self._find(path)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
            writer.write(b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)))
            writer.write(body)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _hold(self, reader: asyncio.StreamReader) -> None:
        """Wait for ``go``, or until the client has gone."""
        self.open += 1
        self._changed.set()
        waits = {asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(reader.read(1))}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.open -= 1
            self._changed.set()
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
        if not self.go.is_set():
            raise OSError

    def _find(self, path: str) -> tuple[bytes, bytes]:
        if path.startswith("/files/"):
            return b"application/octet-stream", path.rpartition("/")[2].encode()
        project = path.split("/")[2]
        base = self.file_host or f"http://{self.host}:{self.port}"
        names = [f"{project}-{n}.0-py3-none-any.whl" for n in range(20)]
        files = [
            {
                "filename": name,
                "url": f"{base.replace('*', str(n))}/files/{name}",
                "hashes": {"sha256": sha256(name.encode())},
            }
            for n, name in enumerate(names)
        ]
        page = {"meta": {"api-version": "1.0"}, "name": project, "files": files}
        return SIMPLE_JSON.encode(), json.dumps(page).encode()


@asynccontextmanager
async def held(host: str = "127.0.0.1") -> AsyncIterator[Held]:
    index = Held(host)
    server = await asyncio.start_server(index.serve, "127.0.0.1", 0)
    index.port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(scale_seconds(20)):
            yield index
    finally:
        index.go.set()
        server.close()


def page_of(project: str) -> str:
    return f"/packages/pypi/simple/{project}/"


def begin(packages: Packages, path: str, kernel: int, **fields: Any) -> asyncio.Task[Answer]:
    return asyncio.create_task(ask(packages, path, JSON, kernel=kernel, **fields))


async def end(tasks: list[asyncio.Task[Answer]]) -> None:
    """Give requests up, as when their clients go."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def files_of(packages: Packages, project: str, kernel: int) -> list[str]:
    """Return the paths of the files of a page."""
    page = page_of(project)
    listed = await ask(packages, page, JSON, kernel=kernel)
    return [resolve_below(page, file["url"]) for file in listed.files]


# -- pages -----------------------------------------------------------------------------------------


def test_a_page_for_which_nobody_waits_is_not_fetched_further(tmp_path: Path) -> None:
    async def check() -> None:
        async with held() as index, route(tmp_path / "c", index.index) as packages:
            for number in range(MAX_CONNECTIONS + 1):
                task = begin(packages, page_of(f"slow{number}"), 1)
                await index.until(seen=number + 1)
                await end([task])
            await index.until(waiting=0)
            assert (await ask(packages, page_of("demo"), JSON, kernel=2)).status == 200
        assert not list((tmp_path / "c" / "new").iterdir())

    run(check)


def test_a_page_that_is_given_up_keeps_its_place_until_its_fetch_has_ended(tmp_path: Path) -> None:
    async def check() -> None:
        async with held() as index, route(tmp_path / "c", index.index) as packages:
            for number in range(3 * PAGES_OF_ONE):
                tasks = [begin(packages, page_of(f"slow{number}x{n}"), 1) for n in range(20)]
                await index.until(seen=(number + 1) * PAGES_OF_ONE)
                assert index.open <= PAGES_OF_ONE
                await end(tasks)
                await index.until(waiting=0)

    run(check)


# -- files -----------------------------------------------------------------------------------------


def test_files_of_one_kernel_leave_places_for_others(tmp_path: Path) -> None:
    async def check() -> None:
        async with held() as index, route(tmp_path / "c", index.index) as packages:
            index.go.set()
            slow, quick = [await files_of(packages, name, 1) for name in ("slow", "demo")]
            index.go.clear()
            tasks = [begin(packages, path, 1) for path in slow]
            await index.until(waiting=MAX_OF_ONE)
            assert (await ask(packages, quick[0], kernel=2)).data == name_of(quick[0])
            assert index.open == MAX_OF_ONE < MAX_AT_ONCE
            # One that waits for a turn of the first kernel is the second one's, too.
            joined = begin(packages, slow[-1], 2)
            await index.until(waiting=MAX_OF_ONE + 1)
            index.go.set()
            assert (await joined).data == name_of(slow[-1])
            answers = [answer.data for answer in await asyncio.gather(*tasks)]
            assert answers == [name_of(path) for path in slow]
            twice = {path: n for path, n in index.seen.items() if "/files/" in path and n > 1}
            assert not twice

    run(check)


def test_files_that_are_given_up_free_their_places(tmp_path: Path) -> None:
    async def check() -> None:
        async with held() as index, route(tmp_path / "c", index.index) as packages:
            index.go.set()
            slow = await files_of(packages, "slow", 1)
            index.go.clear()
            for _ in range(3):
                tasks = [begin(packages, path, 1) for path in slow]
                await index.until(waiting=MAX_OF_ONE)
                joined = begin(packages, slow[-1], 2)
                await index.until(waiting=MAX_OF_ONE + 1)
                await end([*tasks, joined])
                await index.until(waiting=0)
            index.go.set()
            assert (await ask(packages, slow[0], kernel=1)).data == name_of(slow[0])
            assert not packages._downloads._running
        assert not list((tmp_path / "c" / "new").iterdir())

    run(check)


# -- names -----------------------------------------------------------------------------------------


class SlowNames:
    """Names below ``slow.example`` wait for ``go``. ``asked``: those that do."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self._find = socket.getaddrinfo

    def find(self, host: Any, *arguments: Any, **named: Any) -> Any:
        if str(host).endswith("slow.example"):
            self.asked.append(host)
            self.go.wait()
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        host = "127.0.0.1" if host == "index.example" else host
        return self._find(host, *arguments, **named)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    names = SlowNames()
    monkeypatch.setattr(socket, "getaddrinfo", names.find)
    yield names
    names.go.set()


def test_slow_names_of_file_hosts_keep_no_thread_from_others(
    tmp_path: Path, names: SlowNames
) -> None:
    """Nor from the index, whose name is resolved apart from those that its pages have."""

    async def check() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NAMES_AT_ONCE))
        async with held("index.example") as index, route(tmp_path / "c", index.index) as packages:
            index.file_host = "http://h*.slow.example"
            paths = await files_of(packages, "demo", 1)
            resolver = NameResolver(THREADS)
            tasks = [begin(packages, path, 1, names=resolver) for path in paths]
            while len(names.asked) < NAMES_AT_ONCE:
                await asyncio.sleep(0)
            other = await ask(packages, page_of("other"), JSON, kernel=2)
            own = await ask(packages, page_of("own"), JSON, kernel=1, names=resolver)
            assert (other.status, own.status) == (200, 200)
            assert not names.go.is_set()
            await end(tasks)
            assert resolver._turns._active  # the threads go on
            assert len(names.asked) == NAMES_AT_ONCE

    async def check_and_go_on() -> None:
        # Without an end of theirs a thread in which a page waits could not be awaited, either.
        end_of_names = asyncio.get_running_loop().call_later(scale_seconds(10), names.go.set)
        try:
            await check()
        finally:
            end_of_names.cancel()
            names.go.set()

    run(check_and_go_on)
