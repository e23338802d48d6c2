"""The head of a request is read strictly: what two programs could read differently is refused."""

from __future__ import annotations

import h11
import hypothesis
import pytest
from hypothesis import strategies

from gvisor_kernel.egress.heads import MAX_HEAD, MAX_HEADERS, Form, parse_head
from gvisor_kernel.egress.refusals import BadRequest

HOST = b"Host: 127.0.0.1:3128\r\n"


def head(first: bytes, rest: bytes = HOST) -> bytes:
    return first + b"\r\n" + rest + b"\r\n"


def test_a_path_a_url_and_a_host_are_told_apart() -> None:
    origin = parse_head(head(b"GET /openai/v1?x=%20 HTTP/1.1"))
    assert (origin.form, origin.path) == (Form.ORIGIN, b"/openai/v1?x=%20")
    assert (origin.host, origin.port) == ("127.0.0.1", 3128)
    url = parse_head(head(b"GET http://Example.org/a HTTP/1.1", b"Host: example.org\r\n"))
    assert (url.form, url.host, url.port, url.path) == (Form.ABSOLUTE, "example.org", 80, b"/a")
    assert not url.is_tls
    url = parse_head(head(b"GET HTTPS://example.org HTTP/1.1", b"Host: example.org:443\r\n"))
    assert (url.form, url.host, url.port, url.path) == (Form.ABSOLUTE, "example.org", 443, b"/")
    assert url.is_tls
    tunnel = parse_head(head(b"CONNECT Example.org:443 HTTP/1.1", b"Host: example.org:443\r\n"))
    assert (tunnel.form, tunnel.host, tunnel.port) == (Form.AUTHORITY, "example.org", 443)


def test_an_old_client_may_connect_without_host() -> None:
    assert parse_head(head(b"CONNECT example.org:443 HTTP/1.0", b"")).host == "example.org"


def test_names_of_headers_are_lower_case_and_values_are_stripped() -> None:
    found = parse_head(head(b"GET / HTTP/1.1", HOST + b"X-A: \t b c \t\r\n"))
    assert found.find(b"x-a") == b"b c"
    assert found.find(b"x-b") is None


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(head(b"GET / HTTP/1.1", HOST + rest), id=name)
        for name, rest in {
            "length and coding": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "two lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n",
            "a list of lengths": b"Content-Length: 3, 3\r\n",
            "a signed length": b"Content-Length: +3\r\n",
            "a hexadecimal length": b"Content-Length: 0x3\r\n",
            "an empty length": b"Content-Length:\r\n",
            "a huge length": b"Content-Length: 99999999999999999999\r\n",
            "another coding": b"Transfer-Encoding: gzip, chunked\r\n",
            "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "identity": b"Transfer-Encoding: identity\r\n",
            "a coding with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
            "a folded header": b"X-A: b\r\n c\r\n",
            "a folded header with a tab": b"X-A: b\r\n\tc\r\n",
            "a bare line feed": b"X-A: b\nX-B: c\r\n",
            "a bare carriage return": b"X-A: b\rX-B: c\r\n",
            "a space before the colon": b"Transfer-Encoding : chunked\r\n",
            "a header without a name": b": x\r\n",
            "a header without a colon": b"X-A\r\n",
            "a zero byte": b"X-A: \0\r\n",
            "a control character": b"X-A: \x1b[31m\r\n",
            "two hosts": b"Host: 127.0.0.1:3128\r\n",
            "two credentials": b"Authorization: a\r\nAuthorization: b\r\n",
            "an expectation": b"Expect: 200-ok\r\n",
            "too many headers": b"X-A: b\r\n" * MAX_HEADERS,
        }.items()
    ],
)
def test_an_ambiguous_head_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(raw)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"GET /",
        b"get / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET / x HTTP/1.1",
        b"GET /\xc3\xa4 HTTP/1.1",
        b"GET /#fragment HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET openai/v1 HTTP/1.1",
        b"GET https://example.org/ HTTP/1.1",
        b"GET httpx://127.0.0.1:3128/openai HTTP/1.1",
        b"GET ftp://127.0.0.1:3128/ HTTP/1.1",
        b"GET http://user@127.0.0.1:3128/ HTTP/1.1",
        b"GET http:///openai HTTP/1.1",
        b"GET http://127.0.0.1:3128?x HTTP/1.1",
        b"GET http://example.org/ HTTP/1.1",
        b"CONNECT 127.0.0.1 HTTP/1.1",
        b"CONNECT 127.0.0.1:0 HTTP/1.1",
        b"CONNECT 127.0.0.1:70000 HTTP/1.1",
        b"CONNECT http://127.0.0.1:3128 HTTP/1.1",
        b"CONNECT 127.0.0.1:3128/ HTTP/1.1",
        b"CONNECT [::1 HTTP/1.1",
        b"CONNECT example.org:443 HTTP/1.1",
        b"",
    ],
    ids=repr,
)
def test_a_strange_request_line_is_refused(first: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(head(first))


def test_a_head_without_host_is_refused() -> None:
    with pytest.raises(BadRequest, match="no header Host"):
        parse_head(head(b"GET / HTTP/1.1", b""))


def test_a_head_that_is_too_long_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_head(head(b"GET / HTTP/1.1", HOST + b"X-A: " + b"b" * MAX_HEAD + b"\r\n"))
    assert caught.value.status == 431


LINES = strategies.lists(
    strategies.one_of(
        strategies.binary(max_size=30),
        strategies.sampled_from(
            [
                *(b"Host: a", b"Content-Length: 1", b"Transfer-Encoding: chunked", b"X: y"),
                *(b" folded", b"X : y", b"X: \xff", b"Expect: 100-continue"),
            ]
        ),
    ),
    max_size=6,
)


@hypothesis.given(
    first=strategies.sampled_from(
        [b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"CONNECT a:1 HTTP/1.1"]
    ),
    lines=LINES,
)
def test_h11_reads_each_accepted_head_in_the_same_way(first: bytes, lines: list[bytes]) -> None:
    raw = b"\r\n".join([first, *lines]) + b"\r\n\r\n"
    if raw.index(b"\r\n\r\n") != len(raw) - 4:
        return
    try:
        found = parse_head(raw)
    except BadRequest:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.method.decode() == found.method
    assert event.target == found.target
    assert [(bytes(k), bytes(v)) for k, v in event.headers] == list(found.headers)
    assert not connection.trailing_data[0]
