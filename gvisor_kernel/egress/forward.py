"""Passes one request on to a server, and its answer back: what both kinds of proxy share.

Headers that belong to one connection are not passed on, nor those that a proxy adds. Bodies stay as
they are, encoded or not: nothing is decompressed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import h11
import httpcore

from gvisor_kernel.egress.http import EVENTS_IN_A_TURN, Reply, Request
from gvisor_kernel.egress.patterns import OVERRIDING_HEADERS, fold_header
from gvisor_kernel.egress.refusals import Refused, UpstreamFailed
from gvisor_kernel.egress.upstream import Upstream, translated_errors

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
