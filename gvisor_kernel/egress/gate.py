"""Decides which route a request of a kernel belongs to, and holds it to that route's limits.

One gate for each run of a kernel, and one object with what it needs beside HTTP (``Services``). It
knows only the routes of that kernel, so a request for another kernel's is one for a route that does
not exist. Each request leaves one line in the audit and in the kernel's log.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from gvisor_kernel.egress import addresses
from gvisor_kernel.egress.addresses import NameResolver, make_name_threads
from gvisor_kernel.egress.audit import Audit, Entry
from gvisor_kernel.egress.budgets import (
    RETRY_SECONDS,
    Admission,
    Budgets,
    DailyBudgets,
    is_daily,
    refuse,
)
from gvisor_kernel.egress.environment import JUPYTER
from gvisor_kernel.egress.forward import Reverse, open_tunnel, pass_on
from gvisor_kernel.egress.heads import Form, Head
from gvisor_kernel.egress.http import Handler, Reply, Request
from gvisor_kernel.egress.kinds import HostsRoute, PackagesRoute, Route, UrlRoute
from gvisor_kernel.egress.own_process import (
    describe_error,
    end_if_out_of_memory,
    is_memory_short,
)
from gvisor_kernel.egress.patterns import is_host_allowed, split_authority
from gvisor_kernel.egress.refusals import (
    BadRequest,
    LimitReached,
    Refusal,
    Refused,
    UpstreamFailed,
)
from gvisor_kernel.egress.secret_reader import SecretReader
from gvisor_kernel.egress.streams import StreamReset
from gvisor_kernel.egress.turns import Turns
from gvisor_kernel.egress.upstream import Upstream
from gvisor_kernel.errors import EgressError, EgressRefused, SecretError
from gvisor_kernel.link.streams import EGRESS_PORT

OWN_NAMES = frozenset({"127.0.0.1", "localhost"})
"""What a program inside may call the proxy in the header Host."""
_NAME = re.compile(rb"/([a-z][a-z0-9-]{0,31})(?=[/?]|$)")

TURN_SECONDS = 10.0
"""How long a request waits for another one of its route to end, before it is refused."""

Answer = Callable[[Request, Reply, Admission], Awaitable[None]]


@dataclass(frozen=True)
class Shared:
    """The services that all kernels of a worker share. Make it in the worker's event loop."""

    daily: DailyBudgets = field(default_factory=DailyBudgets)
    secrets: SecretReader = field(default_factory=SecretReader)
    name_threads: ThreadPoolExecutor = field(default_factory=make_name_threads)


class Services:
    """Resolves names, reads secrets, keeps budgets and records requests, for one run of a kernel.

    ``say`` writes a line into the kernel's log; ``report_entry`` writes a request that has ended
    there, and counts it. ``environment`` has the values of ``env:``. Whatever blocks runs in a
    thread.
    """

    def __init__(
        self,
        audit: Path | None,
        environment: Mapping[str, str],
        shared: Shared,
        say: Callable[[str], None],
        report_entry: Callable[[Entry], None],
    ) -> None:
        self._audit = None if audit is None else Audit(audit)
        self._environment = environment
        self._budgets = Budgets(shared.daily)
        self._turns: dict[str, Turns] = {}
        self._secrets = shared.secrets
        self.names = NameResolver(shared.name_threads)
        self._say = say
        self._report_entry = report_entry
        self._dismissing: set[asyncio.Future[None]] = set()

    async def resolve(self, host: str, port: int, *, allow_private: bool) -> list[str]:
        """Return addresses of ``host`` that were judged.

        :raises Refusal: one of them is not allowed, or there is none
        """
        try:
            return await addresses.resolve(
                host, port, self.names.resolve, allow_private=allow_private
            )
        except EgressRefused as error:
            raise Refused(error.fact.rstrip("."), error.hint) from error
        except EgressError as error:
            raise UpstreamFailed(error.fact.rstrip(".")) from error

    async def read_secret(self, route: str, reference: str) -> str:
        """Return the value of a route's secret.

        :raises UpstreamFailed: it cannot be read; the kernel's log says why
        """
        try:
            return await self._secrets.read(reference, self._environment)
        except (SecretError, TimeoutError) as error:
            why = str(error) if isinstance(error, SecretError) else "it takes too long"
            self._say(f"a secret cannot be read: {why}")
            raise UpstreamFailed(
                f"the credential of the route {route} cannot be read on the host",
                advice="gvisor-kernel doctor, on the host, says why.",
            ) from None

    async def admit(self, route: Route) -> Admission:
        """Count a request that begins. Its end is told with ``dismiss``.

        :raises Refusal: a limit is reached
        """
        if is_memory_short():
            raise LimitReached(
                "the host's process for routes has too much open at once",
                "try again when other requests have ended.",
                503,
                RETRY_SECONDS,
            )
        try:
            if self._audit is not None:
                self._audit.check()
            # A client may begin its next request before the end of the last one is counted.
            turns = self._turns.setdefault(route.name, Turns(route.limits.at_once))
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await turns.acquire()
            except TimeoutError:
                raise refuse(route, "at_once", route.limits.at_once) from None
            return await self._count(route, turns)
        except EgressError as error:
            self._say(error.fact)
            raise UpstreamFailed("the request cannot be counted or recorded on the host") from error

    async def _count(self, route: Route, turns: Turns) -> Admission:
        """Count a request that begins, and has a turn.

        The thread that a daily budget needs goes on when its client goes away; the request ends
        after it.
        """
        try:
            if not is_daily(route):
                return self._budgets.admit(route)
            loop = asyncio.get_running_loop()
            counting = loop.run_in_executor(None, self._budgets.admit, route)
            try:
                # no timeout: a transaction, with a timeout for its lock
                return await asyncio.shield(counting)
            except asyncio.CancelledError:
                counting.add_done_callback(partial(self._dismiss_late, turns))
                raise
        except (EgressError, LimitReached):
            turns.release()
            raise

    def _dismiss_late(self, turns: Turns, counting: asyncio.Future[Admission]) -> None:
        if counting.exception() is not None:
            turns.release()
            return
        # no timeout: it is done
        dismissing = asyncio.ensure_future(self.dismiss(counting.result()))
        self._dismissing.add(dismissing)
        dismissing.add_done_callback(self._dismissing.discard)

    async def dismiss(self, admission: Admission) -> None:
        """End a request that was admitted."""
        try:
            if is_daily(admission.route):
                loop = asyncio.get_running_loop()
                # no timeout: a transaction, which BUSY_SECONDS bounds
                await asyncio.shield(loop.run_in_executor(None, admission.close))
            else:
                admission.close()
        except EgressError as error:
            self._say(error.fact)
        finally:
            self._turns[admission.route.name].release()

    def record_open(self, entry: Entry) -> None:
        """Write down that a request begins, before anything of it is sent.

        :raises UpstreamFailed: it cannot be recorded
        """
        if self._audit is None:
            return
        try:
            self._audit.write_open(entry)
        except EgressError as error:
            self._say(error.fact)
            raise UpstreamFailed("the request cannot be recorded on the host") from error

    def record(self, entry: Entry) -> None:
        """Write down a request that has ended: in the audit, and in the kernel's log."""
        if self._audit is None or self._audit.write(entry):
            self._report_entry(entry)

    def close(self) -> None:
        """Close the audit."""
        if self._audit is not None:
            self._audit.close()

    def report(self, error: BaseException) -> None:
        """Write down that this program has failed."""
        self._say(f"the proxy failed: {describe_error(error)}")


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
                self._answers[route.name] = _without_admission(reverse.handle)
            elif isinstance(route, PackagesRoute) and packages is not None:
                self._answers[route.name] = _without_admission(packages)

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
            outcome.seconds = round(time.monotonic() - began, 6)
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
            reply.on_body = admission.pass_down
            admission.check_length(request.head.length or 0)
            counted = replace(request, body=_count(request.body, admission), announce=announce)
            async with asyncio.timeout(limits.seconds) as timer:
                await answer(counted, reply, admission)
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
                if head.form is Form.AUTHORITY:
                    resolve = partial(self._services.resolve, allow_private=route.allow_private)
                    return route, partial(open_tunnel, host, port, resolve)
                answer = partial(pass_on, host, port, self._upstreams[route.name])
                return route, _without_admission(answer)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise Refused(
            f"no egress route of this kernel allows {shown}",
            f'an administrator can add "{shown}" to the hosts of a route: c.GVisorEgress.routes = '
            f'{{"web": {{"hosts": ["{shown}"]}}}}. Then {self._giving.replace("NAME", "web")}'
            " gives it to the kernel.",
        )

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
    return Entry(method=head.method, host=shown, path=path, is_open=is_open, **asdict(outcome))


def _without_admission(handle: Handler) -> Answer:
    return lambda request, reply, _: handle(request, reply)


async def _count(body: AsyncIterator[bytes], admission: Admission) -> AsyncIterator[bytes]:
    async for data in body:
        await admission.pass_up(len(data))
        yield data
