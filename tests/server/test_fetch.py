"""Requests of pages to the network, by REST from a real server and the process for its routes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from gvisor_kernel.host.processes import wait_until_gone
from gvisor_kernel.server.fetch_handlers import read_page_request

from ..egress.upstream import Handler, make_certificate, serving
from ..jupyter.helpers import SECONDS, wait_until
from ..patience import scale_seconds
from ..sweeps import needs_all
from .clients import running_server
from .fetching import Fetcher, Reader, worker_of

KEY = "sk-test-8f2c51d09b7e4c"
PREFIX = "/user/ann"


class Upstream(Handler):
    """An API: what its other paths do is in ``Handler``."""

    def at_messages(self, query: dict[str, str]) -> None:
        headers = {name.lower() for name, _ in self.fake.seen[-1].headers}
        text = json.dumps({"key": self.fake.seen[-1].values("x-api-key"), "names": sorted(headers)})
        self.send_response(200, f"for {KEY}")
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(text))),
            ("Set-Cookie", "a=b"),
            ("X-Other", "other"),
            ("Request-Id", "r1"),
            ("Retry-After", KEY),
            ("X-RateLimit-Left", "3"),
            ("Access-Control-Allow-Origin", "*"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def at_reset(self, query: dict[str, str]) -> None:
        """End the connection without an answer."""
        self.close_connection = True


ROUTES: dict[str, dict[str, Any]] = {
    "claude": {"secret": "env:GK_TEST_SECRET", "header": "x-api-key: {secret}"},
    "narrow": {"base": "/narrow", "methods": ["GET"], "paths": ["/v1/**"]},
    "small": {"base": "/small", "limits": {"request_bytes": 10, "response_bytes": 20}},
    "few": {"base": "/few", "limits": {"requests_per_minute": 2}},
    # Its name is its own: what a day has spent is kept by name for all tests of a process.
    "daily-pages": {"base": "/daily", "limits": {"daily_requests": 2}},
    "short": {"base": "/short", "limits": {"seconds": 1}},
    "closed": {"base": "/closed", "artifacts": False},
}


def write_routes(port: int) -> str:
    routes = {}
    for name, given in ROUTES.items():
        route = dict(given)
        url = f"https://127.0.0.1:{port}{route.pop('base', '')}"
        routes[name] = {"url": url, "allow_private": True, "artifacts": True, **route}
    return repr(routes)


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetcher]:
    ca, both = make_certificate(tmp_path_factory.mktemp("tls"))
    folder = tmp_path_factory.mktemp("fetch")
    with pytest.MonkeyPatch.context() as patch, serving(both, Upstream) as upstream:
        patch.setenv("SSL_CERT_FILE", str(ca))
        patch.setenv("GK_TEST_SECRET", KEY)
        routes = f"--GVisorEgress.routes={write_routes(upstream.port)}"
        options = (f"--ServerApp.base_url={PREFIX}/", routes)
        with running_server(folder, *options, prefix=PREFIX) as server:
            yield Fetcher(server, upstream)


@pytest.fixture(autouse=True)
def fresh(fetcher: Fetcher) -> None:
    fetcher.upstream.seen.clear()
    fetcher.upstream.go.clear()
    fetcher.upstream.gone.clear()


def test_a_page_talks_to_an_api_without_its_key(fetcher: Fetcher) -> None:
    headers = [
        ["Content-Type", "application/json"],
        ["anthropic-version", "2023-06-01"],
        *(["X-Api-Key", "mine"], ["x_api_key", "mine"], ["Authorization", "Bearer mine"]),
        *(["Cookie", "a=b"], ["Origin", "null"], ["Host", "evil"], ["Referer", "x"]),
        *(["Connection", "x"], ["Transfer-Encoding", "chunked"], ["X-Forwarded-For", "1.1.1.1"]),
    ]
    parts = fetcher.read("/v1/messages?x=1", b'{"a": 1}', method="POST", headers=headers)
    (seen,) = fetcher.upstream.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/v1/messages?x=1", b'{"a": 1}')
    assert seen.values("x-api-key") == [KEY]
    assert parts.whom == {"host": f"127.0.0.1:{fetcher.upstream.port}", "route": "claude"}
    assert parts.why == ""
    assert parts.head["status"] == 200
    assert dict(parts.head["headers"]) | {"date": ""} == {
        "content-type": "application/json",
        "content-length": str(len(parts.body)),
        "date": "",
        "request-id": "r1",
        "x-ratelimit-left": "3",
    }
    answer = json.loads(parts.body)
    assert answer["key"] == ["*" * len(KEY)]  # the server has quoted it
    assert answer["names"] == [
        *("accept-encoding", "anthropic-version", "content-length", "content-type", "host"),
        *("user-agent", "x-api-key"),
    ]
    assert KEY not in repr(parts)


def test_the_rules_and_limits_of_a_route_hold(fetcher: Fetcher) -> None:
    def status(path: str, body: bytes = b"", **more: Any) -> tuple[int, str]:
        parts = fetcher.read(path, body, **more)
        return parts.head["status"], parts.body.decode()

    assert status("/narrow/v1/x")[0] == 200
    wrong_method = status("/narrow/v1/x", method="POST")
    assert wrong_method[0] == 403
    assert "does not allow the method POST" in wrong_method[1]
    assert "does not allow this path" in status("/narrow/v2/x")[1]
    for path in ("/narrow/v1/../x", "/narrow//v1", "/narrow/v1/%2e%2e/x", "/narrow/v1;a/b"):
        assert "read in different ways" in status(path)[1], path
    seen = [seen.path for seen in fetcher.upstream.seen]
    assert seen == ["/narrow/v1/x"]
    assert status("/small/x", b"x" * 11, method="POST")[0] == 413
    assert [status("/few/x")[0] for _ in range(3)] == [200, 200, 429]
    other = fetcher.ticket("other.html")
    assert status("/few/x", ticket=other)[0] == 200  # it counts for one page
    assert [status("/daily/x", ticket=t)[0] for t in (None, other, None)] == [200, 200, 429]
    cut = fetcher.read("/small/echo?" + "x" * 30)
    assert "a limit of the route" in str(cut.why)
    late = fetcher.read("/short/wait")
    assert late.head["status"] == 504


def test_requests_are_recorded_by_page(
    fetcher: Fetcher, capsys: pytest.CaptureFixture[str]
) -> None:
    from gvisor_kernel.cli.main import main

    ticket = fetcher.ticket("recorded.html")
    fetcher.read("/v1/a?secret", b"12345", ticket=ticket, method="POST")
    fetcher.read("/narrow/v2/x", ticket=ticket)
    place = str(fetcher.client.server.folder / "recorded.html")
    capsys.readouterr()
    assert main(["egress", "log", place, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["method"], first["path"], first["status"], first["up"]) == (
        *("POST", "/claude/v1/a", 200, 5),
    )
    assert "does not allow this path" in second["reason"]
    assert main(["egress", "pages"]) == 0
    assert "recorded.html" in capsys.readouterr().out


def test_what_comes_is_passed_on_at_once(fetcher: Fetcher) -> None:
    with fetcher.ask("/v1/events") as answer:
        reader = Reader(answer)
        assert json.loads(reader.next())["route"] == "claude"
        head = json.loads(reader.next())
        assert ["content-type", "text/event-stream"] in head["headers"]
        assert reader.next() == b"data: 0\n\n"  # the server waits meanwhile
        fetcher.upstream.go.set()
        assert reader.next() == b"data: 1\n\n"
        assert reader.next() == b""
        assert answer.raw.read() == b""


def test_a_page_is_told_whom_it_talks_to_before_the_answer(fetcher: Fetcher) -> None:
    with fetcher.ask("/v1/wait") as answer:
        reader = Reader(answer)
        assert json.loads(reader.next())["host"].startswith("127.0.0.1:")
        fetcher.upstream.go.set()
        assert json.loads(reader.next())["status"] == 200


def test_no_redirect_is_followed(fetcher: Fetcher) -> None:
    for to, shown in (
        ("https://evil.example/x", "https://evil.example/x"),
        ("/v1/next", f"{fetcher.api}/v1/next"),
        (f"{fetcher.api}/v1/next", f"{fetcher.api}/v1/next"),
    ):
        parts = fetcher.read(f"/v1/redirect?to={to}")
        assert parts.head["status"] == 302
        assert dict(parts.head["headers"])["location"] == shown
    assert len(fetcher.upstream.seen) == 3


def test_without_a_route_a_text_says_so(fetcher: Fetcher) -> None:
    status, text = fetcher.refusal("https://api.other.example/v1")
    assert status == 404
    assert "Pages have no route to https://api.other.example." in text
    assert '"artifacts": True' in text
    for url in (
        f"http://127.0.0.1:{fetcher.upstream.port}/v1",
        f"https://localhost:{fetcher.upstream.port}/v1",
        "https://127.0.0.1/v1",
        f"https://127.0.0.1.:{fetcher.upstream.port}/v1",
        f"https://a@127.0.0.1:{fetcher.upstream.port}/v1",
        "file:///etc/passwd",
        f"{fetcher.client.api}/sandboxes",
    ):
        assert fetcher.refusal(url)[0] == 404, url
    # A route of kernels is none of pages: what is below it belongs to another one here.
    assert fetcher.read("/closed/x").whom["route"] == "claude"


@pytest.mark.parametrize("path", ["/v1/reset", "/v1/unframed", "/v1/switch"])
def test_a_server_that_gives_no_answer_is_told(fetcher: Fetcher, path: str) -> None:
    parts = fetcher.read(path)
    assert parts.head["status"] == 502
    assert "gvisor-kernel: " in parts.body.decode()


@pytest.mark.parametrize("path", ["/v1/cut", "/v1/shorter"])
def test_an_answer_that_breaks_off_is_told(fetcher: Fetcher, path: str) -> None:
    parts = fetcher.read(path)
    assert parts.head.get("status", 200) == 200  # what comes just before the end may be lost
    assert "the answer" in str(parts.why)


def test_a_request_ends_with_its_reader(fetcher: Fetcher) -> None:
    with fetcher.ask("/v1/endless") as answer:
        reader = Reader(answer)
        for _ in range(3):
            reader.next()
    assert fetcher.upstream.gone.wait(SECONDS)
    # While the server has not answered yet, too: then its place is free again.
    for _ in range(20):
        with fetcher.ask("/v1/wait") as answer:
            Reader(answer).next()
    wait_until(lambda: fetcher.ask("/v1/x").status_code == 200, "a place to be free")


def test_a_process_that_is_killed_ends_its_requests_alone(fetcher: Fetcher) -> None:
    with fetcher.ask("/v1/events") as answer:
        reader = Reader(answer)
        for _ in range(3):
            reader.next()
        pid = worker_of(fetcher.client.server)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert reader.next() == b""
        assert b"process for routes has ended" in answer.raw.read()
    assert fetcher.read("/v1/x").head["status"] == 200
    assert worker_of(fetcher.client.server) not in (None, pid)


def test_too_many_requests_at_once_are_refused(fetcher: Fetcher) -> None:
    """A hundred of five pages: eight of each, and thirty-two of all."""
    tickets = [fetcher.ticket(f"many{i}.html") for i in range(5)]
    answers: list[requests.Response] = []
    try:
        with ThreadPoolExecutor(20) as pool:
            asked = [
                pool.submit(fetcher.ask, "/v1/wait", ticket=ticket)
                for _ in range(20)
                for ticket in tickets
            ]
            answers = [future.result() for future in asked]
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (32, 68)
        texts = {a.json()["message"].partition(",")[0] for a in answers if a.status_code == 429}
        assert texts <= {
            "This page has 8 requests open",
            "Pages of this server have 32 requests open",
        }
        fetcher.upstream.go.set()
        for answer in answers:
            if answer.status_code == 200:
                assert Reader(answer).rest().head["status"] == 200
    finally:
        for answer in answers:
            answer.close()
    assert fetcher.read("/v1/x").head["status"] == 200


def test_a_page_that_has_too_many_open_leaves_places_for_others(fetcher: Fetcher) -> None:
    ticket = fetcher.ticket()
    open_ = [fetcher.ask("/v1/wait", ticket=ticket) for _ in range(8)]
    status, text = fetcher.refusal("/v1/wait", ticket=ticket)
    assert (status, text.partition("\n")[0]) == (
        429,
        "This page has 8 requests open, which is the most.",
    )
    assert fetcher.read("/v1/x", ticket=fetcher.ticket("other.html")).head["status"] == 200
    for answer in open_:
        answer.close()


def test_a_request_without_a_ticket_is_refused(fetcher: Fetcher) -> None:
    # A path of its own: requests that an earlier test gave up may still arrive.
    for ticket in ("x.y", "", ["x"], fetcher.ticket()[:-1] + "!"):
        assert fetcher.ask("/v1/refused", ticket=ticket or " ").status_code == 403, ticket
    bare = fetcher.client.ask("POST", "fetch", headers={}, data=b"")
    assert bare.status_code == 403
    assert "/v1/refused" not in [seen.path for seen in fetcher.upstream.seen]


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"x", b"[]", b"null", b'{"url": 1}', b'{"url": "https://a/", "method": "TRACE"}'),
        *(b'{"url": "https://a/", "method": ["GET"]}', b'{"url": "https://a/", "headers": {}}'),
        b'{"url": "https://a/", "headers": [["accept"]]}',
        b'{"url": "https://a/", "headers": [["accept", 1]]}',
        b'{"url": "https://a/", "headers": [["accept", "a\\r\\nx: y"]]}',
        b'{"url": "https://a/", "headers": [["accept", "\\u00e9"]]}',
        b"[" * 100_000,
        b'{"a": "' + b"x" * 200_000 + b'"}',
    ],
)
def test_a_request_that_is_none_is_refused(fetcher: Fetcher, head: bytes) -> None:
    assert fetcher.send(head).status_code == 400
    assert fetcher.client.ask("POST", "fetch", data=b"\xff" * 4 + head).status_code == 400
    assert fetcher.client.ask("POST", "fetch", data=b"\0\0").status_code == 400


def test_a_request_may_have_32_mib(fetcher: Fetcher) -> None:
    with fetcher.ask("/v1/x", bytes(32 * 1024**2 + 1), method="POST") as answer:
        assert answer.status_code == 413
    parts = fetcher.read("/v1/x", bytes(16 * 1024**2), method="POST")
    assert json.loads(parts.body)["size"] == 16 * 1024**2
    # Above the limit of the route, below that of the server.
    assert fetcher.read("/v1/x", bytes(20 * 1024**2), method="POST").head["status"] == 413


def test_the_body_of_a_request_is_not_copied() -> None:
    head = b'{"url": "https://a.example/"}'
    content = len(head).to_bytes(4, "big") + head + b"body"
    body = read_page_request(content).body
    assert bytes(body) == b"body"
    assert body.obj is content


@needs_all
def test_the_process_ends_with_the_server(fetcher: Fetcher, tmp_path: Path) -> None:
    routes = {"a": {"url": fetcher.api, "allow_private": True, "artifacts": True}}
    with running_server(tmp_path, f"--GVisorEgress.routes={routes!r}") as server:
        own = Fetcher(server, fetcher.upstream)
        assert own.read("/v1/x").head["status"] == 200
        pid = worker_of(server)
        assert pid is not None
    assert wait_until_gone([pid], time.monotonic() + scale_seconds(10))


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@needs_all
def test_a_gigabyte_passes_with_little_memory(fetcher: Fetcher) -> None:
    process = fetcher.client.server.process
    assert process is not None
    assert fetcher.read("/v1/x").head["status"] == 200
    worker = worker_of(fetcher.client.server)
    assert worker is not None
    before = {pid: resident(pid) for pid in (process.pid, worker)}
    with fetcher.ask("/v1/big?mib=1023") as answer:
        reader = Reader(answer)
        reader.next()
        reader.next()
        size = 0
        while part := reader.next():
            size += len(part)
        assert answer.raw.read() == b""
    assert size == 1023 * 1024**2
    for pid, was in before.items():
        assert resident(pid) - was < 64 * 1024**2


@needs_all
def test_an_answer_that_nobody_reads_is_given_up(fetcher: Fetcher) -> None:
    with fetcher.ask("/v1/endless") as answer:
        Reader(answer).next()
        assert fetcher.upstream.gone.wait(scale_seconds(120))
