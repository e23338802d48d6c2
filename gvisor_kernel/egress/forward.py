"""Passes requests on to servers, and their answers back: for a URL, by a tunnel, and by a route
with a ``url``.

Headers that belong to one connection are not passed on, nor those that a proxy adds. Bodies stay as
they are, encoded or not: nothing is decompressed here.

Of a route with a ``url`` the sandbox asks for ``/NAME/…``, and its one server is asked over TLS.
The credential is added here, and what the sandbox sent in its place is dropped. The server's name
and the base path are the configuration's; the sandbox chooses only what comes after.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import h11
import httpcore

from gvisor_kernel.egress.budgets import Admission
from gvisor_kernel.egress.destinations import upstream_of
from gvisor_kernel.egress.heads import Form
from gvisor_kernel.egress.http import EVENTS_IN_A_TURN, Reply, Request
from gvisor_kernel.egress.kinds import UrlRoute
from gvisor_kernel.egress.patterns import (
    OVERRIDING_HEADERS,
    find_target_fault,
    fold_header,
    is_allowed,
    split_target,
)
from gvisor_kernel.egress.refusals import Refusal, Refused, UpstreamFailed
from gvisor_kernel.egress.streams import ByteStream, StreamReset
from gvisor_kernel.egress.upstream import (
    Resolve,
    Upstream,
    connect,
    counted,
    find_read_size,
    translated_errors,
)
from gvisor_kernel.link.streams import EGRESS_PORT

MASK = b"*"
MIN_SECRET = 8
"""Bytes. A shorter one is in too much that has nothing to do with it."""


def is_quoted(secret: bytes, text: bytes) -> bool:
    """Return whether ``text``, a part of an answer's head, contains ``secret``, which may be empty.

    Names of headers lose their case on the way, and a value may be folded over lines: so neither
    case nor spaces and tabs count.
    """
    return bool(secret) and _squeeze(secret) in _squeeze(text)


def _squeeze(text: bytes) -> bytes:
    return text.translate(None, b" \t").lower()


class Masking:
    """The body of one answer, in parts of any size.

    ``secret``: one shorter than MIN_SECRET masks nothing. A part's end is held back only while it
    may be the beginning of the secret, so that events of a stream are not delayed.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret if len(secret) >= MIN_SECRET else b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on after ``data`` has come; it may be empty."""
        secret = self._secret
        if not secret:
            return data
        if self._held:
            data = self._held + data
            self._held = b""
        data = data.replace(secret, MASK * len(secret))
        size = self._find_beginning(data)
        if size:
            self._held = data[-size:]
            data = data[:-size]
        return data

    def finish(self) -> bytes:
        """Return what is left: the answer has ended."""
        held, self._held = self._held, b""
        return held

    def _find_beginning(self, data: bytes) -> int:
        """Return how many bytes at the end of ``data`` may be the beginning of the secret."""
        secret = self._secret
        at = max(0, len(data) - len(secret) + 1)
        while (at := data.find(secret[:1], at)) != -1:
            if secret.startswith(data[at:]):
                return len(data) - at
            at += 1
        return 0


HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"http2-settings", b"proxy-authentication-info"),
    }
)
ADDED_BY_PROXIES = frozenset({b"forwarded", b"via", b"x-real-ip", b"client-ip", b"true-client-ip"})
"""With every name that begins with X-Forwarded-: servers believe them."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that may be passed on. TRACE would return the credential that was added."""

Pairs = list[tuple[bytes, bytes]]


def check_method(method: str) -> None:
    """Check that a method is passed on at all.

    :raises Refused: it is not
    """
    if method not in METHODS:
        raise Refused(f"the method {method} is not passed on", f"use {', '.join(sorted(METHODS))}.")


def check_target(target: bytes) -> None:
    """Check that a target has one meaning only.

    :raises Refused: it has not
    """
    fault = find_target_fault(target)
    if fault is not None:
        raise Refused(
            f"the path {fault}, which servers read in different ways",
            "send a path that has one meaning; no setting allows this one.",
        )


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """Return the headers that are not for one connection only. Names may have any case."""
    pairs = list(headers)
    named = {
        word.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for word in value.split(b",")
    } - {b"host", b"content-length", b"authorization"}
    dropped = HOP_BY_HOP | named
    return [(name, value) for name, value in pairs if name.lower() not in dropped]


def request_headers(request: Request, host: bytes) -> Pairs:
    """Return what is passed on of a request's headers, with ``host`` as Host.

    Names are compared as servers may read them (``fold_header``).
    """
    kept = [
        (name, value)
        for name, value in end_to_end(request.head.headers)
        if (plain := fold_header(name)) not in ADDED_BY_PROXIES
        and plain not in OVERRIDING_HEADERS
        and plain not in HOP_BY_HOP
        and not plain.startswith(b"x-forwarded-")
        and plain not in (b"host", b"content-length", b"expect")
    ]
    framing: Pairs = []
    if request.head.chunked:
        framing = [(b"Transfer-Encoding", b"chunked")]
    elif request.head.length is not None:
        framing = [(b"Content-Length", b"%d" % request.head.length)]
    return [(b"Host", host), *kept, *framing]


def without(headers: Pairs, name: bytes) -> Pairs:
    """Return ``headers`` without those that a server may take for ``name``."""
    wanted = fold_header(name)
    return [pair for pair in headers if fold_header(pair[0]) != wanted]


async def forward(
    upstream: Upstream,
    request: Request,
    reply: Reply,
    url: httpcore.URL,
    headers: Pairs,
    change: Callable[[Pairs], Pairs] = lambda headers: headers,
    secret: bytes = b"",
) -> None:
    """Send ``request`` with ``headers`` to ``url`` and pass the answer on while it comes.

    ``change`` returns the answer's headers as the sandbox gets them. ``secret`` is masked in the
    answer's body, and an answer's reason that contains it is dropped.

    :raises Refusal: nothing of the answer was passed on, if the reply has not started
    """
    method = request.head.method
    body = request.body if request.has_body else None
    request.announce()
    async with upstream.send(method, url, headers, body) as response:
        answer = change(end_to_end(response.headers))
        try:
            await reply.start(response.status, answer, _reason(response, secret))
            with translated_errors():
                if method != "HEAD" and response.status not in (204, 304):
                    await _pass_body(response, reply, Masking(secret))
                await reply.end()
        except h11.LocalProtocolError as error:  # such as a body that is longer than its length
            raise UpstreamFailed("the server does not answer as HTTP demands") from error


async def _pass_body(response: httpcore.Response, reply: Reply, masking: Masking) -> None:
    parts = 0
    async for data in response.aiter_stream():
        if data := masking.feed(data):
            await reply.body(data)
        parts += 1
        if parts % EVENTS_IN_A_TURN == 0:
            await asyncio.sleep(0)
    if data := masking.finish():
        await reply.body(data)


def _reason(response: httpcore.Response, secret: bytes) -> str:
    reason = response.extensions.get("reason_phrase", b"")
    if not isinstance(reason, bytes) or is_quoted(secret, reason):
        return ""
    return reason.decode("ascii", "replace")


# -- routes with hosts -----------------------------------------------------------------------------


async def open_tunnel(
    host: str, port: int, resolve: Resolve, request: Request, reply: Reply, admission: Admission
) -> None:
    """Answer a CONNECT, and copy bytes both ways until both sides have ended.

    :raises Refusal: the server may not be reached, or cannot be; or a limit is used up
    :raises StreamReset: the client has gone
    """
    sock = await connect(host, port, resolve)
    try:
        request.announce()
        await reply.switch()
        with counted(sock):
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy_up(request.stream, sock, admission))
                group.create_task(_copy_down(sock, request.stream, admission))
    except ExceptionGroup as group:
        cause = _find_cause(group)
        if not isinstance(cause, OSError):
            raise cause from None
        request.stream.reset()  # the server has ended the connection
    finally:
        sock.close()


def _find_cause(group: ExceptionGroup[Exception]) -> Exception:
    """Return why a tunnel has ended; the group itself if that is a defect.

    The end of one direction may fail the other one, so the group may contain several errors.
    """
    errors = group.exceptions
    if all(isinstance(error, Refusal | StreamReset | OSError) for error in errors):
        for kind in (Refusal, StreamReset, OSError):
            for error in errors:
                if isinstance(error, kind):
                    return error
    return group


async def _copy_up(stream: ByteStream, sock: socket.socket, admission: Admission) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.read():  # no timeout: the limit seconds of the route ends the tunnel
        await admission.pass_up(len(data))
        await loop.sock_sendall(sock, data)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


async def _copy_down(sock: socket.socket, stream: ByteStream, admission: Admission) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, find_read_size()):
        await admission.pass_down(len(data))
        await stream.write(data)
    stream.finish()


async def pass_on(host: str, port: int, upstream: Upstream, request: Request, reply: Reply) -> None:
    """Answer a request for a whole URL with what its server answers.

    :raises Refusal: see ``forward``
    """
    head = request.head
    assert head.form is Form.ABSOLUTE
    check_method(head.method)
    check_target(head.path)
    shown = f"[{host}]" if ":" in host else host
    scheme, usual = ("https", 443) if head.is_tls else ("http", 80)
    authority = shown if port == usual else f"{shown}:{port}"
    headers = request_headers(request, authority.encode())
    url = httpcore.URL(scheme=scheme, host=host, port=port, target=head.path)
    await forward(upstream, request, reply, url, headers)


# -- a route with a url ----------------------------------------------------------------------------

DROPPED = frozenset({b"alt-svc", b"strict-transport-security", b"public-key-pins"})
"""Headers of an answer that are about the server's own address, which the sandbox does not use."""
HIDING = (b"accept-encoding", b"range", b"if-range", b"request-range")
"""Headers of a request by which a sandbox could have a credential sent in a form in which it is not
found: compressed, or in parts. Some servers still read the last one."""
ReadSecret = Callable[[str], Awaitable[str]]


class Reverse:
    """Passes requests on to the server of one route."""

    def __init__(self, route: UrlRoute, upstream: Upstream, read_secret: ReadSecret) -> None:
        """``read_secret`` returns the value of a secret's reference, or raises a Refusal."""
        self._route = route
        self._upstream = upstream
        self._read_secret = read_secret
        self._server = upstream_of(route.url)
        self._authority = urlsplit(route.url).netloc
        self._base = self._server.target
        self._inside = f"http://127.0.0.1:{EGRESS_PORT}/{route.name}"

    def judge(self, request: Request) -> bytes:
        """Return the target for the server.

        :raises Refused: the route does not allow the method or the path
        """
        route, method = self._route, request.head.method
        check_method(method)
        target = request.head.path[1 + len(route.name) :]
        if not target.startswith(b"/"):
            target = b"/" + target
        path, query = split_target(target)
        key = f'c.GVisorEgress.routes["{route.name}"]'
        if route.methods and method not in route.methods:
            allowed = ", ".join(route.methods)
            raise Refused(
                f"the route {route.name} does not allow the method {method}, only {allowed}",
                f'an administrator can add it to {key}["methods"].',
            )
        check_target(target)
        if route.paths and not is_allowed(path, route.paths):
            raise Refused(
                f"the route {route.name} does not allow this path",
                f"an administrator can add a pattern for {path[:200].decode()} to "
                f'{key}["paths"], which is {", ".join(route.paths)}.',
            )
        if path == b"/" and self._base:
            path = b""
        return self._base.encode() + path + query

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer ``request`` with what the server answers.

        :raises Refusal: see ``forward``
        """
        target = self.judge(request)
        headers = request_headers(request, self._authority.encode())
        secret = ""
        if self._route.secret:
            secret = await self._read_secret(self._route.secret)
        credential = self._route.format_header(secret)
        if credential is not None:
            name, value = credential
            headers = without(headers, name.encode())
            if not value.isascii() or not value.isprintable():
                raise UpstreamFailed(f"the credential of the route {self._route.name} is unusable")
            headers.append((name.encode(), value.encode()))
        if secret:
            for hiding in HIDING:
                headers = without(headers, hiding)
            headers.append((b"Accept-Encoding", b"identity"))
        scheme, host, port = self._server.scheme, self._server.host, self._server.port
        url = httpcore.URL(scheme=scheme, host=host, port=port, target=target or b"/")
        change = partial(self._change, secret.encode())
        await forward(self._upstream, request, reply, url, headers, change, secret.encode())

    def _change(self, secret: bytes, headers: Pairs) -> Pairs:
        """Return an answer's headers without what would lead past the route, or has its credential
        in the name or the value."""
        changed: Pairs = []
        for name, value in headers:
            if name.lower() in DROPPED or is_quoted(secret, name) or is_quoted(secret, value):
                continue
            if name.lower() in (b"location", b"content-location"):
                value = self._change_location(value)
            changed.append((name, value))
        return changed

    def _change_location(self, value: bytes) -> bytes:
        """Rewrite an address on this server that is below the route's; leave any other as it is.

        One that is relative to the server's root is made absolute, as inside it would name another
        route.
        """
        text = value.decode("latin-1")
        own = f"{self._server.scheme}://{self._authority}"
        if text.startswith("/") and not text.startswith("//"):
            text = own + text
        elif text.startswith("//"):
            text = f"{self._server.scheme}:{text}"
        base = own + self._base
        rest = text[len(base) :]
        if text.lower().startswith(base.lower()) and rest[:1] in ("", "/", "?", "#"):
            text = self._inside + rest
        return text.encode("latin-1")
