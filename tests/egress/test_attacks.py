"""What a sandbox may try against the worker, and against servers through it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gvisor_kernel.egress.audit import FILE, Count, Entry, describe_entry, read_entries
from gvisor_kernel.egress.process import EgressWorker

from ..patience import scale_seconds
from .conftest import SECRET, Kernel, OpenKernel
from .peer import body_of, status_of
from .upstream import Fake

HEAD = "Host: 127.0.0.1:3128\r\n"


@pytest.mark.parametrize(
    "rest",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /plain/evil",
        "Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\nGET /plain/evil",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /plain/evil",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /plain/evil",
        "X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /plain/evil",
        "X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /plain/evil",
        "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\nGET /plain/evil",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabcGET /plain/evil",
        "Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n" + "f" * 30 + "\r\nabc",
    ],
)
def test_a_smuggled_request_is_not_sent(kernel: Kernel, upstream: Fake, rest: str) -> None:
    raw = f"POST /plain/first HTTP/1.1\r\n{HEAD}{rest} HTTP/1.1\r\n{HEAD}\r\n"
    answer = kernel.wait(kernel.open(raw.encode(), finish=True))
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not [seen for seen in upstream.seen if "evil" in seen.path]


@pytest.mark.parametrize(
    "host",
    [
        *("example.org", "127.0.0.1", "127.0.0.1:80", "127.0.0.2:3128", "localhost.evil:3128"),
        *(
            "127.0.0.1:3128:80",
            "user@127.0.0.1:3128",
            "127.0.0.1:3128/",
            "0x7f.1:3128",
            "[::1]:3128",
        ),
        "",
    ],
)
def test_a_route_is_reached_only_by_the_loopbacks_name(kernel: Kernel, host: str) -> None:
    answer = kernel.ask(f"GET /plain/x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert status_of(answer) in (400, 421)


def test_a_route_is_not_reached_by_a_url_or_a_tunnel(kernel: Kernel) -> None:
    for scheme in ("http", "https"):
        raw = f"GET {scheme}://127.0.0.1:3128/plain/x HTTP/1.1\r\n{HEAD}\r\n"
        assert status_of(kernel.ask(raw.encode())) == 400
    raw = f"CONNECT 127.0.0.1:3128 HTTP/1.1\r\n{HEAD}\r\n"
    assert status_of(kernel.ask(raw.encode())) == 400


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:22", "localhost:{port}", "0177.0.0.1:{port}", "0x7f000001:{port}"),
        *("2130706433:{port}", "127.1:{port}", "[::ffff:127.0.0.1]:{port}", "[::1]:{port}"),
        *("127.0.0.1.:{port}", "0.0.0.0:{port}", "169.254.169.254:80", "[fd00:ec2::254]:80"),
        "[::ffff:7f00:1]:{port}",
    ],
)
@pytest.mark.parametrize("form", ["CONNECT {host}", "GET http://{host}/", "GET https://{host}/"])
def test_a_host_that_is_not_listed_is_refused(
    kernel: Kernel, upstream: Fake, host: str, form: str
) -> None:
    host = host.format(port=upstream.port)
    answer = kernel.ask(f"{form.format(host=host)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert status_of(answer) in (400, 403)
    assert not upstream.seen


@pytest.mark.parametrize("name", ["localhost", "ip6-localhost"])
def test_a_listed_name_that_leads_to_this_machine_is_refused(
    open_kernel: OpenKernel, upstream: Fake, name: str
) -> None:
    kernel = open_kernel({"web": {"hosts": [f"{name}:{upstream.port}"], "allow_private": True}})
    before = upstream.connections
    answer = kernel.ask(
        f"CONNECT {name}:{upstream.port} HTTP/1.1\r\nHost: {name}:{upstream.port}\r\n\r\n".encode()
    )
    assert status_of(answer) in (403, 502)
    assert upstream.connections == before


@pytest.mark.parametrize(
    "path",
    [
        *("/some/repos/other/x", "/some/repos/acmeX", "/some/user", "/some/repos/acme/../other/x"),
        *("/some/repos/acme/%2e%2e/other", "/some/repos/acme/..%2fother", "/some/repos/acme%2fx"),
        *("/some/repos/acme/%252e%252e/x", "/some//repos/acme/x", "/some/repos/acme/;/x"),
        *("/some/repos/acme/..;/x", "/some/repos/acme/..\\x", "/some/repos/acme/%5c..%5cx"),
        *("/some/repos/acme/%00", "/some/repos/acme/./x", "/some/repos/acme/%zz"),
        *("/some/../plain/x", "/some/%c0%ae%c0%ae/x", "/./some/repos/acme/x"),
    ],
)
def test_a_path_trick_does_not_pass_the_patterns(kernel: Kernel, upstream: Fake, path: str) -> None:
    assert status_of(kernel.get("/some/repos/acme/x")) == 200
    upstream.seen.clear()
    assert status_of(kernel.get(path)) == 403
    assert not upstream.seen


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_a_method_that_is_not_listed_is_refused(
    kernel: Kernel, upstream: Fake, method: str
) -> None:
    raw = f"{method} /some/repos/acme/x HTTP/1.1\r\n{HEAD}Content-Length: 0\r\n\r\n"
    assert status_of(kernel.ask(raw.encode())) == 403
    assert not upstream.seen


def test_trace_would_return_the_credential_and_is_refused(kernel: Kernel, tls: Fake) -> None:
    assert status_of(kernel.ask(f"TRACE /api/x HTTP/1.1\r\n{HEAD}\r\n".encode())) == 403
    assert not tls.seen


def test_a_refusal_names_the_rule_and_the_setting(kernel: Kernel) -> None:
    answer = kernel.get("/some/user").decode()
    assert "the route some does not allow this path" in answer
    assert 'c.GVisorEgress.routes["some"]["paths"]' in answer
    answer = kernel.ask(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n").decode()
    first = answer.partition("\r\n")[0]
    assert first == "HTTP/1.1 403 gvisor-kernel: no egress route of this kernel allows pypi.org:443"
    assert 'c.GVisorEgress.routes = {"web": {"hosts": ["pypi.org:443"]}}' in answer


def test_a_kernel_cannot_use_the_route_of_another(
    kernel: Kernel, open_kernel: OpenKernel, tls: Fake
) -> None:
    other = open_kernel({})
    answer = other.get("/api/x")
    assert status_of(answer) == 403
    assert b"api" not in answer.replace(b"route api;", b"")
    assert status_of(kernel.get("/api/x")) == 200
    assert len(tls.seen) == 1


# -- limits ----------------------------------------------------------------------------------------


@pytest.fixture
def narrow(open_kernel: OpenKernel, upstream: Fake) -> Kernel:
    """A kernel whose routes allow little."""
    upstream.seen.clear()
    upstream.go.clear()
    upstream.gone.clear()
    small = {"request_bytes": 1000, "response_bytes": 1_500_000, "seconds": 2, "at_once": 2}
    return open_kernel(
        {
            "small": upstream.route(limits=small),
            "web": {
                "hosts": [f"127.0.0.1:{upstream.port}"],
                "allow_private": True,
                "limits": small,
            },
        }
    )


def test_a_body_over_the_limit_is_refused_before_it_is_sent(narrow: Kernel, upstream: Fake) -> None:
    head = f"POST /small/x HTTP/1.1\r\n{HEAD}Content-Length: 1001\r\n\r\n"
    answer = narrow.ask(head.encode() + bytes(1001))
    assert status_of(answer) == 413
    assert b'["small"]["limits"]["request_bytes"]' in answer
    assert not upstream.seen


def test_a_body_in_chunks_over_the_limit_ends(narrow: Kernel, upstream: Fake) -> None:
    head = f"POST /small/x HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n"
    answer = narrow.ask(head.encode() + b"200\r\n%s\r\n" % bytes(512) * 4)
    assert status_of(answer) == 413
    assert not upstream.seen


def test_an_answer_that_never_ends_is_cut_at_the_limit(narrow: Kernel, upstream: Fake) -> None:
    stream = narrow.open(f"GET /small/endless HTTP/1.1\r\n{HEAD}\r\n".encode())
    narrow.wait(stream)
    assert stream.closed == "reset"
    assert stream.count < 1_600_000
    assert upstream.gone.wait(10)


def test_a_tunnel_is_cut_at_the_limit(narrow: Kernel, upstream: Fake) -> None:
    raw = f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.0\r\n\r\nGET /endless HTTP/1.1\r\n\r\n"
    stream = narrow.open(raw.encode())
    narrow.wait(stream)
    assert stream.closed == "reset"
    assert stream.count < 1_600_000
    assert upstream.gone.wait(10)


def test_a_tunnel_is_recorded_with_why_it_ended(
    open_kernel: OpenKernel, upstream: Fake, tmp_path: Path
) -> None:
    host = f"127.0.0.1:{upstream.port}"
    routes = {"web": {"hosts": [host], "allow_private": True, "limits": {"response_bytes": 9999}}}
    kernel = open_kernel(routes, tmp_path / FILE)
    connect = f"CONNECT {host} HTTP/1.0\r\n\r\n"
    left = kernel.open(connect.encode())
    kernel.wait_for_text(left, b"200 Connected")
    kernel.reset(left)
    kernel.wait_for(lambda: len(kernel.log) == 1, left)
    kernel.ask(f"{connect}GET /endless HTTP/1.1\r\n\r\n".encode())
    kernel.wait_for(lambda: len(kernel.log) == 2, left)
    gone, cut = read_entries(tmp_path / FILE)
    assert gone.reason.startswith("the client has gone")
    assert "response_bytes" in cut.reason
    assert (gone.status, cut.status) == (200, 200)


@pytest.mark.parametrize("path", ["wait", "dribble"])
def test_a_server_that_does_not_answer_ends_the_request(
    narrow: Kernel, upstream: Fake, path: str
) -> None:
    answer = narrow.get(f"/small/{path}")
    assert status_of(answer) == 504
    assert b'["limits"]["seconds"]' in answer


@pytest.mark.parametrize(("path", "status"), [("unframed", 502), ("cut", 200)])
def test_an_answer_that_is_no_http_is_not_passed_on_as_whole(
    kernel: Kernel, path: str, status: int
) -> None:
    stream = kernel.open(f"GET /plain/{path} HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode())
    assert status_of(kernel.wait(stream)) == status
    assert stream.closed == ("reset" if path == "cut" else "finished")


@pytest.mark.parametrize("route", ["plain", "api"])
def test_interim_answers_without_end_end_the_request(
    kernel: Kernel, upstream: Fake, tls: Fake, route: str
) -> None:
    answer = kernel.get(f"/{route}/interim")
    assert status_of(answer) == 502
    assert (upstream if route == "plain" else tls).gone.wait(scale_seconds(10))
    assert status_of(kernel.get(f"/{route}/hints")) == 200


@pytest.mark.parametrize(("count", "status"), [(300, 200), (30_000, 502)])
def test_headers_of_an_answer_are_bounded_in_number(
    kernel: Kernel, upstream: Fake, count: int, status: int
) -> None:
    assert status_of(kernel.get(f"/plain/headers?count={count}")) == status


@pytest.mark.parametrize(("path", "status"), [("switch", 502), ("longer", 200), ("shorter", 200)])
def test_an_answer_that_contradicts_itself_is_a_failure_of_the_server(
    open_kernel: OpenKernel, upstream: Fake, tmp_path: Path, path: str, status: int
) -> None:
    routes = {"plain": upstream.route()}
    kernel = open_kernel(routes, tmp_path / FILE)
    stream = kernel.open(f"GET /plain/{path} HTTP/1.1\r\n{HEAD}\r\n".encode())
    assert status_of(kernel.wait(stream)) == status
    assert stream.closed == ("finished" if path == "switch" else "reset")
    kernel.wait_for(lambda: len(kernel.log) == 1, stream)
    (entry,) = read_entries(tmp_path / FILE)
    assert entry.status == status
    assert "the server does not answer as HTTP demands" in entry.reason


def test_requests_over_the_number_at_once_wait_for_their_turn(
    narrow: Kernel, upstream: Fake
) -> None:
    raw = f"GET /small/wait HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode()
    streams = [narrow.open(raw) for _ in range(6)]
    narrow.wait_for(lambda: len(upstream.seen) == 2, streams[0])
    assert status_of(narrow.get("/none")) == 403  # what came before it has been read, too
    assert len(upstream.seen) == 2
    upstream.go.set()
    assert all(status_of(narrow.wait(stream)) == 200 for stream in streams)


def test_a_kernel_cannot_take_the_requests_of_another(
    open_kernel: OpenKernel, upstream: Fake
) -> None:
    limits = {"requests_per_minute": 4, "at_once": 4}
    routes = {"shared": upstream.route(limits=limits)}
    upstream.seen.clear()
    upstream.go.clear()
    hostile, other = open_kernel(routes), open_kernel(routes)
    raw = f"GET /shared/wait HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode()
    streams = [hostile.open(raw) for _ in range(10)]
    hostile.wait_for(lambda: len(upstream.seen) == 4, streams[0])
    assert status_of(other.get("/shared/x")) == 200
    upstream.go.set()
    assert status_of(hostile.wait(streams[0])) == 200


def test_a_client_that_goes_away_while_it_is_admitted_does_not_count_as_open(
    open_kernel: OpenKernel, upstream: Fake
) -> None:
    limits = {"daily_requests": 100_000, "requests_per_minute": 100_000, "at_once": 4}
    routes = {"daily-left": upstream.route(limits=limits)}
    kernel = open_kernel(routes)
    for i in range(200):
        stream = kernel.open(f"GET /daily-left/x HTTP/1.1\r\n{HEAD}\r\n".encode())
        time.sleep(0.0005 * (i % 8))
        kernel.reset(stream)
    for _ in range(8):
        assert status_of(kernel.get("/daily-left/x")) == 200


def test_requests_over_the_number_a_minute_are_told_when_to_come_again(
    open_kernel: OpenKernel, upstream: Fake
) -> None:
    few = {"requests_per_minute": 2}
    kernel = open_kernel({"few": upstream.route(limits=few)})
    answers = [kernel.get("/few/x") for _ in range(3)]
    assert [status_of(answer) for answer in answers] == [200, 200, 429]
    assert b"\r\nRetry-After: 10\r\n" in answers[-1]
    assert b'["limits"]["requests_per_minute"]' in answers[-1]


def test_the_last_of_a_daily_budget_is_cut(open_kernel: OpenKernel, upstream: Fake) -> None:
    daily = {"daily_bytes": 2_000_000, "daily_requests": 3}
    kernel = open_kernel({"daily": upstream.route(limits=daily)})
    streams = []
    for _ in range(3):
        streams.append(kernel.open(f"GET /daily/endless HTTP/1.1\r\n{HEAD}\r\n".encode()))
        kernel.wait(streams[-1])
        assert streams[-1].closed == "reset"
    assert 100_000 < sum(stream.count for stream in streams) < 2_010_000
    answer = kernel.get("/daily/x")
    assert status_of(answer) == 429
    assert b"daily_requests" in answer


def test_each_request_leaves_one_line_in_the_record(
    open_kernel: OpenKernel, upstream: Fake, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    kernel = open_kernel({"plain": upstream.route()}, path)
    kernel.get("/plain/a?secret=1")
    kernel.get("/other/b")
    kernel.ask(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n")
    kernel.wait_for(lambda: len(kernel.log) == 3, kernel.open())
    entries = list(read_entries(path))
    assert [(e.route, e.method, e.host, e.path, e.status) for e in entries] == [
        ("plain", "GET", "", "/plain/a", 200),
        ("", "GET", "", "/other/b", 403),
        ("", "CONNECT", "pypi.org:443", "", 403),
    ]
    assert entries[0].down > 0
    assert entries[0].reason == ""
    assert all(entry.reason for entry in entries[1:])


def test_a_request_is_recorded_although_the_worker_dies_with_it(
    open_kernel: OpenKernel, worker: EgressWorker, upstream: Fake, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    routes = {
        "plain": upstream.route(),
        "web": {"hosts": [f"127.0.0.1:{upstream.port}"], "allow_private": True},
    }
    upstream.seen.clear()
    upstream.go.clear()
    kernel = open_kernel(routes, path)
    kernel.get("/plain/whole")
    stream = kernel.open(f"GET /plain/wait HTTP/1.1\r\n{HEAD}\r\n".encode())
    kernel.wait_for(lambda: len(upstream.seen) == 2, stream)
    tunnel = kernel.open(f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.0\r\n\r\n".encode())
    kernel.wait_for_text(tunnel, b"200")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    kernel.wait_for(lambda: kernel.ended, stream)
    upstream.go.set()
    entries = list(read_entries(path))
    assert [(e.route, e.method, e.path, e.is_open) for e in entries] == [
        ("plain", "GET", "/plain/whole", False),
        ("plain", "GET", "/plain/wait", True),
        ("web", "CONNECT", "", True),
    ]
    assert "had not ended" in describe_entry(entries[1])


def test_requests_that_a_rule_refuses_are_only_counted_after_some(
    open_kernel: OpenKernel, upstream: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    rules = {"methods": ["GET"], "paths": ["/a"], "limits": {"requests_per_minute": 100_000}}
    kernel = open_kernel({"strict": upstream.route(**rules)}, path)
    raw = f"GET /strict/b HTTP/1.1\r\n{HEAD}\r\n".encode()
    for _ in range(30):
        kernel.wait(kernel.open(raw * 50, finish=True))
    entries = list(read_entries(path))
    assert len(entries) < 1100
    assert {entry.status for entry in entries} == {403}


def test_requests_are_counted_by_route(
    worker: EgressWorker, open_kernel: OpenKernel, upstream: Fake
) -> None:
    kernel = open_kernel({"counted": upstream.route()})
    before = worker.counters.read().get("", Count())
    head = f"POST /counted/x HTTP/1.1\r\n{HEAD}Connection: close\r\nContent-Length: 5\r\n\r\n"
    down = len(body_of(kernel.ask(head.encode() + b"12345")))
    kernel.get("/counted/a//b")
    kernel.get("/other")
    kernel.wait_for(lambda: len(kernel.log) == 3, kernel.open())
    count = worker.counters.read()["counted"]
    assert (count.requests, count.failed, count.up, count.down) == (2, 1, 5, down)
    assert count.seconds > 0
    assert worker.counters.read()[""].failed == before.failed + 1


def test_a_request_whose_client_leaves_before_the_answer_is_recorded_after_any_number_of_refusals(
    open_kernel: OpenKernel, upstream: Fake, tmp_path: Path
) -> None:
    upstream.seen.clear()
    upstream.go.clear()
    routes = {"plain": upstream.route()}
    kernel = open_kernel(routes, tmp_path / FILE)
    for _ in range(1100):
        kernel.wait(kernel.open(f"GET /no HTTP/1.1\r\n{HEAD}\r\n".encode(), finish=True))
    for i in range(20):
        stream = kernel.open(f"GET /plain/{i}/wait HTTP/1.1\r\n{HEAD}\r\n".encode())
        until(lambda count=i + 1: len(upstream.seen) == count)
        kernel.reset(stream)
    sent = {f"/plain{seen.path}" for seen in upstream.seen}
    assert len(sent) == 20
    until(lambda: sent <= {entry.path for entry in read_entries(tmp_path / FILE)})


def test_a_client_that_goes_with_the_whole_answer_is_no_failure(
    open_kernel: OpenKernel, upstream: Fake, tmp_path: Path
) -> None:
    """Also while the end of its request is still counted, which a daily limit does in a thread."""
    limits = {"daily_requests": 100_000, "daily_bytes": 10**9}
    kernel = open_kernel({"whole": upstream.route(limits=limits)}, tmp_path / FILE)
    for i in range(20):
        stream = kernel.open(f"GET /whole/{i} HTTP/1.1\r\n{HEAD}\r\n".encode())
        kernel.wait_for_text(stream, b'"size": 0}')
        kernel.reset(stream)
    until(lambda: len(kernel_entries(tmp_path)) == 20)
    assert {entry.reason for entry in kernel_entries(tmp_path)} == {""}


def kernel_entries(folder: Path) -> list[Entry]:
    """Return the requests that have ended."""
    return [entry for entry in read_entries(folder / FILE) if not entry.is_open]


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + scale_seconds(20)
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_ten_thousand_connections_leave_nothing_behind(kernel: Kernel, upstream: Fake) -> None:
    for _ in range(50):
        streams = [kernel.open(b"GET /plain/x HTT") for _ in range(200)]
        for stream in streams:
            kernel.reset(stream)
    assert status_of(kernel.get("/plain/x")) == 200
    assert len(upstream.seen) == 1


def test_a_client_that_goes_away_ends_the_request(kernel: Kernel, upstream: Fake) -> None:
    stream = kernel.open(f"GET /plain/endless HTTP/1.1\r\n{HEAD}\r\n".encode())
    kernel.wait_for(lambda: stream.count > 100_000, stream)
    kernel.reset(stream)
    assert upstream.gone.wait(10)


def test_no_line_of_the_log_and_no_answer_has_the_secret(
    kernel: Kernel, open_kernel: OpenKernel, tls: Fake
) -> None:
    answers = [kernel.get(f"/api/{path}") for path in ("x", "secret", "unframed", "redirect?to=x")]
    wrong = open_kernel(
        {
            "api": {
                "url": f"https://127.0.0.1:{tls.port}",
                "allow_private": True,
                "secret": "env:GK_TEST_SECRET",
                "header": "X-Key: {secret} {secret}"[:15],
            }
        }
    )
    answers.append(wrong.get("/api/unframed"))
    kernel.wait_for(lambda: len(kernel.log) >= 4, kernel.open())
    assert SECRET not in json.dumps(kernel.log + wrong.log)
    assert SECRET.encode() not in b"".join(answers)


def test_a_certificate_that_is_not_trusted_is_refused(
    open_kernel: OpenKernel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from .upstream import make_certificate, serving

    _, both = make_certificate(tmp_path_factory.mktemp("other"))
    with serving(both) as other:
        kernel = open_kernel(
            {
                "api": {
                    "url": f"https://127.0.0.1:{other.port}",
                    "allow_private": True,
                    "secret": "env:GK_TEST_SECRET",
                }
            }
        )
        answer = kernel.get("/api/x")
        assert status_of(answer) == 502
        assert b"no valid certificate" in answer
        assert not other.seen


def test_nothing_listens_and_the_answer_says_so(open_kernel: OpenKernel) -> None:
    kernel = open_kernel({"gone": {"url": "http://127.0.0.1:9", "allow_private": True}})
    assert status_of(kernel.get("/gone/x")) == 502


def test_bodies_in_chunks_of_one_byte_leave_room_for_other_kernels(
    open_kernel: OpenKernel, upstream: Fake
) -> None:
    routes = {"plain": upstream.route()}
    hostile, other = open_kernel(routes), open_kernel(routes)
    assert status_of(other.get("/plain/x")) == 200
    chunks = b"1\r\na\r\n" * 20_000
    raw = f"POST /plain/x HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n"
    streams = [hostile.open(raw.encode()) for _ in range(30)]
    for stream in streams:
        hostile.streams.send(stream.number, chunks[: hostile.streams.sendable(stream.number)])
    hostile.pump(0)
    assert status_of(other.get("/plain/x")) == 200
    assert not any(stream.closed for stream in streams)
