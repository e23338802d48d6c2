"""The rest of the limits of routes: requests in a minute and a day, and bytes.

The rate is counted for each kernel, so that none can use up another one's. Daily budgets are
counted for all processes of this user, in a file of the state directory, by route and day (UTC).
Each change of the file is one transaction, so threads and processes that race never get more than
the limit together. Bytes are taken from the daily budget in blocks before they are passed on. What
is left of a block is given back at the end; a process that is killed gives nothing back.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from gvisor_kernel.egress.kinds import Route
from gvisor_kernel.egress.refusals import LimitReached, UpstreamFailed
from gvisor_kernel.errors import EgressError
from gvisor_kernel.host.descriptors import closing_fd
from gvisor_kernel.host.locks import ThreadLock

FILE = "egress-budgets.sqlite3"
BLOCK = 256 * 1024
"""Bytes that are taken from a daily budget at once, so that not each piece of a body costs a
transaction. Open requests may hold so much of the last of a budget."""
BUSY_SECONDS = 20.0
"""How long the file may be locked by other processes. A transaction takes milliseconds."""
KEEP_DAYS = 40
WINDOW = 60.0
RETRY_SECONDS = 10
"""When a client may try again that was refused for the number of requests."""

_TABLE = """
create table if not exists spent (
  route text, day text, requests integer not null, bytes integer not null,
  primary key (route, day)
) without rowid
"""


@dataclass(frozen=True)
class Spent:
    """The part that was taken from the budget of a route on one day."""

    requests: int = 0
    bytes: int = 0


class DailyBudgets:
    """The file with what was spent each day. Any thread, any number of processes. Blocks."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """``path``: the file; by default that of the state directory."""
        self._given_path = path
        self._clock = clock
        self._turn = ThreadLock()

    def today(self) -> str:
        """Return the day, in UTC, that is counted now."""
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    def spent(self, route: Route) -> Spent:
        """Return what was spent of the budget of ``route`` today.

        :raises EgressError: when the file cannot be used
        """
        with self._transaction() as database:
            return _read(database, route.name, self.today())

    def take_request(self, route: Route) -> None:
        """Count one request.

        :raises LimitReached: no request, or no byte, is left for today
        :raises EgressError: when the file cannot be used
        """
        limits, day = route.limits, self.today()
        with self._transaction() as database:
            spent = _read(database, route.name, day)
            if limits.daily_requests is not None and spent.requests >= limits.daily_requests:
                raise refuse(route, "daily_requests", limits.daily_requests)
            if limits.daily_bytes is not None and spent.bytes >= limits.daily_bytes:
                raise refuse(route, "daily_bytes", limits.daily_bytes)
            _add(database, route.name, day, 1, 0)
            if spent.requests == 0:
                last = datetime.fromtimestamp(self._clock(), UTC) - timedelta(days=KEEP_DAYS)
                database.execute("delete from spent where day < ?", (last.date().isoformat(),))

    def take_bytes(self, route: Route, wanted: int) -> tuple[str, int]:
        """Take up to ``wanted`` bytes; return the day that they belong to, and how many they are.

        :raises EgressError: when the file cannot be used
        """
        day, most = self.today(), route.limits.daily_bytes
        with self._transaction() as database:
            left = wanted if most is None else most - _read(database, route.name, day).bytes
            granted = max(min(wanted, left), 0)
            _add(database, route.name, day, 0, granted)
        return day, granted

    def give_back(self, route: Route, day: str, count: int) -> None:
        """Return bytes that were taken and not used.

        :raises EgressError: when the file cannot be used
        """
        with self._transaction() as database:
            _add(database, route.name, day, 0, -count)

    @cached_property
    def _path(self) -> Path:
        if self._given_path is not None:
            return self._given_path
        # Most routes have no daily budget, and this takes some MiB of modules.
        from gvisor_kernel.host.private_directories import state_root

        return state_root() / FILE

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the file and hold its write lock; on an exception nothing is changed."""
        try:
            with self._turn, closing(self._connect()) as database:
                database.execute("begin immediate")
                try:
                    database.execute(_TABLE)
                    yield database
                except BaseException:
                    database.execute("rollback")
                    raise
                database.execute("commit")
        except (sqlite3.Error, OSError) as error:
            raise EgressError(
                f"The file of daily budgets {self._path} cannot be used: {error}.",
                "check whether the disk is full; if the file is damaged, remove it: the count of"
                " today begins again.",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        # by path: below the state directory, whose parents only this user can change
        with closing_fd(os.open(self._path, flags, 0o600)) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise PermissionError("it is not a file of this user")
            if status.st_mode & 0o077:
                os.fchmod(fd, 0o600)
        return sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)


def _read(database: sqlite3.Connection, route: str, day: str) -> Spent:
    row = database.execute(
        "select requests, bytes from spent where route = ? and day = ?", (route, day)
    ).fetchone()
    return Spent() if row is None else Spent(*row)


def _add(database: sqlite3.Connection, route: str, day: str, requests: int, count: int) -> None:
    database.execute(
        "insert into spent values (?, ?, ?, ?) on conflict do update set"
        " requests = requests + excluded.requests, bytes = bytes + excluded.bytes",
        (route, day, requests, count),
    )


def refuse(route: Route, limit: str, value: int, status: int = 429) -> LimitReached:
    """Return the refusal for a limit that is reached."""
    return LimitReached(
        f'The limit {limit} = {value} of the route "{route.name}" is reached.',
        f"{_WAIT[limit]} an administrator may raise"
        f' c.GVisorEgress.routes["{route.name}"]["limits"]["{limit}"].',
        status,
        RETRY_SECONDS if status == 429 else 0,
    )


_WAIT = {
    "at_once": "wait until another request has ended;",
    "requests_per_minute": "wait for a minute;",
    "daily_requests": "wait until 0:00 UTC;",
    "daily_bytes": "wait until 0:00 UTC;",
    "request_bytes": "send less in one request;",
    "response_bytes": "ask for less at once;",
}


# -- of one kernel ---------------------------------------------------------------------------------


class Budgets:
    """Admits the requests of one kernel. Any thread. ``daily``: None for no daily budgets."""

    def __init__(
        self, daily: DailyBudgets | None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._daily = daily
        self._monotonic = monotonic
        self._times: dict[str, deque[float]] = {}
        """When the requests of the last minute began, by route."""
        self._lock = ThreadLock()

    def admit(self, route: Route) -> Admission:
        """Count a request that begins. Close the result when it has ended.

        Blocks for the file of daily budgets if the route has such a limit (``is_daily``).

        :raises LimitReached: a limit is reached; nothing is counted then
        :raises EgressError: the file of daily budgets cannot be used
        """
        now, limits = self._monotonic(), route.limits
        with self._lock:
            times = self._times.setdefault(route.name, deque())
            while times and times[0] <= now - WINDOW:
                times.popleft()
            if len(times) >= limits.requests_per_minute:
                raise refuse(route, "requests_per_minute", limits.requests_per_minute)
            times.append(now)
        if self._daily is not None and is_daily(route):
            try:
                self._daily.take_request(route)
            except BaseException:
                with self._lock, suppress(ValueError):
                    times.remove(now)
                raise
        return Admission(route, self._daily)


def is_daily(route: Route) -> bool:
    """Return whether ``route`` has a daily budget, so that its Admission may block for the file."""
    return route.limits.daily_requests is not None or route.limits.daily_bytes is not None


class Admission:
    """One request that was admitted. One thread for each direction.

    ``up``: bytes of the request's body; ``down``: bytes of the answer's. A tunnel's likewise.
    ``sent`` and ``received`` are called before the bytes are passed on. They block now and then if
    the route has a limit ``daily_bytes`` (``may_block``); ``pass_up`` and ``pass_down`` do not.
    """

    def __init__(self, route: Route, daily: DailyBudgets | None) -> None:
        self.route = route
        self.up = 0
        self.down = 0
        self._daily = daily if route.limits.daily_bytes is not None else None
        self._block: tuple[str, int] = ("", 0)
        self._lock = ThreadLock()
        self._closed = False

    def may_block(self, count: int) -> bool:
        """Return whether the next ``count`` bytes need the file of daily budgets."""
        return self._daily is not None and self._block[1] < count

    def check_length(self, size: int) -> None:
        """Check the announced size of a request's body.

        :raises LimitReached: it is too large
        """
        most = self.route.limits.request_bytes
        if size > most:
            raise refuse(self.route, "request_bytes", most, 413)

    async def pass_up(self, count: int) -> None:
        """Count bytes that the sandbox sends.

        :raises Refusal: a limit is reached; they must not be passed on
        """
        await self._count(self.sent, count)

    async def pass_down(self, count: int) -> None:
        """Count bytes that the sandbox gets; otherwise as ``pass_up``."""
        await self._count(self.received, count)

    async def _count(self, count: Callable[[int], None], size: int) -> None:
        try:
            if self.may_block(size):
                await asyncio.get_running_loop().run_in_executor(None, count, size)
            else:
                count(size)
        except EgressError as error:
            raise UpstreamFailed("the budget of the route cannot be counted") from error

    def sent(self, count: int) -> None:
        """Count bytes to the upstream.

        :raises LimitReached: these bytes must not be passed on
        :raises EgressError: the file of daily budgets cannot be used
        """
        self.check_length(self.up + count)
        self._spend(count, 413)
        self.up += count

    def received(self, count: int) -> None:
        """Count bytes from the upstream; otherwise as ``sent``."""
        most = self.route.limits.response_bytes
        if self.down + count > most:
            raise refuse(self.route, "response_bytes", most, 502)
        self._spend(count, 502)
        self.down += count

    def _spend(self, count: int, status: int) -> None:
        daily = self._daily
        if daily is None:
            return
        used_up = refuse(self.route, "daily_bytes", self.route.limits.daily_bytes or 0, status)
        with self._lock:
            if self._closed:  # its client left before this thread began
                raise used_up
            day, left = self._block
            if left < count:
                if day not in ("", daily.today()):
                    self._block = ("", 0)
                    daily.give_back(self.route, day, left)
                    left = 0
                day, more = daily.take_bytes(self.route, max(count - left, BLOCK))
                left += more
                self._block = (day, left)
            if left < count:
                raise used_up
            self._block = (day, left - count)

    def close(self) -> None:
        """End the request, and give back the bytes that it has not used. May be called twice.

        :raises EgressError: the file of daily budgets cannot be used
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            (day, left), self._block = self._block, ("", 0)
        if self._daily is not None and left:
            self._daily.give_back(self.route, day, left)
