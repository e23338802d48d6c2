"""The queue of a cluster, as starts that wait for resources see it.

One look serves all starts of this process that wait in the same queue, and the looks become rarer:
the controller of a large cluster must not feel that somebody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from gvisor_kernel.runtimes.clients import run

FIRST_WAIT = 3.0
"""Seconds between the first two looks; then twice as long each time."""
LONGEST_WAIT = 30.0
MAX_ASKED = 10_000
"""Jobs that are known to have been asked for."""
MAX_QUEUES = 100
"""Queues that are remembered: one for each partition and configuration."""

Look = Callable[[], Sequence[str]]
"""Returns the jobs that wait, the next one first."""


class Queue:
    """The jobs that wait. Any thread.

    ``now()``: a clock that only goes forward.
    """

    def __init__(self, look: Look, now: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._now = now
        self._lock = threading.Lock()  # no timeout: held for a few steps that do not wait
        self._looking = False
        self._jobs: Sequence[str] = ()
        self._asked: set[str] = set()
        self._wait = FIRST_WAIT
        self._last = self._due = float("-inf")

    def count_before(self, job: str) -> int | None:
        """Return how many jobs are before ``job``, by the last look; None if it is not there.

        Looks if that is due. A job that was not asked for before makes it due soon. Blocks for as
        long as the look takes; a caller that comes meanwhile gets the answer of the last one.
        """
        with self._lock:
            if job not in self._asked:
                if len(self._asked) >= MAX_ASKED:
                    self._asked.clear()
                self._asked.add(job)
                self._due = min(self._due, self._last + FIRST_WAIT)
                self._wait = FIRST_WAIT
            looks = not self._looking and self._now() >= self._due
            self._looking = self._looking or looks
        if looks:
            self._refresh()
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else None

    def _refresh(self) -> None:
        jobs: Sequence[str] = ()
        try:
            jobs = self._look()
        finally:
            with self._lock:
                self._looking = False
                self._jobs = jobs
                self._last = self._now()
                self._due = self._last + self._wait
                self._wait = min(2 * self._wait, LONGEST_WAIT)


_queues: dict[tuple[object, ...], Queue] = {}
_lock = threading.Lock()  # no timeout: held for a few steps that do not wait


def find_queue(argv: Sequence[str], environment: Mapping[str, str]) -> Queue:
    """Return the queue that the command ``argv`` prints: a job on a line, the next one first."""

    def look() -> Sequence[str]:
        return run(argv, environment).output.split()

    key = (*argv, *sorted(environment.items()))
    with _lock:
        if key not in _queues:
            if len(_queues) >= MAX_QUEUES:
                _queues.clear()
            _queues[key] = Queue(look)
        return _queues[key]
