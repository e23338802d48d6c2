"""REST: what pages and maps fetch from the network, by a route.

``FetchHandler`` has a page's requests, by a route for pages; the answer is streamed. Request and
answer are parts: four bytes with a length, then so many bytes. The first part of a request is JSON,
what follows is its body. The first part of an answer says whom the page talks to, the second one
has the head, others are pieces of the body. A part of no bytes ends the body; what follows it is a
text that says why the answer is not whole, or nothing.

``TileHandler`` has a picture of a map, by a route of the kernel whose output shows the map. The
request is one of the kernel's own: the process for routes decides, counts and records it, so
nothing is reached that the kernel does not reach. What comes back is a picture by its first bytes,
and is decoded in a frame alone.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tornado import web
from tornado.iostream import StreamClosedError

from gvisor_kernel.artifacts.page import MAX_TICKET
from gvisor_kernel.egress.destinations import (
    Destination,
    find_route,
    outside_address,
    read_destination,
)
from gvisor_kernel.egress.kinds import METHODS, HostsRoute, Route, UrlRoute
from gvisor_kernel.egress.patterns import MAX_TARGET, is_host_allowed
from gvisor_kernel.errors import EgressRefused, GvisorKernelError
from gvisor_kernel.kernel.launch import find_opener
from gvisor_kernel.link.streams import EGRESS_PORT
from gvisor_kernel.server.artifact_handlers import ArtifactHandler
from gvisor_kernel.server.handlers import Handler
from gvisor_kernel.server.page_network import Line
from gvisor_kernel.strict_json import JsonError, parse_json

if TYPE_CHECKING:
    from gvisor_kernel.egress.stream_client import Answer, Ask, Pairs
    from gvisor_kernel.egress.streams import StreamLink

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request's body. The limit of its route is lower by default."""
MAX_HEAD = MAX_TICKET + MAX_TARGET + 64 * 1024
MAX_HEADERS = 100
MAX_VALUE = 4096
"""Characters of a header's value, in each direction."""
UNREAD_SECONDS = 60.0
"""Seconds in which a browser may take nothing of an answer."""
PART = 64 * 1024

SENT = frozenset(
    {
        *("accept", "content-type", "if-match", "if-none-match", "if-modified-since", "prefer"),
        *("anthropic-beta", "anthropic-version", "idempotency-key", "openai-beta"),
        "x-github-api-version",
    }
)
"""Headers of a page's request that are passed on: none says who somebody is, or where from."""
SHOWN = frozenset(
    {
        *("cache-control", "content-disposition", "content-encoding", "content-language"),
        *("content-length", "content-type", "date", "etag", "expires", "last-modified", "link"),
        *("location", "request-id", "retry-after", "x-request-id"),
    }
)
"""Headers of an answer that a page gets, with those in SHOWN_BEGINNINGS."""
SHOWN_BEGINNINGS = ("anthropic-ratelimit-", "ratelimit-", "x-ratelimit-")
_VALUE = re.compile(r"[\t -~]*")


@dataclass(frozen=True)
class PageRequest:
    """A page's request for a URL, as far as it can be read without the routes."""

    ticket: object
    url: str
    method: str
    headers: Pairs
    body: memoryview


def read_page_request(content: bytes) -> PageRequest:
    """Read the parts of a request. The body is not copied: it may be large, and is held until the
    answer has come.

    :raises HTTPError: 400 for what is none, 413 for a body that is too large
    """
    size = int.from_bytes(content[:4], "big")
    if len(content) < 4 + size or size > MAX_HEAD:
        raise web.HTTPError(400, "The request's first part is missing or too long.")
    if len(content) - 4 - size > MAX_BODY:
        raise web.HTTPError(413, f"A request of a page may have {MAX_BODY} bytes.")
    try:
        head = parse_json(content[4 : 4 + size], MAX_HEAD)
    except JsonError as error:
        raise web.HTTPError(400, f"The request's first part is no JSON: {error}.") from error
    if not isinstance(head, dict):
        raise web.HTTPError(400, "The request's first part must be a JSON object.")
    url, method = head.get("url"), head.get("method", "GET")
    if not isinstance(url, str) or method not in METHODS:
        allowed = ", ".join(METHODS)
        raise web.HTTPError(400, f"url must be a text, and method one of {allowed}.")
    headers = _choose_sent(head.get("headers", []))
    return PageRequest(head.get("ticket"), url, method, headers, memoryview(content)[4 + size :])


def _choose_sent(headers: Any) -> Pairs:
    """Return those of a page's headers that are passed on, each name once.

    :raises HTTPError: 400 for what are no headers
    """
    if not isinstance(headers, list) or len(headers) > MAX_HEADERS:
        raise web.HTTPError(400, f"headers must be a list of at most {MAX_HEADERS}.")
    chosen: dict[str, str] = {}
    for pair in headers:
        if not (isinstance(pair, list) and [type(it) for it in pair] == [str, str]):
            raise web.HTTPError(400, "A header must be a list of two texts.")
        name, value = pair[0].lower(), pair[1]
        if name not in SENT:
            continue
        if len(value) > MAX_VALUE or not _VALUE.fullmatch(value):
            raise web.HTTPError(400, f"The header {name} is too long, or not in ASCII.")
        chosen[name] = value.strip()
    return tuple(chosen.items())


def choose_shown(headers: Pairs, route: UrlRoute) -> list[tuple[str, str]]:
    """Return the headers of an answer that a page gets, with addresses as the server has them."""
    inside = f"http://127.0.0.1:{EGRESS_PORT}/{route.name}"
    return [
        (name, outside_address(value, route, inside) if name == "location" else value)
        for name, value in headers
        if (name in SHOWN or name.startswith(SHOWN_BEGINNINGS))
        and len(value) <= MAX_VALUE
        and _VALUE.fullmatch(value)
    ][:MAX_HEADERS]


def make_ask(asked: PageRequest, route: UrlRoute, target: str) -> Ask:
    """Return the request for the route."""
    from gvisor_kernel.egress.stream_client import Ask

    # Some APIs refuse who has no name. What is compressed would reach the page as it is.
    own = (("user-agent", "gvisor-kernel"), ("accept-encoding", "identity"))
    has_body = bool(asked.body) or asked.method in ("PATCH", "POST", "PUT")
    path, body = f"/{route.name}{target}", asked.body if has_body else None
    return Ask(asked.method, path, (*asked.headers, *own), body)


class FetchHandler(ArtifactHandler):
    """``POST fetch``: one request of a page."""

    _work: asyncio.Task[None] | None = None

    async def post(self) -> None:
        asked = read_page_request(self.request.body)
        page = self.open_ticket(asked.ticket)
        network = self.services.artifacts.network
        destination, route, target = network.find(asked.url)
        async with network.opened(page.artifact) as link:
            self._work = asyncio.create_task(
                self._pass_on(link, destination, route, make_ask(asked, route, target))
            )
            # no timeout: the route's limit of time ends it, and so does a browser that goes or does
            # not read
            await asyncio.wait({self._work})
            if not self._work.cancelled():
                self._work.result()  # no timeout: it is done

    def on_connection_close(self) -> None:
        """The browser has gone, or the person has stopped the page."""
        super().on_connection_close()
        if self._work is not None:
            self._work.cancel()

    async def _pass_on(
        self, link: StreamLink, destination: Destination, route: UrlRoute, ask: Ask
    ) -> None:
        from gvisor_kernel.egress.stream_client import AnswerBroken, asking

        self.set_header("Content-Type", "application/octet-stream")
        self.set_opaque()
        self.set_header("X-Accel-Buffering", "no")  # a proxy before the server holds nothing back
        why = ""
        try:
            await self._send({"host": destination.shown, "route": route.name})
            try:
                async with asking(link, ask) as answer:
                    await self._pass_answer(answer, route)
            except AnswerBroken as error:
                why = f"{destination.shown}: {error}."
            self.write(_part(b"") + why.encode())
            self.finish()
        except TimeoutError:  # nobody reads: a text would not be read either
            assert self.request.connection is not None
            self.request.connection.close()  # type: ignore[attr-defined]
        except StreamClosedError:
            return

    async def _pass_answer(self, answer: Answer, route: UrlRoute) -> None:
        """:raises AnswerBroken: the answer is not whole"""
        from gvisor_kernel.egress.stream_client import AnswerBroken

        if not 200 <= answer.status <= 599:
            raise AnswerBroken(f"it answers with the status {answer.status}")
        await self._send({"status": answer.status, "headers": choose_shown(answer.headers, route)})
        async for data in answer.body:
            for at in range(0, len(data), PART):
                await self._send_bytes(data[at : at + PART])

    async def _send(self, document: Any) -> None:
        await self._send_bytes(json.dumps(document).encode())

    async def _send_bytes(self, data: bytes) -> None:
        """:raises TimeoutError: the browser takes nothing for UNREAD_SECONDS"""
        self.write(_part(data))
        async with asyncio.timeout(UNREAD_SECONDS):
            await self.flush()


def _part(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


MAX_TILE = 1024 * 1024
SECONDS = 10.0
AT_ONCE = 8
"""Tiles of one kernel that are fetched at once."""
HEADERS = (
    ("accept", "image/png, image/jpeg, image/webp, image/avif"),
    ("accept-encoding", "identity"),
    ("user-agent", "gvisor-kernel"),
)
_PICTURE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|.{4}ftypavi[fs]", re.DOTALL)
_open: Counter[str] = Counter()


def make_tile_ask(wanted: Destination, routes: Sequence[Route]) -> Ask:
    """Return the request for a tile by one of a kernel's routes.

    :raises EgressRefused: there is none
    """
    from gvisor_kernel.egress.stream_client import Ask

    named = [replace(route, artifacts=True) for route in routes if isinstance(route, UrlRoute)]
    try:
        route, target = find_route(wanted, named)
        return Ask("GET", f"/{route.name}{target}", HEADERS)
    except EgressRefused:
        hosts = [it for route in routes if isinstance(route, HostsRoute) for it in route.hosts]
        if not is_host_allowed(wanted.host, wanted.port, hosts):
            raise
    whole = f"{wanted.scheme}://{wanted.shown}{wanted.target}"
    return Ask("GET", whole, HEADERS, host=wanted.shown)


class TileHandler(Handler):
    """``GET kernels/{kernel_id}/tiles``"""

    async def get(self, kernel_id: str) -> None:
        self.check_kernel(kernel_id)
        kernel = self.services.sandboxes.find_kernel(kernel_id)
        facts, sandbox = (None, None) if kernel is None else (kernel.describe(), kernel.sandbox)
        if facts is None or sandbox is None:
            raise web.HTTPError(404, "This kernel has no sandbox.")
        try:
            wanted = read_destination(self.get_query_argument("url", "", strip=False))
        except EgressRefused as error:
            raise web.HTTPError(400, str(error)) from error
        try:
            ask = make_tile_ask(wanted, facts.routes)
        except EgressRefused as error:
            raise web.HTTPError(404, f"This kernel has no route to {wanted.shown}.") from error
        if _open[kernel_id] >= AT_ONCE:
            raise web.HTTPError(429, f"This kernel has {AT_ONCE} tiles open, which is the most.")
        opening = self.services.executor.submit(find_opener(sandbox))
        _open[kernel_id] += 1
        try:
            async with asyncio.timeout(SECONDS):
                line = Line(await asyncio.wrap_future(opening))
                tile = await _read_tile(line, ask)
        except TimeoutError as error:
            opening.add_done_callback(_close_late)
            raise web.HTTPError(504, f"{wanted.shown} takes more than {SECONDS:g} s.") from error
        except GvisorKernelError as error:
            raise web.HTTPError(503, "The routes cannot be used now.") from error
        finally:
            _open.subtract([kernel_id])
            if not _open[kernel_id]:
                del _open[kernel_id]
        self.set_opaque()
        self.finish(tile, set_content_type="application/octet-stream")


def _close_late(opening: Future[socket.socket]) -> None:
    """Close a socket for which nobody waits any more. Called in any thread."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result(0).close()


async def _read_tile(line: Line, ask: Ask) -> bytes:
    """Fetch a tile, and close the line.

    :raises HTTPError: 429, 502 or 415 for what is none
    """
    from gvisor_kernel.egress.stream_client import AnswerBroken, asking

    tile = bytearray()
    try:
        async with asking(line.link, ask) as answer:
            if answer.status != 200:
                status = 429 if answer.status == 429 else 502
                raise web.HTTPError(status, f"It was answered with the status {answer.status}.")
            async for data in answer.body:
                tile += data
                if len(tile) > MAX_TILE:
                    raise web.HTTPError(502, f"It has more than {MAX_TILE} bytes.")
    except AnswerBroken as error:
        raise web.HTTPError(502, f"There is no whole answer: {error}.") from error
    finally:
        line.close()
    if not _PICTURE.match(tile):
        raise web.HTTPError(415, "It is no PNG, JPEG, WebP or AVIF.")
    return bytes(tile)
