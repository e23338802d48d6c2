"""Detects that the guest of a link is dead: it is pinged, and may be silent for a limited time.

What a PING is, and what happens to a dead guest, is up to the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PING_SECONDS = 5.0
WAIT_SECONDS = 10.0
MISSED_WAITS = 6
"""Waits without a byte in a row before a sandbox counts as dead. Waits are counted and not seconds,
since the loop's timers stop while the machine is suspended."""


class Liveness:
    """Calls ``ping`` again and again, and ``on_death(reason)`` after a long silence of the guest.

    It begins with ``start``.
    """

    def __init__(self, ping: Callable[[], None], on_death: Callable[[str], None]) -> None:
        self._ping = ping
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._has_received = True
        self._silent_waits = 0
        self._ping_timer: asyncio.TimerHandle | None = None
        self._wait_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, or begin anew after a ``stop``."""
        self._has_received, self._silent_waits = True, 0
        self._ping_timer = self._loop.call_later(PING_SECONDS, self._ping_again)
        self._wait_timer = self._loop.call_later(WAIT_SECONDS, self._count_wait)

    def note_received(self) -> None:
        """Note that the guest has sent something."""
        self._has_received = True

    def stop_pings(self) -> None:
        """Ping no more, but go on to wait."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()

    def stop(self) -> None:
        """Stop, while the guest cannot answer or for ever. Idempotent."""
        self.stop_pings()
        if self._wait_timer is not None:
            self._wait_timer.cancel()

    def _ping_again(self) -> None:
        self._ping()
        self._ping_timer = self._loop.call_later(PING_SECONDS, self._ping_again)

    def _count_wait(self) -> None:
        self._silent_waits = 0 if self._has_received else self._silent_waits + 1
        self._has_received = False
        if self._silent_waits >= MISSED_WAITS:
            self._on_death(f"the sandbox was silent for {MISSED_WAITS * WAIT_SECONDS:.0f} s")
            return
        self._wait_timer = self._loop.call_later(WAIT_SECONDS, self._count_wait)
