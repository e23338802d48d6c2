"""Decides when the host sends an IDLE_QUERY, which asks whether a sandbox may be stopped.

Stops nothing itself. An idle sandbox uses about 3 % of a core, a stopped one nothing. A query
costs as much as a heartbeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

MIN_SILENCE_SECONDS = 1.0
"""Silence in both directions before the guest is asked for the first time."""
MAX_WAIT_SECONDS = 60.0
"""The wait for the next query doubles up to this, as long as the reply is no or missing."""
RETRY_SECONDS = 0.2
"""The wait after a reply of yes that came too late, since something was sent meanwhile."""


@dataclass(frozen=True)
class SleepPolicy:
    """Callbacks to the owner of a sandbox that may be stopped.

    ``allowed`` returns whether the owner agrees to a stop if the guest says that it is idle.
    ``changed(stopped)`` is called after the sandbox was stopped or resumed.
    """

    allowed: Callable[[], bool]
    changed: Callable[[bool], None]


class IdleWatch:
    """Timer that calls ``query`` while a sandbox is silent, from the first ``note_activity`` to
    ``end``.

    Uses the loop that runs at construction.
    """

    def __init__(self, query: Callable[[], None]) -> None:
        self._query = query
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._last_activity = 0.0
        self._wait = MIN_SILENCE_SECONDS
        self._ended = False

    def note_activity(self) -> None:
        """Note activity: a message was sent or received, or the sandbox was resumed."""
        self._last_activity = self._loop.time()
        if self._timer is None or self._wait > MIN_SILENCE_SECONDS:
            self._wait = MIN_SILENCE_SECONDS
            self._schedule(MIN_SILENCE_SECONDS)

    def retry_soon(self) -> None:
        """Query again soon: the reply was yes, but came too late."""
        self._schedule(RETRY_SECONDS)

    def pause(self) -> None:
        """Query no more until the next ``note_activity``: the sandbox is stopped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """Query no more, for good."""
        self.pause()
        self._ended = True

    def _schedule(self, seconds: float) -> None:
        self.pause()
        if not self._ended:
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        still = self._loop.time() - self._last_activity
        if still < MIN_SILENCE_SECONDS:
            self._schedule(MIN_SILENCE_SECONDS - still)
            return
        self._schedule(self._wait)
        self._wait = min(2 * self._wait, MAX_WAIT_SECONDS)
        self._query()
