"""The services of a gate: names resolved, secrets read, budgets kept, requests written down.

One object for each run of a kernel. Whatever blocks runs in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gvisor_kernel.egress import addresses
from gvisor_kernel.egress.addresses import NameResolver, make_name_threads
from gvisor_kernel.egress.audit import Audit, Entry
from gvisor_kernel.egress.budgets import Admission, Budgets, DailyBudgets, is_daily, refuse
from gvisor_kernel.egress.kinds import Route
from gvisor_kernel.egress.own_process import describe_error, is_memory_short
from gvisor_kernel.egress.refusals import LimitReached, Refused, UpstreamFailed
from gvisor_kernel.egress.secrets import read_secret
from gvisor_kernel.egress.turns import Turns
from gvisor_kernel.errors import EgressError, EgressRefused, SecretError

THREADS = 8
KEEP_SECONDS = 60.0
"""How long a secret that was read is used; then it is read again, as it may have been replaced."""
READ_SECONDS = 20.0
"""How long a request waits for its secret."""


class SecretReader:
    """One for each worker. Use it in one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "secrets")
        self._known: dict[str, tuple[float, str]] = {}
        self._reading: dict[str, asyncio.Future[str]] = {}

    async def read(self, reference: str, environment: Mapping[str, str]) -> str:
        """Return a secret's value. ``environment`` has the values of ``env:``.

        :raises SecretError: it cannot be read
        :raises TimeoutError: it was not read within READ_SECONDS
        """
        if reference.startswith("env:"):
            return read_secret(reference, environment)
        read, value = self._known.get(reference, (0.0, ""))
        if value and time.monotonic() < read + KEEP_SECONDS:
            return value
        reading = self._reading.get(reference)
        if reading is None:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(self._threads, read_secret, reference, {})
            self._reading[reference] = reading
            reading.add_done_callback(lambda done: self._note(reference, done))
        async with asyncio.timeout(READ_SECONDS):
            return await asyncio.shield(reading)

    def _note(self, reference: str, done: asyncio.Future[str]) -> None:
        del self._reading[reference]
        with suppress(SecretError):
            self._known[reference] = (time.monotonic(), done.result())  # no timeout: it is done


RETRY_SECONDS = 10
"""When a client may try again that was refused for the number of requests."""
TURN_SECONDS = 10.0
"""How long a request waits for another one of its route to end, before it is refused."""


@dataclass(frozen=True)
class Shared:
    """The services that all kernels of a worker share. Make it in the worker's event loop."""

    daily: DailyBudgets = field(default_factory=DailyBudgets)
    secrets: SecretReader = field(default_factory=SecretReader)
    name_threads: ThreadPoolExecutor = field(default_factory=make_name_threads)


class Services:
    """``say`` writes a line into the kernel's log; ``report_entry`` writes a request that has ended
    there, and counts it. ``environment`` has the values of ``env:``."""

    def __init__(
        self,
        identity: str,
        audit: Path | None,
        environment: Mapping[str, str],
        shared: Shared,
        say: Callable[[str], None],
        report_entry: Callable[[Entry], None],
    ) -> None:
        self._identity = identity
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
        except EgressRefused as error:
            raise LimitReached(error.fact, error.hint, 429, RETRY_SECONDS) from error
        except EgressError as error:
            self._say(error.fact)
            raise UpstreamFailed("the request cannot be counted or recorded on the host") from error

    async def _count(self, route: Route, turns: Turns) -> Admission:
        """Count a request that begins, and has a turn.

        The thread that a daily budget needs goes on when its client goes away; the request ends
        after it.
        """
        charging: asyncio.Future[None] | None = None
        try:
            admission = self._budgets.begin(route)
            if is_daily(route):
                loop = asyncio.get_running_loop()
                charging = loop.run_in_executor(None, self._budgets.charge, admission)
                # no timeout: a transaction, with a timeout for its lock
                await asyncio.shield(charging)
        except asyncio.CancelledError:
            assert charging is not None  # nothing else is waited for
            charging.add_done_callback(lambda _: self._dismiss_late(admission))
            raise
        except EgressError:
            turns.release()
            raise
        return admission

    def _dismiss_late(self, admission: Admission) -> None:
        dismissing = asyncio.ensure_future(self.dismiss(admission))
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
