"""When the guest of an idle kernel is asked whether its sandbox may be stopped. Stops nothing.

An idle sandbox costs some 3 % of a core, a stopped one nothing; to ask costs what a heartbeat does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

SETTLED_SECONDS = 1.0
"""How long nothing was sent or came, before the guest is asked for the first time."""
LONGEST_WAIT = 60.0
"""Each time the answer is no, or none comes, the wait for the next question doubles up to this."""
SOON = 0.2
"""The wait when the answer was yes, and something else was sent meanwhile."""


@dataclass(frozen=True)
class Sleep:
    """What the owner of a sandbox has to say of its being stopped.

    ``allowed``: whether it may be, for all that the owner knows, if its guest says that it is idle.
    ``changed(stopped)``: it was just stopped, or goes on.
    """

    allowed: Callable[[], bool]
    changed: Callable[[bool], None]


class IdleWatch:
    """Calls ``ask`` when it is time, from the first ``moved`` to ``end``. On the running loop."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._moved = 0.0
        self._wait = SETTLED_SECONDS
        self._ended = False

    def moved(self) -> None:
        """A message went either way, or the sandbox goes on: it may be busy for a while."""
        self._moved = self._loop.time()
        if self._timer is None or self._wait > SETTLED_SECONDS:
            self._wait = SETTLED_SECONDS
            self._plan(SETTLED_SECONDS)

    def ask_soon(self) -> None:
        """The answer was yes, and came too late."""
        self._plan(SOON)

    def rest(self) -> None:
        """The sandbox is stopped: there is nobody to ask."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        self.rest()
        self._ended = True

    def _plan(self, seconds: float) -> None:
        self.rest()
        if not self._ended:
            self._timer = self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        still = self._loop.time() - self._moved
        if still < SETTLED_SECONDS:
            self._plan(SETTLED_SECONDS - still)
            return
        self._plan(self._wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._ask()
