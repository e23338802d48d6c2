"""The route ``packages`` against an index on the loopback: what it answers, keeps and refuses."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import hashlib
import json
import os
import re
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress import package_catalog, package_pages
from gvisor_kernel.egress.package_cache import PackageCache
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import File, PageError, read_packument, read_simple
from gvisor_kernel.egress.package_upstream import Backend, Forbidden
from gvisor_kernel.egress.packages import MAX_PAGES_AT_ONCE, Packages
from gvisor_kernel.egress.refusals import UpstreamFailed

from ..patience import scale_seconds
from .indexes import (
    JSON,
    Answer,
    FakeIndex,
    Head,
    Request,
    Served,
    ask,
    make_wheel,
    resolve_below,
    route,
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


def test_a_page_is_json_or_html_as_the_client_asks(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            as_json = await ask(packages, PAGE, JSON)
            as_html = await ask(packages, PAGE, {b"accept": b"text/html"})
            either = await ask(packages, PAGE, {b"accept": package_pages.ACCEPT_SIMPLE.encode()})
        assert as_json.files[0]["filename"] == name
        assert as_json.files[0]["requires-python"] == ">=3.8"
        assert b'data-requires-python="&gt;=3.8"' in as_html.data
        assert as_html.headers[b"Content-Type"] == b"text/html"
        assert either.data == as_json.data

    with serving() as index:
        name = index.add_project("demo", **{"requires-python": ">=3.8"})
        run(check)


def test_a_page_is_parsed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def note(data: bytes, kind: str, url: str) -> package_pages.Page:
        parsed.append(data)
        return read_simple(data, kind, url)

    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            for _ in range(3):
                assert (await ask_file(packages)).data == wheel
            assert len(parsed) == 1
            index.add_project("demo", wheel, size=len(wheel))
            assert (await ask(packages, PAGE, JSON)).files[0]["size"] == len(wheel)
            assert len(parsed) == 2
            for number in range(package_catalog.MAX_PARSED):
                index.add_project(f"other{number}")
                await ask(packages, f"/packages/pypi/simple/other{number}/", JSON)
            assert len(packages._catalog._parsed) == package_catalog.MAX_PARSED
            await ask(packages, PAGE, JSON)
            assert len(parsed) == package_catalog.MAX_PARSED + 3

    monkeypatch.setattr(package_catalog, "read_simple", note)
    with serving() as index:
        wheel = make_wheel("demo")
        index.add_project("demo", wheel)
        run(check)


def test_a_large_parsed_page_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            await ask(packages, PAGE, JSON)
            assert not packages._catalog._parsed

    monkeypatch.setattr(package_catalog, "MAX_PARSED_BYTES", 10)
    with serving() as index:
        index.add_project("demo")
        run(check)


def test_an_address_upstream_is_not_shown(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            for headers in (JSON, {}):
                assert b"token=secret" not in (await ask(packages, PAGE, headers)).data
            assert (await ask_file(packages)).data == wheel

    with serving() as index:
        wheel = make_wheel("demo")
        url = "/files/demo-1.0-py3-none-any.whl?token=secret"
        index.add_project("demo", wheel, url=f"{index.url}{url}")
        index.served[url] = Served(wheel)
        run(check)


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


def test_an_index_that_refuses_says_so(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            answer = await ask(packages, PAGE, JSON)
        assert answer.status == 403
        assert "credentials" in answer.reason

    with serving() as index:
        index.served["/simple/demo/"] = Served(status=401)
        run(check)


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


def test_many_requests_at_once_make_one_download(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            answers = await asyncio.gather(*(ask_file(packages) for _ in range(20)))
        assert {answer.data for answer in answers} == {data}

    with serving() as index:
        data = os.urandom(3_000_000)
        name = index.add_project("demo", data)
        run(check)
    assert index.paths.count(f"/files/{name}") == 1


def test_a_file_without_a_digest_is_asked_for_again_unless_offline(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask_file(packages)).data == b"one"
            index.served[f"/files/{name}"] = Served(b"two")
            assert (await ask_file(packages)).data == b"two"
            index.stop()
            assert (await ask_file(packages)).data == b"two"

    with serving() as index:
        name = index.add_project("demo", b"one", hashes={})
        run(check)


def test_metadata_is_had_without_the_wheel(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask_file(packages, suffix=".metadata")).data == metadata
            index.stop()
            assert (await ask_file(packages, suffix=".metadata")).data == metadata

    with serving() as index:
        metadata = b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n"
        name = index.add_project("demo", **{"core-metadata": {"sha256": sha256(metadata)}})
        index.served[f"/files/{name}.metadata"] = Served(metadata)
        run(check)
    assert f"/files/{name}" not in index.paths


def test_the_files_used_longest_ago_are_removed_first(tmp_path: Path) -> None:
    cache = PackageCache.open(tmp_path / "c", limit=30_000)
    names = []
    for number in range(5):
        data = bytes([number]) * 10_000
        incoming = cache.new_file({"sha256": sha256(data)})
        incoming.write(data)
        incoming.keep("x")
        incoming.close()
        names.append(sha256(data))
        os.utime(cache._place("files", sha256(data)), (number, number))
    cache.trim()
    left = [bool(fd) for fd in (cache.open_file({"sha256": name}, "x") for name in names) if fd]
    assert cache.measure() <= 30_000
    assert left
    assert cache.open_file({"sha256": names[0]}, "x") is None


def test_a_damaged_file_of_the_cache_is_removed(tmp_path: Path) -> None:
    cache = PackageCache.open(tmp_path / "c")
    hashes = {"sha256": sha256(b"right")}
    incoming = cache.new_file(hashes)
    incoming.write(b"right")
    incoming.keep("x")
    incoming.close()
    path = cache._place("files", hashes["sha256"])
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


# -- attacks ---------------------------------------------------------------------------------------


def test_a_forged_token_gets_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            listed = (await ask(packages, PAGE, JSON)).files
            good = resolve_below(PAGE, listed[0]["url"])
            token = re.findall(r"[0-9a-f]{40}", good)[0]
            second = resolve_below(PAGE, listed[1]["url"])
            seen = len(index.seen)
            for bad in (
                good.replace(token, "0" * 40),
                good.replace(token, token[:-1]),
                good.replace(token, ""),
                good.replace(token, "é"),
                good.replace("/demo/", "/other/"),
                good.replace("/demo/", "/Demo/"),
                good.replace("demo-1.0", "demo-9.9"),
                second.replace("demo-2.0", "demo-1.0"),
                good + ".metadata",
                good + "/",
                good.replace("/packages/pypi/files/", "/packages/pypi/files/http://127.0.0.1/"),
            ):
                assert (await ask(packages, bad)).status in (404, 405), bad
            files = {path for path in index.paths[seen:] if path.startswith("/files/")}
            assert not files

    with serving() as index:
        name = index.add_project("demo")
        file = {"filename": name, "url": f"{index.url}/files/{name}"}
        index.add_page("demo", [file, file | {"filename": "demo-2.0-py3-none-any.whl"}])
        run(check)


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
def test_no_odd_path_reaches_an_index(tmp_path: Path, path: str) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index(), npm=index.index()) as packages:
            assert (await ask(packages, path)).status == 404

    with serving() as index:
        index.add_project("demo")
        run(check)
    assert not index.seen


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_is_sent_to_an_index(tmp_path: Path, method: str) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask(packages, PAGE, method=method)).status == 405

    with serving() as index:
        run(check)
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


def test_endless_redirects_end(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask(packages, PAGE, JSON)).status == 502

    with serving() as index:
        index.served["/simple/demo/"] = Served(status=302, headers={"Location": "/simple/demo/"})
        run(check)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.1.2.3"),
        *("224.0.0.1", "::1", "fd00::1", "fe80::1%eth0", "::ffff:127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "nonsense"),
    ],
)
def test_a_name_with_an_inner_address_is_refused(address: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", address] if host == "evil.example" else ["8.8.4.4"]

    async def check() -> None:
        with pytest.raises(Forbidden):
            await Backend(resolve, ("index.example", 443)).connect_tcp("evil.example", 443, 1.0)

    run(check)


def test_a_file_with_a_wrong_digest_is_never_complete(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            listed = await ask(packages, PAGE, JSON)
            answer = Answer()
            path = resolve_below(PAGE, listed.files[0]["url"])
            with pytest.raises(UpstreamFailed):
                await packages.handle(_request(path), answer)
            assert not answer.complete
            assert len(answer.data) < len(data)
            assert not list((tmp_path / "c" / "files").rglob("?" * 64))
            assert not list((tmp_path / "c" / "new").iterdir())

    with serving() as index:
        data = os.urandom(1_000_000)
        index.add_project("demo", data, hashes={"sha256": sha256(b"another")})
        run(check)


def _request(path: str) -> Any:
    from .indexes import Head, Request

    return Request(Head(path.encode()))


def test_a_file_that_breaks_off_is_not_kept(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            with pytest.raises(UpstreamFailed):
                await ask_file(packages)
            assert not list((tmp_path / "c" / "new").iterdir())

    with serving() as index:
        data = os.urandom(500_000)
        name = index.add_project("demo", data)
        headers = {"Content-Length": "900000"}
        index.served[f"/files/{name}"] = Served(data, headers=headers)
        run(check)


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


def test_a_hostile_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b'{"files": ' + b"[" * 500 + b"]" * 500 + b"}"
    many = json.dumps({"files": [{}] * 11}).encode()
    monkeypatch.setattr(package_pages, "MAX_FILES", 10)
    for body in (deep, many, b"", b"[]", b'{"files": 1}', b"\xff\xfe", b'{"files": [' * 99):
        with pytest.raises(PageError):
            read_simple(body, package_pages.SIMPLE_JSON, "https://x/simple/d/")
    with pytest.raises(PageError):
        read_simple(b"<a href=x>" * 11, "text/html", "https://x/")
    with pytest.raises(PageError):
        read_simple(b"{}", "image/png", "https://x/")
    odd = [None, 1, "x", [], {"filename": 1}, {"filename": "a-1.whl", "url": "/a", "hashes": 5}]
    page = read_simple(json.dumps({"files": odd}).encode(), "application/json", "https://x/")
    assert [file.filename for file in page.files] == ["a-1.whl"]
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


def test_a_page_that_decompresses_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvisor_kernel.egress.package_catalog.MAX_PAGE", 1_000_000)

    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            answer = await ask(packages, PAGE, JSON)
        assert answer.status == 502
        assert "more than 1000000 bytes" in answer.reason

    with serving() as index:
        headers = {"Content-Encoding": "gzip"}
        bomb = gzip.compress(b" " * 50_000_000)
        index.served["/simple/demo/"] = Served(bomb, package_pages.SIMPLE_JSON, headers=headers)
        run(check)


def test_a_slow_kernel_does_not_hold_up_another(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            path = resolve_below(PAGE, (await ask(packages, PAGE, JSON)).files[0]["url"])
            stuck = asyncio.Event()

            class Stuck(Answer):
                async def body(self, data: bytes) -> None:
                    stuck.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(packages.handle(_request(path), Stuck()))
            async with asyncio.timeout(30):
                await stuck.wait()
                assert (await ask(packages, path)).data == data
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not list((tmp_path / "c" / "new").iterdir())

    with serving() as index:
        data = os.urandom(3_000_000)
        index.add_project("demo", data)
        run(check)


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


def test_a_tarball_with_a_wrong_integrity_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", npm=Index(f"{index.url}/")) as packages:
            document = json.loads((await ask(packages, "/packages/npm/demo")).data)
            tarball = document["versions"]["1.0.0"]["dist"]["tarball"]
            with pytest.raises(UpstreamFailed):
                await ask(packages, resolve_below("/", tarball))

    with serving() as index:
        wrong = base64.b64encode(hashlib.sha512(b"other").digest()).decode()
        make_document(index, "demo", b"tarball", f"sha512-{wrong}")
        run(check)


def test_errors_of_a_host_are_told_apart(tmp_path: Path) -> None:
    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            assert (await ask_file(packages)).status == 404
            index.served[f"/files/{name}"] = Served(status=500)
            assert (await ask_file(packages)).status == 502

    with serving() as index:
        name = index.add_project("demo")
        del index.served[f"/files/{name}"]
        run(check)


@pytest.mark.parametrize("path", [PAGE, "/packages/npm/demo"])
def test_what_an_answer_was_made_of_is_released_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    made: list[weakref.ref[File]] = []

    def make_file(*arguments: Any) -> File:
        made.append(weakref.ref(file := File(*arguments)))
        return file

    class Slow(Answer):
        async def body(self, data: bytes) -> None:
            gc.collect()
            assert made
            assert not [ref for ref in made if ref() is not None]
            await super().body(data)

    async def check() -> None:
        async with route(tmp_path / "c", index.index(), npm=Index(f"{index.url}/")) as packages:
            index.add_project("demo")
            dist = {"tarball": f"{index.url}/demo-1.0.tgz", "shasum": "0" * 40}
            document = {"name": "demo", "versions": {"1.0": {"dist": dist}}}
            index.served["/demo"] = Served(json.dumps(document).encode(), "application/json")
            answer = Slow()
            await packages.handle(Request(Head(path.encode(), JSON)), answer)
            assert (answer.status, answer.complete) == (200, True)

    monkeypatch.setattr(package_pages, "File", make_file)
    monkeypatch.setattr(package_catalog, "MAX_PARSED_BYTES", 0)  # keep no page for the next request
    with serving() as index:
        run(check)


def test_readers_that_stop_hold_no_place_in_memory(tmp_path: Path) -> None:
    """More pages than may be made at once wait for their readers, and one more is answered."""

    class Stalled(Answer):
        async def body(self, data: bytes) -> None:
            await asyncio.Event().wait()

    async def check() -> None:
        async with route(tmp_path / "c", index.index()) as packages:
            answers = [Stalled() for _ in range(2 * MAX_PAGES_AT_ONCE)]
            waiting = [
                asyncio.create_task(packages.handle(Request(Head(PAGE.encode(), JSON)), answer))
                for answer in answers
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
