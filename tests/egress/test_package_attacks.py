"""The route ``packages`` against hostile requests, pages and files."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress import package_pages
from gvisor_kernel.egress.addresses import NameResolver
from gvisor_kernel.egress.package_catalog import Bounds
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import PageError, read_packument, read_simple
from gvisor_kernel.egress.package_upstream import NAMES, Hosts
from gvisor_kernel.egress.packages import Packages
from gvisor_kernel.egress.refusals import Refusal, UpstreamFailed

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
from .test_packages import PAGE, ask_file, run


def test_a_forged_address_gets_nothing(tmp_path: Path, index: FakeIndex) -> None:
    name = index.add_project("demo")
    file = {"filename": name, "url": f"{index.url}/files/{name}"}
    index.add_page("demo", [file, file | {"filename": "demo-2.0-py3-none-any.whl"}])

    async def check(packages: Packages) -> None:
        listed = (await ask(packages, PAGE, JSON)).files
        good = resolve_below(PAGE, listed[0]["url"])
        made = re.findall(r"[0-9a-f]{64}", good)[0]
        pages = [path.name for path in (tmp_path / "c" / "pages").rglob("?" * 64)]
        (index_page,) = {*pages} - {made}
        second = resolve_below(PAGE, listed[1]["url"])
        seen = len(index.seen)
        for bad in (
            *(good.replace("/0/", f"/{odd}/") for odd in ("1", "2", "00", "-0", "0" * 40)),
            *(good.replace("/0/", f"/{odd}/") for odd in ("", "é", "²", "%30", "9" * 8)),
            good.replace(made, "0" * 64),
            good.replace(made, made.upper()),
            good.replace(made, index_page),
            good.replace("/pypi/", "/npm/-/"),
            good.replace("demo-1.0", "demo-9.9"),
            second.replace("demo-2.0", "demo-1.0"),
            good + ".metadata",
            good + "/",
            good.replace("/packages/pypi/files/", "/packages/pypi/files/http://127.0.0.1/"),
        ):
            assert (await ask(packages, bad)).status in (404, 405), bad
        files = {path for path in index.paths[seen:] if path.startswith("/files/")}
        assert not files

    run_route(check, tmp_path, index.index())


@pytest.mark.parametrize(
    "path",
    [
        *("/packages/pypi/simple/../simple/demo/", "/packages/pypi/simple/%2e%2e/x/"),
        *("/packages/pypi/simple/a%2fb/", "/packages/pypi/simple/a%252fb/"),
        *("/packages/pypi/simple//demo/", "/packages//pypi/simple/demo/", "/packages/"),
        *("/packages/pypi/simple/demo", "/packages/pypi/simple/", "/packages/pypi/simple/-x/"),
        *("/packages/pypi/simple/demo;x/", "/packages/pypi/simple/demo%00/"),
        *("/packages/pypi/simple/@evil/", "/packages/npm/..%2f..%2fx", "/packages/npm/%2e%2e"),
        *("/packages/npm/a/b/c", "/packages/npm/@a%252fb", "/packages/npm/a%5cb"),
        *("/packages/npm/-/v1/search", "/packages/npm/-/files/x", "/packages/other/x"),
        *("/packages/pypi/simple/http:%2f%2f127.0.0.1%2f/", "/packages/npm/http://x"),
        f"/packages/pypi/simple/{'a' * 300}/",
    ],
)
def test_no_odd_path_reaches_an_index(tmp_path: Path, index: FakeIndex, path: str) -> None:
    index.add_project("demo")

    async def check(packages: Packages) -> None:
        assert (await ask(packages, path)).status == 404

    run_route(check, tmp_path, index.index(), npm=index.index())
    assert not index.seen


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_is_sent_to_an_index(tmp_path: Path, index: FakeIndex, method: str) -> None:
    async def check(packages: Packages) -> None:
        assert (await ask(packages, PAGE, method=method)).status == 405

    run_route(check, tmp_path, index.index())
    assert not index.seen


def test_links_to_the_inside_are_not_followed(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            listed = await ask(packages, PAGE, JSON)
            assert [file["filename"] for file in listed.files] == ["demo-3.0.tar.gz"]
            answer = await ask_file(packages)
            assert answer.status == 502
            assert "not allowed" in answer.reason

    with serving() as index, serving("127.0.0.2") as inside:
        inside.served["/demo-3.0.tar.gz"] = Served(b"secret")
        bad = ["file:///etc/passwd", "ftp://x/y", "http://a@b/", "javascript:1", "http://[::1", 7]
        links = [{"filename": f"demo-1.{n}.tar.gz", "url": url} for n, url in enumerate(bad)]
        links += [{"filename": "../x.tar.gz", "url": "x"}, {"filename": "a/b.tar.gz", "url": "x"}]
        links += [{"filename": "demo-3.0.tar.gz", "url": f"{inside.url}/demo-3.0.tar.gz"}]
        index.add_page("demo", links)
        run(check)
    assert not inside.seen


def test_a_redirect_to_the_inside_is_not_followed(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask_file(packages)).status == 502
            index.served[f"/files/{name}"].headers["Location"] = "file:///etc/passwd"
            assert (await ask_file(packages)).status == 502

    with serving() as index, serving("127.0.0.2") as inside:
        name = index.add_project("demo")
        headers = {"Location": f"{inside.url}/secret"}
        index.served[f"/files/{name}"] = Served(status=302, headers=headers)
        run(check)
    assert not inside.seen


def test_endless_redirects_end(tmp_path: Path, index: FakeIndex) -> None:
    index.served["/simple/demo/"] = Served(status=302, headers={"Location": "/simple/demo/"})

    async def check(packages: Packages) -> None:
        assert (await ask(packages, PAGE, JSON)).status == 502

    run_route(check, tmp_path, index.index())


def test_a_name_with_an_inner_address_is_refused() -> None:
    class Names(NameResolver):
        async def resolve(self, host: str, port: int) -> list[str]:
            return ["8.8.8.8", "127.0.0.1"] if host == "evil.example" else ["8.8.4.4"]

    async def check() -> None:
        NAMES.set(Names(THREADS))
        with pytest.raises(UpstreamFailed, match="not allowed"):
            await Hosts(Names(THREADS), ("index.example", 443)).resolve("evil.example", 443)

    run(check)


def test_a_file_with_a_wrong_digest_is_never_complete(tmp_path: Path, index: FakeIndex) -> None:
    data = os.urandom(1_000_000)
    index.add_project("demo", data, hashes={"sha256": sha256(b"another")})

    async def check(packages: Packages) -> None:
        listed = await ask(packages, PAGE, JSON)
        answer = Answer()
        path = resolve_below(PAGE, listed.files[0]["url"])
        with pytest.raises(Refusal):
            await packages.handle(_request(path), answer, 1, NameResolver(THREADS))
        assert not answer.complete
        assert len(answer.data) < len(data)
        assert not list((tmp_path / "c" / "files").rglob("?" * 64))
        assert not list((tmp_path / "c" / "new").iterdir())

    run_route(check, tmp_path, index.index())


def _request(path: str) -> Any:

    return Request(Head(path.encode()))


def test_a_file_that_breaks_off_is_not_kept(tmp_path: Path, index: FakeIndex) -> None:
    data = os.urandom(500_000)
    name = index.add_project("demo", data)
    headers = {"Content-Length": "900000"}
    index.served[f"/files/{name}"] = Served(data, headers=headers)

    async def check(packages: Packages) -> None:
        with pytest.raises(Refusal):
            await ask_file(packages)
        assert not list((tmp_path / "c" / "new").iterdir())

    run_route(check, tmp_path, index.index())


def test_one_kernel_cannot_poison_what_another_gets(tmp_path: Path) -> None:
    """Two indexes describe files of one name: each kernel gets that of its own index."""

    async def get(index: FakeIndex) -> bytes:
        async with route(tmp_path / "c", index.index()) as packages:
            return (await ask_file(packages)).data

    with serving() as good, serving() as bad:
        wheel = make_wheel("demo")
        good.add_project("demo", wheel)
        bad.add_project("demo", b"evil")
        assert asyncio.run(get(bad)) == b"evil"
        assert asyncio.run(get(good)) == wheel
        # An index that lies about the digest of its file.
        bad.add_project("demo", b"evil", hashes={"sha256": sha256(wheel), "md5": "0" * 32})
        assert asyncio.run(get(bad)) == wheel


def test_a_weak_digest_does_not_name_a_file_of_another_index(tmp_path: Path) -> None:
    async def get(index: FakeIndex) -> bytes:
        async with route(tmp_path / "c", index.index()) as packages:
            return (await ask_file(packages)).data

    with serving() as one, serving() as two:
        weak = {"md5": hashlib.md5(b"same", usedforsecurity=False).hexdigest()}
        one.add_project("demo", b"same", hashes=weak)
        two.add_project("demo", b"same", hashes=weak)
        asyncio.run(get(one))
        asyncio.run(get(two))
        assert [path for path in two.paths if path.startswith("/files/")]


def test_pages_seen_with_other_credentials_are_not_shared(tmp_path: Path) -> None:
    async def get(index: Index) -> int:
        async with route(tmp_path / "c", index) as packages:
            return (await ask(packages, PAGE, JSON)).status

    with serving() as index:
        index.add_project("demo")
        assert asyncio.run(get(index.index(authorization="Basic YQ=="))) == 200
        index.stop()
        assert asyncio.run(get(index.index())) == 502


def test_a_hostile_page_is_refused() -> None:
    deep = b'{"files": ' + b"[" * 500 + b"]" * 500 + b"}"
    many = json.dumps({"files": [{}] * (package_pages.MAX_FILES + 1)}).encode()
    for body in (deep, many, b"", b"[]", b'{"files": 1}', b"\xff\xfe", b'{"files": [' * 99):
        with pytest.raises(PageError):
            read_simple(body, package_pages.SIMPLE_JSON, "https://x/simple/d/")
    with pytest.raises(PageError):
        read_simple(b"<a href=x>" * (package_pages.MAX_FILES + 1), "text/html", "https://x/")
    with pytest.raises(PageError):
        read_simple(b"{}", "image/png", "https://x/")
    odd = [None, 1, "x", [], {"filename": 1}, {"filename": "a-1.whl", "url": "/a", "hashes": 5}]
    files = read_simple(json.dumps({"files": odd}).encode(), "application/json", "https://x/")
    assert [file.filename for file in files] == ["a-1.whl"]
    for body in (b"{}", b'{"versions": []}', deep):
        with pytest.raises(PageError):
            read_packument(body, "https://x/")


def test_what_a_page_says_cannot_become_markup(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            answer = await ask(packages, PAGE, {b"accept": b"text/html"})
        assert b"<script" not in answer.data
        assert answer.data.count(b"<a ") == 1

    with serving() as index:
        index.add_project("demo", yanked='"><script>', **{"requires-python": '"><script>'})
        run(check)


def test_a_page_that_decompresses_to_too_much_is_refused(tmp_path: Path, index: FakeIndex) -> None:
    headers = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b" " * 50_000_000)
    index.served["/simple/demo/"] = Served(bomb, package_pages.SIMPLE_JSON, headers=headers)

    async def check(packages: Packages) -> None:
        answer = await ask(packages, PAGE, JSON)
        assert answer.status == 502
        assert "more than 1000000 bytes" in answer.reason

    run_route(check, tmp_path, index.index(), bounds=Bounds(page=1_000_000))


def test_a_slow_kernel_does_not_hold_up_another(tmp_path: Path, index: FakeIndex) -> None:
    data = os.urandom(3_000_000)
    index.add_project("demo", data)

    async def check(packages: Packages) -> None:
        path = resolve_below(PAGE, (await ask(packages, PAGE, JSON)).files[0]["url"])
        stuck = asyncio.Event()

        class Stuck(Answer):
            async def body(self, data: bytes) -> None:
                stuck.set()
                await asyncio.Event().wait()

        names = NameResolver(THREADS)
        task = asyncio.create_task(packages.handle(_request(path), Stuck(), 1, names))
        async with asyncio.timeout(30):
            await stuck.wait()
            assert (await ask(packages, path)).data == data
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not list((tmp_path / "c" / "new").iterdir())

    run_route(check, tmp_path, index.index())
