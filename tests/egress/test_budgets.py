"""Limits of routes: exact when threads and processes race for them, and given back."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gvisor_kernel.egress.budgets import BLOCK, KEEP_DAYS, Budgets, DailyBudgets, Spent, is_daily
from gvisor_kernel.egress.kinds import Limits, UrlRoute
from gvisor_kernel.egress.refusals import LimitReached
from gvisor_kernel.errors import EgressError

from ..world import PROJECT
from . import race_budgets

DAY = 86_400.0


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def route(name: str = "x", **limits: Any) -> UrlRoute:
    return UrlRoute(name, "https://example.org", limits=Limits(**limits))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def daily(tmp_path: Path, clock: Clock) -> DailyBudgets:
    return DailyBudgets(tmp_path / "budgets", clock)


def count_admitted(work: Callable[[], object], threads: int = 50) -> int:
    """Run ``work`` in that many threads, all at once; return how many were not refused."""
    start = threading.Barrier(threads)

    def run(_: int) -> bool:
        start.wait()
        try:
            work()
        except LimitReached:
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads)))


# -- in one process --------------------------------------------------------------------------------


def test_rate_is_exact_when_fifty_threads_race() -> None:
    budgets, limited = Budgets(None), route(requests_per_minute=9)
    assert count_admitted(lambda: budgets.admit(limited).close()) == 9


def test_no_minute_has_more_requests_than_the_rate(clock: Clock) -> None:
    budgets, limited = Budgets(None, clock), route(requests_per_minute=2)
    budgets.admit(limited)
    clock.now += 59
    budgets.admit(limited)
    with pytest.raises(LimitReached, match="requests_per_minute = 2"):
        budgets.admit(limited)
    clock.now += 1
    budgets.admit(limited)
    with pytest.raises(LimitReached):
        budgets.admit(limited)


def test_routes_are_counted_apart() -> None:
    budgets = Budgets(None)
    budgets.admit(route("a", requests_per_minute=1))
    budgets.admit(route("b", requests_per_minute=1))


def test_bodies_are_limited() -> None:
    with closing(Budgets(None).admit(route(request_bytes=10, response_bytes=20))) as admission:
        admission.sent(10)
        with pytest.raises(LimitReached, match="request_bytes = 10"):
            admission.sent(1)
        admission.received(20)
        with pytest.raises(LimitReached, match="response_bytes = 20"):
            admission.received(1)
        assert (admission.up, admission.down) == (10, 20)


# -- daily -----------------------------------------------------------------------------------------


def test_daily_requests_are_counted_over_instances(daily: DailyBudgets, tmp_path: Path) -> None:
    limited = route(daily_requests=3)
    assert is_daily(limited)
    Budgets(daily).admit(limited).close()
    other = Budgets(DailyBudgets(tmp_path / "budgets", Clock()))
    other.admit(limited).close()
    other.admit(limited).close()
    for budgets in (Budgets(daily), other):
        with pytest.raises(LimitReached, match="daily_requests = 3"):
            budgets.admit(limited)
    assert daily.spent(limited) == Spent(3, 0)


def test_next_day_in_utc_begins_with_a_full_budget(daily: DailyBudgets, clock: Clock) -> None:
    budgets, limited = Budgets(daily), route(daily_requests=1)
    clock.now = 10 * DAY - 1
    budgets.admit(limited).close()
    with pytest.raises(LimitReached):
        budgets.admit(limited)
    clock.now = 10 * DAY
    budgets.admit(limited).close()


def test_request_that_is_refused_for_a_day_does_not_count_in_the_minute(
    daily: DailyBudgets, clock: Clock
) -> None:
    budgets, limited = Budgets(daily), route(daily_requests=1, requests_per_minute=2)
    budgets.admit(limited).close()
    for _ in range(5):
        with pytest.raises(LimitReached, match="daily_"):
            budgets.admit(limited)


def test_unused_bytes_are_given_back(daily: DailyBudgets) -> None:
    limited = route(daily_bytes=1_000_000)
    with closing(Budgets(daily).admit(limited)) as admission:
        assert admission.may_block(1)
        admission.sent(10)
        assert not admission.may_block(1000)
        assert daily.spent(limited) == Spent(1, BLOCK)
        admission.received(BLOCK + 5)
    assert daily.spent(limited) == Spent(1, BLOCK + 15)


def test_bytes_that_are_counted_after_the_end_take_nothing(daily: DailyBudgets) -> None:
    """A thread may begin to count after the client has gone."""
    limited = route(daily_bytes=1_000_000)
    admission = Budgets(daily).admit(limited)
    admission.close()
    with pytest.raises(LimitReached):
        admission.received(5)
    assert daily.spent(limited) == Spent(1, 0)


def test_last_byte_of_a_day_can_be_used_and_no_more(daily: DailyBudgets) -> None:
    limited = route(daily_bytes=BLOCK + 1)
    budgets = Budgets(daily)
    with closing(budgets.admit(limited)) as admission:
        admission.received(BLOCK)
        with pytest.raises(LimitReached, match="daily_"):
            admission.received(2)
        admission.received(1)
        with pytest.raises(LimitReached):
            admission.sent(1)
    with pytest.raises(LimitReached):
        budgets.admit(limited)
    assert daily.spent(limited) == Spent(1, BLOCK + 1)


def test_bytes_after_midnight_belong_to_the_new_day(daily: DailyBudgets, clock: Clock) -> None:
    limited = route(daily_bytes=10 * BLOCK)
    clock.now = 10 * DAY - 1
    with closing(Budgets(daily).admit(limited)) as admission:
        admission.received(5)
        clock.now = 10 * DAY
        admission.received(BLOCK)
        assert daily.spent(limited).bytes == BLOCK
    clock.now = 10 * DAY - 1
    assert daily.spent(limited) == Spent(1, 5)


def test_daily_requests_are_exact_when_fifty_threads_race(daily: DailyBudgets) -> None:
    budgets, limited = Budgets(daily), route(daily_requests=20)
    assert count_admitted(lambda: budgets.admit(limited).close()) == 20
    assert daily.spent(limited).requests == 20


def test_daily_bytes_are_exact_when_fifty_threads_race(daily: DailyBudgets) -> None:
    budgets, limited = Budgets(daily), route(daily_bytes=20 * BLOCK, at_once=256)

    def take() -> None:
        with closing(budgets.admit(limited)) as admission:
            admission.received(BLOCK)

    assert count_admitted(take) == 20
    assert daily.spent(limited).bytes == 20 * BLOCK


def test_budget_is_never_exceeded_when_processes_race(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.egress.race_budgets", str(tmp_path / "budgets")]
    processes = [
        subprocess.Popen(
            program, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    limits = race_budgets.ROUTE.limits
    requests, count = (sum(values) for values in zip(*results, strict=True))
    spent = DailyBudgets(tmp_path / "budgets", Clock()).spent(race_budgets.ROUTE)
    assert spent == Spent(requests, count)
    assert limits.daily_requests is not None
    assert limits.daily_bytes is not None
    assert requests <= limits.daily_requests
    assert limits.daily_bytes - race_budgets.PIECE < count <= limits.daily_bytes


def test_old_days_are_forgotten(daily: DailyBudgets, clock: Clock, tmp_path: Path) -> None:
    limited = route(daily_requests=10)
    daily.take_request(limited)
    clock.now += (KEEP_DAYS + 1) * DAY
    daily.take_request(limited)
    with sqlite3.connect(tmp_path / "budgets") as database:
        assert database.execute("select count(*) from spent").fetchone() == (1,)
    database.close()


def test_file_is_private(daily: DailyBudgets, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        daily.take_request(route())
    finally:
        os.umask(before)
    assert (tmp_path / "budgets").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "folder", "garbage"])
def test_file_that_cannot_be_used_admits_nothing(
    daily: DailyBudgets, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "budgets"
    if kind == "link":
        (tmp_path / "other").touch()
        path.symlink_to("other")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"garbage" * 1000)
    budgets, limited = Budgets(daily), route(daily_requests=10)
    with pytest.raises(EgressError, match="cannot be used") as caught:
        budgets.admit(limited)
    assert "remove it" in caught.value.hint
    budgets.admit(route("y")).close()


def test_default_file_is_in_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    DailyBudgets().take_request(route())
    assert list(tmp_path.rglob("egress-budgets.sqlite3"))
