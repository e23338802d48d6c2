"""A program for the tests: takes from a daily budget until nothing is left; prints what it got."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

from gvisor_kernel.egress.budgets import Budgets, DailyBudgets
from gvisor_kernel.egress.kinds import Limits, UrlRoute
from gvisor_kernel.egress.refusals import LimitReached

THREADS = 8
PIECE = 65_536
ROUTE = UrlRoute(
    "x",
    "https://example.org",
    limits=Limits(daily_requests=40, daily_bytes=10_000_000, at_once=256),
)


def main() -> None:
    """Race with the other processes that were given the same file and the same line on stdin."""
    budgets = Budgets(DailyBudgets(Path(sys.argv[1]), lambda: 1_000_000.0))

    def take(_: int) -> tuple[int, int]:
        requests = count = 0
        while True:
            try:
                admission = budgets.admit(ROUTE)
            except LimitReached:
                return requests, count
            requests += 1
            with closing(admission), suppress(LimitReached):
                for _ in range(20):
                    admission.received(PIECE)
                    count += PIECE

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(take, range(THREADS)))
    sys.stdout.write(json.dumps([sum(r) for r in zip(*results, strict=True)]) + "\n")


if __name__ == "__main__":
    main()
