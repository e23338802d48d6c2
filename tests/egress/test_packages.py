"""The route ``packages`` against an index on the loopback: what it answers, keeps and refuses."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import pytest

from gvisor_kernel.egress import package_pages
from gvisor_kernel.egress.addresses import NameResolver
from gvisor_kernel.egress.package_cache import PackageCache
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.packages import PAGES_OF_ONE, Packages
from gvisor_kernel.egress.refusals import Refusal

from ..patience import scale_seconds
from ..sweeps import needs_all
from .indexes import (
    JSON,
    THREADS,
    Answer,
    FakeIndex,
    Head,
    Request,
    Served,
    ask,
    make_wheel,
    resolve_below,
    route,
    run_route,
    serving,
    sha256,
)

PAGE = "/packages/pypi/simple/demo/"


async def ask_file(packages: Packages, page: str = PAGE, suffix: str = "") -> Answer:
    """Get the first file of a page as a client would."""
    listed = await ask(packages, page, JSON)
    assert listed.status == 200, listed.data
    return await ask(packages, resolve_below(page, listed.files[0]["url"]) + suffix)


def run(action: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(action())  # type: ignore[arg-type]


# -- pages -----------------------------------------------------------------------------------------


def test_a_page_is_json_or_html_as_the_client_asks(tmp_path: Path, index: FakeIndex) -> None:
    name = index.add_project("demo", **{"requires-python": ">=3.8"})

    async def check(packages: Packages) -> None:
        as_json = await ask(packages, PAGE, JSON)
        as_html = await ask(packages, PAGE, {b"accept": b"text/html"})
        either = await ask(packages, PAGE, {b"accept": package_pages.ACCEPT_SIMPLE.encode()})
        assert as_json.files[0]["filename"] == name
        assert as_json.files[0]["requires-python"] == ">=3.8"
        assert b'data-requires-python="&gt;=3.8"' in as_html.data
        assert as_html.headers[b"Content-Type"] == b"text/html"
        assert either.data == as_json.data

    run_route(check, tmp_path, index.index())


def test_a_page_of_an_index_in_html_is_read(tmp_path: Path, index: FakeIndex) -> None:
    name = index.add_project("demo")
    page = index.served["/simple/demo/"]
    page.content_type = "text/html"
    page.body = f'<a href="../../files/{name}">{name}</a>'.encode()

    async def check(packages: Packages) -> None:
        assert (await ask_file(packages)).data == index.served[f"/files/{name}"].body

    run_route(check, tmp_path, index.index())


def test_a_compressed_page_is_read_if_it_is_whole(tmp_path: Path, index: FakeIndex) -> None:
    name = index.add_project("demo")
    page = index.served["/simple/demo/"]
    page.headers["Content-Encoding"] = "gzip"
    page.body = whole = gzip.compress(page.body)

    async def check(packages: Packages) -> None:
        assert (await ask(packages, PAGE, JSON)).files[0]["filename"] == name
        for broken in (whole[:-9], whole[:40] + b"x" + whole[41:], b"x"):
            page.body = broken
            assert (await ask(packages, PAGE, JSON)).status == 502

    run_route(check, tmp_path, index.index())


def test_an_address_upstream_is_not_shown(tmp_path: Path, index: FakeIndex) -> None:
    wheel = make_wheel("demo")
    url = "/files/demo-1.0-py3-none-any.whl?token=secret"
    index.add_project("demo", wheel, url=f"{index.url}{url}")
    index.served[url] = Served(wheel)

    async def check(packages: Packages) -> None:
        for headers in (JSON, {}):
            assert b"token=secret" not in (await ask(packages, PAGE, headers)).data
        assert (await ask_file(packages)).data == wheel

    run_route(check, tmp_path, index.index())


def test_pages_of_several_indexes_are_merged_for_pip_and_not_for_uv(tmp_path: Path) -> None:
    async def check() -> None:
        both = (first.index(), second.index())
        async with route(tmp_path / "c", *both, uv=both) as packages:
            pip = await ask(packages, PAGE, JSON)
            uv = await ask(packages, "/packages/uv/simple/demo/", JSON)
        assert {file["filename"] for file in pip.files} == {one, "demo-2.0-py3-none-any.whl"}
        assert {file["filename"] for file in uv.files} == {one}

    with serving() as first, serving() as second:
        one = first.add_project("demo")
        second.add_page("demo", [{"filename": "demo-2.0-py3-none-any.whl", "url": "x.whl"}])
        run(check)


def test_uv_does_not_skip_an_index_that_is_down(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", uv=[first.index(), second.index()]) as packages:
            assert (await ask(packages, "/packages/uv/simple/demo/", JSON)).status == 502

    with serving() as first, serving() as second:
        first.served["/simple/demo/"] = Served(status=500)
        second.add_project("demo")
        run(check)


def test_credentials_go_to_the_index_only(tmp_path: Path) -> None:
    async def check() -> None:
        secret = index.index(authorization="Basic c2VjcmV0")
        async with route(tmp_path / "c", secret) as packages:
            answer = await ask_file(packages)
            assert answer.status == 502
            assert b"secret" not in answer.data
        assert "c2VjcmV0" not in repr(secret)

    with serving() as index, serving("127.0.0.2") as other:
        index.add_project("demo", url=f"{other.url}/files/demo-1.0-py3-none-any.whl")
        run(check)
    assert index.seen[0][1]["authorization"] == "Basic c2VjcmV0"
    assert not other.seen


def test_an_index_that_refuses_says_so(tmp_path: Path, index: FakeIndex) -> None:
    index.served["/simple/demo/"] = Served(status=401)

    async def check(packages: Packages) -> None:
        answer = await ask(packages, PAGE, JSON)
        assert answer.status == 403
        assert "credentials" in answer.reason

    run_route(check, tmp_path, index.index())


# -- the cache -------------------------------------------------------------------------------------


def test_a_second_kernel_gets_page_and_file_offline(tmp_path: Path) -> None:
    async def first() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask_file(packages)).data == wheel

    async def second() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask_file(packages)).data == wheel
            other = await ask(packages, "/packages/pypi/simple/other/", JSON)
            assert other.status == 502
            assert "cache" in other.reason

    with serving() as index:
        wheel = make_wheel("demo")
        index.add_project("demo", wheel)
        run(first)
        index.stop()
        run(second)


def test_a_page_is_asked_for_again_only_if_it_may_have_changed(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            for _ in range(3):
                assert (await ask(packages, PAGE, JSON)).status == 200
                assert (await ask(packages, "/packages/pypi/simple/kept/", JSON)).status == 200

    with serving() as index:
        index.add_project("demo")
        index.served["/simple/demo/"].headers["ETag"] = '"1"'
        index.add_project("kept")
        index.served["/simple/kept/"].headers["Cache-Control"] = "max-age=600, public"
        run(check)
    assert index.paths.count("/simple/demo/") == 3
    assert index.seen[-1][1]["if-none-match"] == '"1"'
    assert index.paths.count("/simple/kept/") == 1


def test_many_requests_at_once_make_one_download(tmp_path: Path, index: FakeIndex) -> None:
    data = os.urandom(3_000_000)
    name = index.add_project("demo", data)

    async def check(packages: Packages) -> None:
        answers = await asyncio.gather(*(ask_file(packages) for _ in range(20)))
        assert {answer.data for answer in answers} == {data}

    run_route(check, tmp_path, index.index())
    assert index.paths.count(f"/files/{name}") == 1


def test_a_file_without_a_digest_is_asked_for_again_unless_offline(
    tmp_path: Path, index: FakeIndex
) -> None:
    name = index.add_project("demo", b"one", hashes={})

    async def check(packages: Packages) -> None:
        assert (await ask_file(packages)).data == b"one"
        index.served[f"/files/{name}"] = Served(b"two")
        assert (await ask_file(packages)).data == b"two"
        index.stop()
        assert (await ask_file(packages)).data == b"two"

    run_route(check, tmp_path, index.index())


def test_metadata_is_had_without_the_wheel(tmp_path: Path, index: FakeIndex) -> None:
    metadata = b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n"
    name = index.add_project("demo", **{"core-metadata": {"sha256": sha256(metadata)}})
    index.served[f"/files/{name}.metadata"] = Served(metadata)

    async def check(packages: Packages) -> None:
        assert (await ask_file(packages, suffix=".metadata")).data == metadata
        index.stop()
        assert (await ask_file(packages, suffix=".metadata")).data == metadata

    run_route(check, tmp_path, index.index())
    assert f"/files/{name}" not in index.paths


def test_the_files_used_longest_ago_are_removed_first(tmp_path: Path) -> None:
    cache = PackageCache.open(tmp_path / "c", limit=30_000)
    names = []
    for number in range(5):
        data = bytes([number]) * 10_000
        incoming = cache.begin({"sha256": sha256(data)})
        incoming.write(data)
        incoming.keep("x")
        incoming.close()
        names.append(sha256(data))
        os.utime(cache.place("files", sha256(data)), (number, number))
    cache.trim()
    left = [cache.open_file({"sha256": name}, "x") is not None for name in names]
    assert cache.measure() <= 30_000
    assert any(left)
    assert cache.open_file({"sha256": names[0]}, "x") is None


def test_a_damaged_file_of_the_cache_is_removed(tmp_path: Path) -> None:
    cache = PackageCache.open(tmp_path / "c")
    hashes = {"sha256": sha256(b"right")}
    incoming = cache.begin(hashes)
    incoming.write(b"right")
    incoming.keep("x")
    incoming.close()
    path = cache.place("files", hashes["sha256"])
    path.write_bytes(b"wrong")
    assert cache.open_file(hashes, "x") is None
    assert not path.exists()


def test_everything_in_the_cache_is_private(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            await ask_file(packages)

    with serving() as index:
        index.add_project("demo")
        run(check)
    for path in [tmp_path / "c", *(tmp_path / "c").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def _install_often(root: str, url: str, limit: int) -> bool:
    async def run() -> bool:
        async with route(Path(root), Index(url), limit=limit) as packages:
            for _ in range(3):
                for name in ("demo", "other"):
                    answer = await ask_file(packages, f"/packages/pypi/simple/{name}/")
                    if answer.status != 200 or len(answer.data) != 300_000:
                        return False
            return True

    return asyncio.run(run())


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(10**9, marks=needs_all, id="large"),
        pytest.param(100_000, id="smaller than a file"),
    ],
)
def test_processes_share_a_cache_without_harm(tmp_path: Path, limit: int) -> None:
    with serving() as index, get_context("spawn").Pool(2) as pool:
        for name in ("demo", "other"):
            index.add_project(name, os.urandom(300_000))
        work = [(str(tmp_path / "c"), f"{index.url}/simple/", limit)] * 2
        assert pool.starmap(_install_often, work) == [True] * 2
    assert not list((tmp_path / "c" / "new").iterdir())


# -- npm -------------------------------------------------------------------------------------------


def make_document(index: FakeIndex, name: str, data: bytes, integrity: str | None = None) -> None:
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    tarball = f"/{name}/-/demo-1.0.0.tgz"
    dist = {"tarball": f"{index.url}{tarball}", "integrity": integrity or f"sha512-{digest}"}
    document = {"name": name, "versions": {"1.0.0": {"dist": dist}}, "dist-tags": {"x": "1.0.0"}}
    index.served[f"/{name.replace('/', '%2F')}"] = Served(
        json.dumps(document).encode(), "application/json"
    )
    index.served[tarball] = Served(data)


@pytest.mark.parametrize(("name", "asked"), [("demo", "demo"), ("@acme/demo", "@acme%2fdemo")])
def test_npm_gets_documents_and_tarballs(tmp_path: Path, name: str, asked: str) -> None:
    async def check() -> None:
        registry = Index(f"{index.url}/", "Bearer t")
        async with route(tmp_path / "c", npm=registry) as packages:
            for _ in range(2):
                document = json.loads((await ask(packages, f"/packages/npm/{asked}")).data)
                tarball = document["versions"]["1.0.0"]["dist"]["tarball"]
                assert tarball.startswith("http://127.0.0.1:3128/packages/npm/-/files/")
                assert (await ask(packages, resolve_below("/", tarball))).data == b"tarball"
                index.stop()

    with serving() as index:
        make_document(index, name, b"tarball")
        run(check)
    assert {headers.get("authorization") for _, headers in index.seen} == {"Bearer t"}


def test_a_tarball_with_a_wrong_integrity_is_refused(tmp_path: Path, index: FakeIndex) -> None:
    wrong = base64.b64encode(hashlib.sha512(b"other").digest()).decode()
    make_document(index, "demo", b"tarball", f"sha512-{wrong}")

    async def check(packages: Packages) -> None:
        document = json.loads((await ask(packages, "/packages/npm/demo")).data)
        tarball = document["versions"]["1.0.0"]["dist"]["tarball"]
        with pytest.raises(Refusal):
            await ask(packages, resolve_below("/", tarball))

    run_route(check, tmp_path, npm=Index(f"{index.url}/"))


def test_errors_of_a_host_are_told_apart(tmp_path: Path, index: FakeIndex) -> None:
    name = index.add_project("demo")
    del index.served[f"/files/{name}"]

    async def check(packages: Packages) -> None:
        assert (await ask_file(packages)).status == 404
        index.served[f"/files/{name}"] = Served(status=500)
        assert (await ask_file(packages)).status == 502

    run_route(check, tmp_path, index.index())


def test_readers_that_stop_hold_no_place_in_memory(tmp_path: Path) -> None:
    """More pages than may be made at once wait for their readers, and one more is answered."""

    class Stalled(Answer):
        async def body(self, data: bytes) -> None:
            await asyncio.Event().wait()

    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            answers = [Stalled() for _ in range(2 * PAGES_OF_ONE)]
            request: Any = Request(Head(PAGE.encode(), JSON))
            names = NameResolver(THREADS)
            waiting = [
                asyncio.create_task(packages.handle(request, answer, 1, names))
                for answer in cast("list[Any]", answers)
            ]
            async with asyncio.timeout(scale_seconds(20)):
                while not all(answer.status == 200 for answer in answers):
                    await asyncio.sleep(0.01)
                assert (await ask(packages, PAGE, JSON)).complete
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert not list((tmp_path / "c" / "new").iterdir())

    with serving() as index:
        index.add_project("demo")
        run(check)
