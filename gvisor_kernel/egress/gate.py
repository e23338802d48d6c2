"""Decides which route a request of a kernel belongs to, and holds it to that route's limits.

One gate for each run of a kernel. It knows only the routes of that kernel, so a request for another
kernel's is one for a route that does not exist. Each request leaves one line in the audit and in
the kernel's log.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from gvisor_kernel.egress.audit import Entry, make_entry
from gvisor_kernel.egress.environment import JUPYTER
from gvisor_kernel.egress.forward import Reverse
from gvisor_kernel.egress.heads import Form, Head
from gvisor_kernel.egress.http import Handler, Reply, Request
from gvisor_kernel.egress.kinds import HostsRoute, PackagesRoute, Route, UrlRoute
from gvisor_kernel.egress.own_process import end_if_out_of_memory
from gvisor_kernel.egress.patterns import is_host_allowed, split_authority
from gvisor_kernel.egress.refusals import BadRequest, LimitReached, Refusal, Refused
from gvisor_kernel.egress.services import Services
from gvisor_kernel.egress.streams import StreamReset
from gvisor_kernel.egress.tunnel import Meter, open_tunnel, pass_on
from gvisor_kernel.egress.upstream import Upstream
from gvisor_kernel.link.streams import EGRESS_PORT

OWN_NAMES = frozenset({"127.0.0.1", "localhost"})
"""What a program inside may call the proxy in the header Host."""
_NAME = re.compile(rb"/([a-z][a-z0-9-]{0,31})(?=[/?]|$)")

Answer = Callable[[Request, Reply, Meter], Awaitable[None]]


@dataclass
class _Outcome:
    """The end of one request: fields of its entry in the audit. ``id``: "" if nothing of it was
    sent."""

    id: str = ""
    route: str = ""
    status: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0
    reason: str = ""


class Gate:
    """Answers the requests of one run of a kernel."""

    def __init__(
        self,
        routes: Sequence[Route],
        services: Services,
        packages: Handler | None = None,
        giving: str = JUPYTER.giving,
    ) -> None:
        """``giving``: how the route NAME is given to this kernel (``Door``)."""
        self._giving = giving
        self._routes = {route.name: route for route in routes}
        self._services = services
        self._upstreams: dict[str, Upstream] = {}
        self._answers: dict[str, Answer] = {}
        for route in routes:
            upstream = self._upstreams[route.name] = Upstream(
                partial(services.resolve, allow_private=getattr(route, "allow_private", False))
            )
            if isinstance(route, UrlRoute):
                reverse = Reverse(route, upstream, partial(services.read_secret, route.name))
                self._answers[route.name] = _ignoring_meter(reverse.handle)
            elif isinstance(route, PackagesRoute) and packages is not None:
                self._answers[route.name] = _ignoring_meter(packages)

    async def close(self) -> None:
        """Close the connections to servers, and the audit."""
        for upstream in self._upstreams.values():
            await upstream.close()
        self._services.close()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request.

        :raises Refusal: the answer is a refusal
        :raises StreamReset: the client has gone
        """
        head = request.head
        outcome = _Outcome()
        began = time.monotonic()
        try:
            try:
                await self._handle(request, reply, outcome)
            except (Refusal, StreamReset) as error:
                end_if_out_of_memory(error)  # of which it may come
                raise
            except Exception as error:
                end_if_out_of_memory(error)
                self._services.report(error)
                raise Refusal(500, "gvisor-kernel: the request failed inside the proxy") from error
        except Refusal as refusal:
            outcome.reason = refusal.reason
            outcome.status = reply.status or refusal.status
            raise
        except StreamReset:
            outcome.reason = "" if reply.is_whole else "the client has gone"
            raise
        except asyncio.CancelledError:  # also by a client that has the whole answer, and goes
            if not reply.is_whole:
                outcome.reason = "the client has gone, or the kernel has ended"
            raise
        finally:
            outcome.status = outcome.status or reply.status
            outcome.seconds = time.monotonic() - began
            self._services.record(_make_entry(head, outcome))

    async def _handle(self, request: Request, reply: Reply, outcome: _Outcome) -> None:
        route, answer = self._find(request)
        outcome.route = route.name
        limits = route.limits
        admission = await self._services.admit(route)
        request.stream.is_useful = True

        def announce() -> None:
            opened = replace(outcome, id=secrets.token_hex(8))
            self._services.record_open(_make_entry(request.head, opened, is_open=True))
            outcome.id = opened.id

        try:
            meter = Meter(admission)
            reply.on_body = meter.received
            if request.head.length is not None:
                meter.check_length(request.head.length)
            counted = replace(request, body=_count(request.body, meter), announce=announce)
            async with asyncio.timeout(limits.seconds) as timer:
                await answer(counted, reply, meter)
        except TimeoutError:
            if not timer.expired():
                raise
            raise LimitReached(
                f"the request took longer than {limits.seconds:g} s",
                "an administrator may raise "
                f'c.GVisorEgress.routes["{route.name}"]["limits"]["seconds"].',
                504,
            ) from None
        finally:
            outcome.up, outcome.down = admission.up, admission.down
            await self._services.dismiss(admission)

    # -- which route -----------------------------------------------------------------------------

    def _find(self, request: Request) -> tuple[Route, Answer]:
        head = request.head
        if head.form is Form.ORIGIN:
            return self._find_named(head)
        authority = split_authority(f"{head.host}:{head.port}")
        if authority is None:
            raise Refused(
                "the host is neither a name nor an address in its usual form",
                "write an address as 192.0.2.1 or [2001:db8::1].",
            )
        host, port = authority
        if host in OWN_NAMES and port == EGRESS_PORT:
            raise BadRequest("A route of this proxy is asked for by its path, not through a proxy")
        for route in self._routes.values():
            if isinstance(route, HostsRoute) and is_host_allowed(host, port, route.hosts):
                answer = self._tunnel if head.form is Form.AUTHORITY else self._pass_on
                return route, partial(answer, route, host, port)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise Refused(
            f"no egress route of this kernel allows {shown}",
            f'an administrator can add "{shown}" to the hosts of a route: c.GVisorEgress.routes = '
            f'{{"web": {{"hosts": ["{shown}"]}}}}. Then {self._giving.replace("NAME", "web")}'
            " gives it to the kernel.",
        )

    async def _tunnel(
        self,
        route: HostsRoute,
        host: str,
        port: int,
        request: Request,
        reply: Reply,
        meter: Meter,
    ) -> None:
        resolve = partial(self._services.resolve, allow_private=route.allow_private)
        await open_tunnel(request, reply, host, port, resolve, meter)

    async def _pass_on(
        self,
        route: HostsRoute,
        host: str,
        port: int,
        request: Request,
        reply: Reply,
        meter: Meter,
    ) -> None:
        await pass_on(request, reply, host, port, self._upstreams[route.name])

    def _find_named(self, head: Head) -> tuple[Route, Answer]:
        is_named = head.host in OWN_NAMES and head.port == EGRESS_PORT
        if not is_named and (head.host or head.version != b"1.0"):
            raise BadRequest(f"The header Host is not 127.0.0.1:{EGRESS_PORT}", 421)
        found = _NAME.match(head.path)
        name = found[1].decode() if found else ""
        route = self._routes.get(name)
        if route is None or name not in self._answers:
            having = ", ".join(self._answers) or "none"
            raise Refused(
                f"this kernel has no egress route {name or 'of that name'}; it has: {having}",
                "an administrator defines routes in c.GVisorEgress.routes;"
                f" {self._giving} gives one to the kernel.",
            )
        return route, self._answers[name]


def _make_entry(head: Head, outcome: _Outcome, *, is_open: bool = False) -> Entry:
    shown = "" if head.form is Form.ORIGIN else f"{head.host}:{head.port}"
    path = head.path.decode("ascii")
    return make_entry(method=head.method, host=shown, path=path, is_open=is_open, **asdict(outcome))


def _ignoring_meter(handle: Callable[[Request, Reply], Awaitable[None]]) -> Answer:
    return lambda request, reply, meter: handle(request, reply)


async def _count(body: AsyncIterator[bytes], meter: Meter) -> AsyncIterator[bytes]:
    async for data in body:
        await meter.sent(len(data))
        yield data
