"""Where the route ``packages`` connects to, with and without a proxy, and what it reads there."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress import addresses, package_upstream, upstream
from gvisor_kernel.egress.addresses import NameResolver
from gvisor_kernel.egress.package_index import Index
from gvisor_kernel.egress.package_pages import SIMPLE_JSON
from gvisor_kernel.egress.package_upstream import NAMES as KERNEL_NAMES
from gvisor_kernel.egress.package_upstream import Hosts
from gvisor_kernel.egress.refusals import Unreachable, UpstreamFailed
from gvisor_kernel.egress.upstream import MAX_INTERIM, MAX_LINES, connect

from ..patience import scale_seconds
from .indexes import JSON, THREADS, Served, ask, resolve_below, route, serving
from .test_packages import PAGE, run

NAMES = {
    "public.example": "8.8.8.8",
    "inner.example": "10.0.0.1",
    **dict.fromkeys(["here.example", "proxy.example"], "127.0.0.1"),
}


@pytest.fixture
def known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NAMES resolve, and no other name."""
    find = socket.getaddrinfo

    def find_known(host: Any, *arguments: Any, **named: Any) -> Any:
        if str(host).endswith(".example") and host not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return find(NAMES.get(host, host), *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", find_known)


HOSTS = {
    **dict.fromkeys(["public.example", "8.8.8.8", "index.example"], 200),
    **dict.fromkeys(["inner.example", "here.example", "unknown.example", "localhost"], 502),
    **dict.fromkeys(["10.0.0.1", "[::1]", "169.254.169.254", "010.0.0.1", "0x7f.1"], 502),
    **dict.fromkeys(["2130706433", "index.example:8080"], 502),
}


def test_a_proxy_is_asked_only_for_the_index_and_the_public_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_names: None
) -> None:
    """Only the proxy knows where index.example is; it would answer for any other host, too."""

    async def check() -> None:
        async with route(tmp_path / "c", Index("http://index.example/simple/")) as packages:
            listed = await ask(packages, PAGE, JSON)
            assert len(listed.files) == len(hosts)
            for file in listed.files:
                answer = await ask(packages, resolve_below(PAGE, file["url"]))
                url, host = files[file["filename"]]
                assert (host, answer.status) == (host, hosts[host])
                assert (host, url in proxy.paths) == (host, hosts[host] == 200)

    for name in ("no_proxy", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving() as proxy:
        itself = f"proxy.example:{proxy.url.rpartition(':')[2]}"
        monkeypatch.setenv("http_proxy", f"http://{itself}")
        hosts = {**HOSTS, itself: 502}
        files = {f"demo-{n}.tar.gz": (f"http://{host}/x", host) for n, host in enumerate(hosts)}
        page = {"files": [{"filename": name, "url": url} for name, (url, _) in files.items()]}
        proxy.served = {url: Served(b"answer") for url, _ in files.values()}
        body = json.dumps(page).encode()
        proxy.served["http://index.example/simple/demo/"] = Served(body, SIMPLE_JSON)
        run(check)


# -- addresses -------------------------------------------------------------------------------------


class Never(NameResolver):
    async def resolve(self, host: str, port: int) -> list[str]:
        return await asyncio.Event().wait() and []


def test_a_name_that_waits_does_not_make_its_host_count_as_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may wait for other names of its kernel. An index's own does not, and counts."""
    monkeypatch.setattr(package_upstream, "NAME_SECONDS", 0.01)
    monkeypatch.setitem(addresses.resolve.__kwdefaults__, "seconds", 0.01)

    async def check() -> None:
        KERNEL_NAMES.set(Never(THREADS))
        hosts = Hosts(Never(THREADS), ("index.example", 443))
        with pytest.raises(UpstreamFailed) as caught:
            await hosts.resolve("files.example", 443)
        assert not isinstance(caught.value, Unreachable)
        with pytest.raises(Unreachable):
            await hosts.resolve("index.example", 443)

    run(check)


@pytest.mark.parametrize("first", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3", "::1"]])
def test_the_next_address_is_used_if_one_refuses(first: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [*first, "127.0.0.1"]

    async def check() -> None:
        with serving() as index:
            port = int(index.url.rpartition(":")[2])
            sock = await connect("index.example", port, resolve)
            assert sock.getpeername()[0] == "127.0.0.1"
            sock.close()
            with pytest.raises(Unreachable):
                await connect("index.example", port, refusing)

    async def refusing(host: str, port: int) -> list[str]:
        return first

    run(check)


def test_an_address_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "NEXT_SECONDS", 0.01)

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async def check() -> None:
        with serving() as index, socket.socket() as silent:
            port = int(index.url.rpartition(":")[2])
            silent.bind(("127.0.0.2", port))
            silent.listen(0)
            full = [socket.socket() for _ in range(4)]  # nobody accepts: no place is left
            for each in full:
                each.setblocking(False)
                each.connect_ex(("127.0.0.2", port))
            async with asyncio.timeout(scale_seconds(20)):
                sock = await connect("index.example", port, resolve)
            assert sock.getpeername()[0] == "127.0.0.1"
            for each in (sock, *full):
                each.close()

    run(check)


# -- heads of answers ------------------------------------------------------------------------------

PAGE_BODY = json.dumps({"files": []}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.pypi.simple.v1+json\r\n%s"
ANSWER += b"Content-Length: %d\r\n\r\n%s" % (len(PAGE_BODY), PAGE_BODY)
INTERIM = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"


def _endless() -> Iterable[bytes]:
    while True:
        yield INTERIM * 1000


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ([INTERIM * MAX_INTERIM, ANSWER % b""], 200),
        (_endless(), 502),
        ([ANSWER % (b"a:\r\n" * MAX_LINES)], 502),
        ([ANSWER % (b"a: " + b"x" * 70_000 + b"\r\n")], 502),
    ],
    ids=["few interim", "interim without end", "many lines", "many bytes"],
)
def test_heads_of_answers_are_bounded(tmp_path: Path, bad: Iterable[bytes], status: int) -> None:
    """Also that of a second answer on one connection."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER % b"")
            await reader.readuntil(b"\r\n\r\n")
            for data in bad:
                writer.write(data)
                await writer.drain()
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()
            ended.set()

    async def check() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(scale_seconds(20)):
            async with route(tmp_path / "c", Index(f"http://127.0.0.1:{port}/simple/")) as packages:
                assert (await ask(packages, PAGE)).status == 200
                assert (await ask(packages, "/packages/pypi/simple/second/")).status == status
            await ended.wait()
        server.close()

    run(check)
