"""REST: a picture of a map, by a route of the kernel whose output shows the map.

The request is one of the kernel's own: the process for routes decides, counts and records it, so
nothing is reached that the kernel does not reach. What comes back is a picture by its first bytes,
and is decoded in a frame alone.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from tornado import web

from gvisor_kernel.egress.destinations import Destination, find_route, read_destination
from gvisor_kernel.egress.kinds import HostsRoute, Route, UrlRoute
from gvisor_kernel.egress.patterns import is_host_allowed
from gvisor_kernel.errors import EgressRefused, GvisorKernelError
from gvisor_kernel.kernel.launch import find_opener
from gvisor_kernel.server.handlers import Handler
from gvisor_kernel.server.page_network import Line

if TYPE_CHECKING:
    from gvisor_kernel.egress.stream_client import Ask

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
