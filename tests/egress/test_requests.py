"""Requests through the worker, as a program in a sandbox would send them."""

from __future__ import annotations

import gzip
import json

import pytest

from .conftest import SECRET, Kernel, OpenKernel
from .peer import body_of, status_of
from .upstream import Fake

HEAD = "Host: 127.0.0.1:3128\r\n"


def test_a_request_reaches_the_server_below_its_url(kernel: Kernel, upstream: Fake) -> None:
    answer = kernel.get("/plain/models?limit=2")
    assert status_of(answer) == 200
    assert json.loads(body_of(answer)) == {"method": "GET", "path": "/v1/models?limit=2", "size": 0}
    assert upstream.seen[-1].values("host") == [f"127.0.0.1:{upstream.port}"]


def test_the_name_of_a_route_alone_is_its_url(kernel: Kernel, upstream: Fake) -> None:
    assert status_of(kernel.get("/plain")) == 200
    assert status_of(kernel.get("/plain?x")) == 200
    assert [seen.path for seen in upstream.seen] == ["/v1", "/v1?x"]


def test_several_requests_use_one_connection(kernel: Kernel, upstream: Fake) -> None:
    before = upstream.connections
    stream = kernel.open()
    for i in range(3):
        kernel.send(stream, f"GET /plain/{i} HTTP/1.1\r\n{HEAD}\r\n".encode())
        kernel.wait_for_text(stream, b"/v1/%d" % i)
    kernel.finish(stream)
    kernel.wait(stream)
    assert stream.closed == "finished"
    assert upstream.connections == before + 1


def test_requests_for_packages_use_one_connection(open_kernel: OpenKernel) -> None:
    """uv failed where a connection ended between two requests without being announced."""
    kernel = open_kernel({"packages": {}})
    stream = kernel.open()
    for i in range(3):
        kernel.send(stream, f"GET /packages/nothing/{i} HTTP/1.1\r\n{HEAD}\r\n".encode())
        kernel.wait_for(lambda i=i: stream.received.count(b"HTTP/1.1 404") > i, stream)
    assert b"close" not in stream.received.lower()
    assert not stream.closed


def test_an_answer_before_the_end_of_its_request_ends_the_connection(
    open_kernel: OpenKernel,
) -> None:
    kernel = open_kernel({"packages": {}})
    stream = kernel.open(
        f"POST /packages/x HTTP/1.1\r\n{HEAD}Content-Length: 9\r\n\r\nabc".encode()
    )
    kernel.wait_for_text(stream, b"\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in stream.received
    kernel.finish(stream)
    kernel.wait(stream)


def test_requests_that_come_together_are_answered_in_order(kernel: Kernel) -> None:
    raw = "".join(f"GET /plain/{i} HTTP/1.1\r\n{HEAD}\r\n" for i in range(5))
    answer = kernel.wait(kernel.open(raw.encode(), finish=True))
    places = [answer.index(b"/v1/%d" % i) for i in range(5)]
    assert places == sorted(places)


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_a_body_with_a_length_is_passed_on(kernel: Kernel, upstream: Fake, size: int) -> None:
    head = f"POST /plain/x HTTP/1.1\r\n{HEAD}Connection: close\r\nContent-Length: {size}\r\n\r\n"
    answer = kernel.ask(head.encode() + b"b" * size)
    assert json.loads(body_of(answer))["size"] == size
    assert upstream.seen[-1].body == b"b" * size


def test_a_body_in_chunks_is_passed_on(kernel: Kernel, upstream: Fake) -> None:
    head = f"POST /plain/x HTTP/1.1\r\n{HEAD}Transfer-Encoding: Chunked\r\n\r\n"
    body = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n"
    rest = f"GET /plain/next HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
    answer = kernel.ask(head.encode() + body + rest.encode())
    assert answer.count(b"HTTP/1.1 200") == 2
    assert upstream.seen[-2].body == b"abcdefg"
    assert not upstream.seen[-2].values("trailer")


def test_a_client_that_waits_for_100_continue_is_told_to_send(kernel: Kernel) -> None:
    stream = kernel.open(
        f"POST /plain/x HTTP/1.1\r\n{HEAD}Connection: close\r\nContent-Length: 3\r\n"
        "Expect: 100-continue\r\n\r\n".encode()
    )
    kernel.wait_for_text(stream, b"HTTP/1.1 100 \r\n\r\n")
    kernel.send(stream, b"abc")
    assert b'"size": 3' in kernel.wait(stream)


def test_events_arrive_while_the_server_still_sends(kernel: Kernel, upstream: Fake) -> None:
    stream = kernel.open(f"GET /plain/events HTTP/1.1\r\n{HEAD}\r\n".encode())
    kernel.wait_for_text(stream, b"data: 0\n\n")
    assert b"data: 1" not in stream.received
    upstream.go.set()
    kernel.wait_for_text(stream, b"data: 1\n\n")


def test_a_request_to_a_head_has_no_body(kernel: Kernel) -> None:
    raw = f"HEAD /plain/x HTTP/1.1\r\n{HEAD}\r\nGET /plain/y HTTP/1.1\r\n{HEAD}\r\n"
    answer = kernel.wait(kernel.open(raw.encode(), finish=True))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"Content-Length" in head
    assert rest.startswith(b"HTTP/1.1 200")


def test_a_compressed_answer_stays_compressed(kernel: Kernel) -> None:
    answer = kernel.get("/plain/gzip", "Accept-Encoding: gzip")
    assert b"content-encoding: gzip" in answer.lower()
    assert len(gzip.decompress(body_of(answer))) == 10 * 1024 * 1024
    assert len(answer) < 100_000


# -- credentials -----------------------------------------------------------------------------------


def test_the_credential_is_added_over_tls(kernel: Kernel, tls: Fake) -> None:
    answer = kernel.get("/api/models")
    assert status_of(answer) == 200
    assert tls.seen[-1].values("authorization") == [f"Bearer {SECRET}"]
    assert SECRET.encode() not in answer


def test_what_the_sandbox_sends_as_credential_is_dropped(kernel: Kernel, tls: Fake) -> None:
    kernel.get("/api/models", "AUTHORIZATION: Bearer mine", "Cookie: a=b")
    assert tls.seen[-1].values("authorization") == [f"Bearer {SECRET}"]
    assert tls.seen[-1].values("cookie") == ["a=b"]


@pytest.mark.parametrize("name", ["authorization", "x_api_key", "X-Api_Key", "X.Api~Key"])
def test_a_name_that_a_server_may_take_for_the_header_is_dropped(
    open_kernel: OpenKernel, tls: Fake, name: str
) -> None:
    header = "authorization" if name == "authorization" else "X-Api-Key"
    kernel = open_kernel(
        {
            "api": {
                "url": f"https://127.0.0.1:{tls.port}",
                "allow_private": True,
                "secret": "env:GK_TEST_SECRET",
                "header": f"{header}: {{secret}}",
            }
        }
    )
    assert status_of(kernel.get("/api/x", f"{name}: mine")) == 200
    assert tls.seen[-1].values(header) == [SECRET]
    assert "mine" not in [value for _, value in tls.seen[-1].headers]


def test_a_credential_that_the_server_returns_in_a_header_is_dropped(kernel: Kernel) -> None:
    answer = kernel.get("/api/secret")
    assert status_of(answer) == 200
    assert SECRET.encode() not in answer
    assert b"X-Other: kept" in answer


def test_a_header_that_has_the_credential_in_its_name_or_over_two_lines_is_dropped(
    kernel: Kernel,
) -> None:
    answer = kernel.get("/api/named")
    assert status_of(answer) == 200
    assert b"X-Other: kept" in answer
    assert b"in a name" not in answer
    assert b"X-Folded" not in answer


RANGE = ("Range: bytes=0-9", "If-Range: x", "request_range: bytes=0-9")


def test_a_credential_is_not_sent_in_parts_that_the_sandbox_chose(
    kernel: Kernel, tls: Fake, upstream: Fake
) -> None:
    assert status_of(kernel.get("/api/x", *RANGE)) == 200
    assert not [name for name, _ in tls.seen[-1].headers if "range" in name.lower()]
    assert status_of(kernel.get("/plain/x", *RANGE)) == 200
    assert len([name for name, _ in upstream.seen[-1].headers if "range" in name.lower()]) == 3


def test_a_credential_that_the_server_quotes_is_masked(kernel: Kernel) -> None:
    answer = kernel.get("/api/quote", "Accept-Encoding: gzip")
    assert status_of(answer) == 401
    assert b"X-Accepted: identity\r\n" in answer
    assert SECRET.encode() not in answer
    body = f'{{"error": "the key Bearer {"*" * len(SECRET)} is wrong"}}'
    assert body_of(answer).decode() == body


def test_headers_of_one_connection_are_not_passed_on(kernel: Kernel, upstream: Fake) -> None:
    kernel.get(
        "/plain/x",
        *("X-Forwarded-For: 10.0.0.1", "x_forwarded_host: evil", "Forwarded: for=1", "Via: x"),
        *("Proxy-Authorization: x", "TE: trailers", "Upgrade: h2c", "HTTP2-Settings: x"),
        *("Connection: X-Mine", "X-Mine: 1", "X-HTTP-Method-Override: DELETE", "X-Kept: 1"),
    )
    names = {name.lower() for name, _ in upstream.seen[-1].headers}
    assert names == {"host", "x-kept"}


def test_headers_of_the_servers_connection_are_not_passed_back(kernel: Kernel) -> None:
    assert b"X-Hop" not in kernel.get("/plain/secret")


def test_a_secret_that_is_not_there_is_said_without_its_name_leading_anywhere(
    open_kernel: OpenKernel, tls: Fake
) -> None:
    kernel = open_kernel(
        {
            "api": {
                "url": f"https://127.0.0.1:{tls.port}",
                "allow_private": True,
                "secret": "env:GK_TEST_NOT_SET",
            }
        }
    )
    before = len(tls.seen)
    assert status_of(kernel.get("/api/x")) == 502
    assert len(tls.seen) == before


# -- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("http://127.0.0.1:{port}/v1/other?x", "http://127.0.0.1:3128/plain/other?x"),
        ("/v1/other", "http://127.0.0.1:3128/plain/other"),
        ("/v1", "http://127.0.0.1:3128/plain"),
        ("/v1evil", "http://127.0.0.1:{port}/v1evil"),
        ("/api/other", "http://127.0.0.1:{port}/api/other"),
        ("http://169.254.169.254/latest", "http://169.254.169.254/latest"),
        ("//example.org/x", "http://example.org/x"),
        ("other", "other"),
    ],
)
def test_a_redirect_is_not_followed(kernel: Kernel, upstream: Fake, to: str, expected: str) -> None:
    to, expected = to.format(port=upstream.port), expected.format(port=upstream.port)
    answer = kernel.get(f"/plain/redirect?to={to.replace('?', '%3f')}")
    assert status_of(answer) == 302
    assert f"\r\nLocation: {expected}\r\n".encode() in answer
    assert len(upstream.seen) == 1


# -- tunnels ---------------------------------------------------------------------------------------


def test_a_tunnel_carries_bytes_both_ways(kernel: Kernel, upstream: Fake) -> None:
    host = f"127.0.0.1:{upstream.port}"
    stream = kernel.open(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    kernel.wait_for_text(stream, b"HTTP/1.1 200 Connected\r\n\r\n")
    kernel.send(stream, b"POST /t HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab")
    assert b'"size": 2' in kernel.wait(stream)
    assert stream.closed == "finished"


def test_bytes_that_come_with_the_connect_are_not_lost(kernel: Kernel, upstream: Fake) -> None:
    raw = f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.0\r\n\r\n".encode()
    answer = kernel.ask(raw + b"GET /early HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b'"path": "/early"' in answer


def test_a_tunnel_passes_the_end_of_one_direction_on(kernel: Kernel, upstream: Fake) -> None:
    raw = f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.0\r\n\r\nGET /wait HTTP/1.0\r\n\r\n"
    stream = kernel.open(raw.encode(), finish=True)
    kernel.wait_for_text(stream, b"200 Connected")
    upstream.go.set()
    assert b'"path": "/wait"' in kernel.wait(stream)


def test_an_http_url_is_passed_on(kernel: Kernel, upstream: Fake) -> None:
    host = f"127.0.0.1:{upstream.port}"
    raw = f"GET http://{host}/a?b HTTP/1.1\r\nHost: {host}\r\nProxy-Connection: close\r\n"
    answer = kernel.ask(f"{raw}Connection: close\r\n\r\n".encode())
    assert b'"path": "/a?b"' in answer
    assert not upstream.seen[-1].values("proxy-connection")


# -- at once ---------------------------------------------------------------------------------------


def test_two_hundred_streams_are_served_at_once(open_kernel: OpenKernel, upstream: Fake) -> None:
    upstream.go.clear()
    kernel = open_kernel({"plain": upstream.route(limits={"at_once": 256})})
    raw = f"GET /plain/wait HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode()
    before = len(upstream.seen)
    streams = [kernel.open(raw) for _ in range(200)]
    kernel.wait_for(lambda: len(upstream.seen) == before + 200, streams[0], 60)
    upstream.go.set()
    assert all(status_of(kernel.wait(stream, 60)) == 200 for stream in streams)


def test_a_large_download_leaves_room_for_a_small_request(kernel: Kernel) -> None:
    kernel.keeps = False
    big = kernel.open(
        f"GET /plain/big?mib=200 HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode()
    )
    kernel.wait_for(lambda: big.count > 1_000_000, big)
    small = kernel.open(f"GET /plain/x HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n".encode())
    kernel.wait(small)
    assert not big.closed
    kernel.wait(big, 60)
    assert big.count > 200 * 1024 * 1024


@pytest.mark.parametrize(
    "name",
    [
        *(
            "X_HTTP_Method_Override",
            "x-http_method",
            "X.HTTP.Method",
            "X_Original_URL",
            "X_Rewrite-Uri",
        ),
        *("X_Real_IP", "True_Client-IP", "X_Forwarded_For"),
        *("Content_Length", "Transfer_Encoding", "Proxy_Authorization"),
    ],
)
def test_a_name_that_a_server_may_take_for_a_dropped_one_is_dropped(
    kernel: Kernel, upstream: Fake, name: str
) -> None:
    assert status_of(kernel.get("/plain/x", f"{name}: 9", "X_Other: 9")) == 200
    assert [pair for pair in upstream.seen[-1].headers if pair[1] == "9"] == [("x_other", "9")]
