"""What went through the routes of this process's kernels, by route, since the process began.

For metrics. The exact record of a kernel is its audit; here a request is missing if its worker died
before it told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.egress.audit import Entry
from gvisor_kernel.host.locks import ThreadLock


@dataclass(frozen=True)
class Count:
    """Of one route: requests that have ended, how many of them failed or were refused, bytes of
    bodies in each direction, and the seconds that all took together."""

    requests: int = 0
    failed: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.requests + other.requests,
            self.failed + other.failed,
            self.up + other.up,
            self.down + other.down,
            self.seconds + other.seconds,
        )


class Counters:
    """Counts by the name of a route; "" for requests that belong to none. Any thread."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self._lock = ThreadLock()

    def add(self, route: str, count: Count) -> None:
        """Add to the counts of a route."""
        with self._lock:
            self._counts[route] = self._counts.get(route, Count()) + count

    def read(self) -> Mapping[str, Count]:
        """Return the counts of all routes until now."""
        with self._lock:
            return dict(self._counts)


def write_count(entry: Entry) -> list[Any]:
    """Return an entry's route and count, for another process. Its ``more`` were refused."""
    requests = 1 + entry.more
    failed = entry.more + bool(entry.reason)
    return [entry.route, requests, failed, entry.up, entry.down, entry.seconds]


def read_count(content: Any) -> tuple[str, Count]:
    """Return what ``write_count`` wrote.

    :raises TypeError: it is not that
    :raises ValueError: it is not that
    """
    route, requests, failed, up, down, seconds = content
    return str(route), Count(int(requests), int(failed), int(up), int(down), float(seconds))
