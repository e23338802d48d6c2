"""A route with a ``url``: the sandbox asks for ``/NAME/…``, this asks its one server over TLS.

The credential is added here, and what the sandbox sent in its place is dropped. The server's name
and the base path are the configuration's; the sandbox chooses only what comes after.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpcore

from gvisor_kernel.egress.forward import (
    Pairs,
    check_method,
    forward,
    is_quoted,
    request_headers,
    without,
)
from gvisor_kernel.egress.http import Reply, Request
from gvisor_kernel.egress.kinds import UrlRoute
from gvisor_kernel.egress.patterns import find_target_fault, is_allowed, split_target
from gvisor_kernel.egress.refusals import Refused, UpstreamFailed
from gvisor_kernel.egress.upstream import Upstream
from gvisor_kernel.link.streams import EGRESS_PORT

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
        parts = urlsplit(route.url)
        self._scheme = parts.scheme
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._name = parts.hostname or ""
        self._authority = parts.netloc.rpartition("@")[2]
        self._base = parts.path.rstrip("/")
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
        fault = find_target_fault(target)
        if fault is not None:
            raise Refused(
                f"the path {fault}, which servers read in different ways",
                "send a path that has one meaning; no setting allows this one.",
            )
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
        if self._route.header:
            name, _, template = self._route.header.partition(":")
            headers = without(headers, name.strip().encode())
            if self._route.secret:
                secret = await self._read_secret(self._route.secret)
            value = template.strip().replace("{secret}", secret)
            if not value.isascii() or not value.isprintable():
                raise UpstreamFailed(f"the credential of the route {self._route.name} is unusable")
            headers.append((name.strip().encode(), value.encode()))
        if secret:
            for hiding in HIDING:
                headers = without(headers, hiding)
            headers.append((b"Accept-Encoding", b"identity"))
        url = httpcore.URL(
            scheme=self._scheme, host=self._name, port=self._port, target=target or b"/"
        )

        def change(answer: Pairs) -> Pairs:
            return self._change(answer, secret.encode())

        await forward(self._upstream, request, reply, url, headers, change, secret.encode())

    def _change(self, headers: Pairs, secret: bytes) -> Pairs:
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
        own = f"{self._scheme}://{self._authority}"
        if text.startswith("/") and not text.startswith("//"):
            text = own + text
        elif text.startswith("//"):
            text = f"{self._scheme}:{text}"
        base = own + self._base
        rest = text[len(base) :]
        if text.lower().startswith(base.lower()) and rest[:1] in ("", "/", "?", "#"):
            text = self._inside + rest
        return text.encode("latin-1")
