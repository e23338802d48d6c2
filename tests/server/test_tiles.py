"""Tiles of maps by a kernel's routes, from a real server, a sandbox and a server of tiles."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from gvisor_kernel.egress.destinations import read_destination
from gvisor_kernel.egress.kinds import HostsRoute, UrlRoute
from gvisor_kernel.errors import EgressRefused
from gvisor_kernel.server.fetch_handlers import AT_ONCE, MAX_TILE, _close_late, make_tile_ask

from ..egress.upstream import Fake, Handler, make_certificate, serving
from ..jupyter.helpers import wait_until
from ..sweeps import needs_all
from .clients import Client, running_server

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
PICTURES = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff" + bytes(9),
    "webp": b"RIFF\0\0\0\x0aWEBP",
    "avif": b"\0\0\0\x0aftypavif",
}


class Tiles(Handler):
    """Answers with pictures, and with what is none."""

    def at_tile(self, query: dict[str, str]) -> None:
        self._answer(PICTURES[query["kind"]], Content_Type="text/html", Set_Cookie="a=b")

    def at_svg(self, query: dict[str, str]) -> None:
        self._answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Content_Type="image/png")

    def at_huge(self, query: dict[str, str]) -> None:
        self._answer(PNG + bytes(MAX_TILE))

    def at_none(self, query: dict[str, str]) -> None:
        self._answer(PNG, 404)

    def at_slow(self, query: dict[str, str]) -> None:
        self.fake.go.wait(60)
        self._answer(PNG)


@dataclass
class Map:
    """A kernel with routes, and the server of tiles."""

    client: Client
    upstream: Fake
    kernel: str

    def ask(self, path: str, kernel: str = "", **more: Any) -> requests.Response:
        url = path if ":" in path else f"https://127.0.0.1:{self.upstream.port}{path}"
        params = more.pop("params", {"url": url})
        return self.client.ask(
            "GET", f"kernels/{kernel or self.kernel}/tiles", params=params, **more
        )

    def run(self, code: str) -> str:
        with self.client.server.page(self.kernel) as page:
            page.execute(f"print(str({code}) + '.')")
            return str(page.wait_for_text(".")["content"]["text"])


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Map]:
    ca, both = make_certificate(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as patch, serving(both, Tiles) as upstream:
        patch.setenv("SSL_CERT_FILE", str(ca))
        here = f"127.0.0.1:{upstream.port}"
        routes: dict[str, dict[str, Any]] = {
            "web": {"hosts": [here], "allow_private": True},
            "few": {
                **{"url": f"https://{here}/few", "allow_private": True, "paths": ["/map/**"]},
                "limits": {"requests_per_minute": 3},
            },
        }
        options = (f"--GVisorEgress.routes={routes!r}", "--GVisorProvisioner.egress=['web', 'few']")
        with running_server(tmp_path_factory.mktemp("maps"), *options) as server:
            kernel = str(server.ask("POST", "kernels", name="gvisor-python")["id"])
            client = Client(server)
            wait_until(lambda: client.sandbox(kernel)["state"] in ("idle", "busy"), "the kernel")
            yield Map(client, upstream, kernel)
            server.ask("DELETE", f"kernels/{kernel}")


@pytest.fixture(autouse=True)
def fresh(maps: Map) -> None:
    maps.upstream.seen.clear()
    maps.upstream.go.clear()


@pytest.mark.parametrize("kind", PICTURES)
def test_a_tile_comes_by_the_kernels_route(maps: Map, kind: str) -> None:
    answer = maps.ask(f"/3/4/tile?kind={kind}")

    assert (answer.status_code, answer.content) == (200, PICTURES[kind]), answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    assert "a=b" not in str(answer.headers)
    (seen,) = maps.upstream.seen
    assert (seen.method, seen.path) == ("GET", f"/3/4/tile?kind={kind}")
    assert {name.lower() for name, _ in seen.headers} == {
        *("host", "accept", "accept-encoding", "user-agent")
    }


def test_it_is_a_request_of_the_kernel(maps: Map) -> None:
    maps.ask("/recorded/tile?kind=png")

    def lines() -> str:
        return str(maps.client.ask("GET", f"kernels/{maps.kernel}/log").json()["lines"])

    wait_until(lambda: "/recorded/tile by the route web: 200" in lines(), "the line in the log")
    assert "kind=png" not in lines()


def test_kernel_and_tiles_have_one_limit(maps: Map) -> None:
    """The route's paths hold for tiles, too."""
    assert maps.ask("/few/other/tile?kind=png").status_code == 502
    ask = "__import__('urllib.request').request.urlopen"
    assert maps.run(f"{ask}('http://127.0.0.1:3128/few/map/echo').status") == "200.\n"
    statuses = [maps.ask("/few/map/tile?kind=png").status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert [seen.path for seen in maps.upstream.seen] == ["/few/map/echo", "/few/map/tile?kind=png"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/svg", 415), ("/huge", 502), ("/none", 502), ("/echo", 415)),
        *(("/redirect?to=/tile", 502), ("/a//tile?kind=png", 502), ("ftp://a/b", 400)),
        *(("https://u:p@127.0.0.1/", 400), ("https://tile.example/1", 404), ("x:y", 400)),
        *(("https://127.0.0.1:1/tile", 404), ("http://127.0.0.2:1/tile", 404)),
    ],
)
def test_what_is_no_tile_is_refused(maps: Map, path: str, status: int) -> None:
    answer = maps.ask(path)

    assert answer.status_code == status, answer.text
    assert answer.json()["message"]


def test_a_kernel_without_routes_and_none_have_no_tiles(maps: Map) -> None:
    assert maps.ask("/tile?kind=png", kernel="none").status_code == 404
    assert maps.ask("", params={}).status_code == 400
    assert maps.upstream.seen == []


def test_few_tiles_are_fetched_at_once(maps: Map) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        waiting = [threads.submit(maps.ask, "/slow") for _ in range(AT_ONCE)]
        wait_until(lambda: len(maps.upstream.seen) == AT_ONCE, "the tiles to be asked for")
        assert maps.ask("/slow").status_code == 429
        maps.upstream.go.set()
        assert [each.result().content for each in waiting] == [PNG] * AT_ONCE
    assert maps.ask("/slow").ok


@needs_all  # it takes ten seconds
def test_a_tile_that_takes_long_is_given_up(maps: Map) -> None:
    assert maps.ask("/slow").status_code == 504


def test_a_socket_that_comes_too_late_is_closed() -> None:
    one, other = socket.socketpair()
    opening: Future[socket.socket] = Future()
    opening.add_done_callback(_close_late)
    opening.set_result(one)
    with other:
        assert other.recv(1) == b""


def test_a_route_with_an_url_gives_what_lies_below() -> None:
    named = UrlRoute("osm", "https://tile.example/a")
    hosts = HostsRoute("web", ("*.tile.example:443",))
    below = make_tile_ask(read_destination("https://tile.example/a/1.png?x"), (named, hosts))
    assert below.target == "/osm/1.png?x"
    whole = make_tile_ask(read_destination("https://b.tile.example/1.png"), (named, hosts))
    assert (whole.target, whole.host) == ("https://b.tile.example/1.png", "b.tile.example")
    for other in ("https://tile.example/b", "http://b.tile.example/", "https://c.example/"):
        with pytest.raises(EgressRefused):
            make_tile_ask(read_destination(other), (named, hosts))
