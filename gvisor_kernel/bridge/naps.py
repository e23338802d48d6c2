"""Naps: a sandbox in which nothing happens is stopped for two seconds at a time.

For a kernel that PID 1 cannot ask whether it is idle. It may have a timer, which nobody sees, so
its sandbox cannot be stopped until the next message. Between two naps the sandbox runs for a
moment, in which whatever is due happens: a timer of such a kernel is late by one nap at most.

Whether code has run is seen from outside, in the CPU time of the sandbox's processes, to the
nanosecond. Code that runs for long, or twice within LOOK_SECONDS, keeps its sandbox awake. What PID
1 runs to answer the host is not counted.
Heartbeats of clients would make code run, so the host answers them from the look on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gvisor_kernel.bridge.linked_sandbox import PausableSandbox

LOOK_SECONDS = 5.0
"""Seconds that the host looks before the first nap. Code that runs once then is no obstacle."""
LOOKS = 5
"""Number of looks in that time."""
NAP_SECONDS = 2.0
"""A nap of any length costs 1.2 ms of CPU time with gVisor's release of 2026, and 2.0 with that of
2024, break included: the sandbox's threads all wake to stop, and again to go on."""
BREAK_SECONDS = 0.015
"""Seconds that the sandbox runs between two naps. With gVisor's release of 2024 a sandbox in which
no code runs takes 0.036 ms for each ms."""
SETTLE_SECONDS = 0.05
"""Seconds without code that must follow after some has run. On a busy host the next thread waits
that long for a core; in a nap it would wait until the next break."""
SETTLE_LOOKS = 4
"""Number of these waits. After them, 0.2 s, the code counts as going on. Counted, not timed: a host
that is busy looks later."""
MAX_SILENCE_SECONDS = 9.0
"""The longest time between two bytes to PID 1. After 10 s it would wake by itself, which could not
be told from other code."""
PONG_SECONDS = 5.0
"""Seconds that PID 1 has to answer. After that the sandbox naps no more."""


@dataclass(frozen=True)
class NapPolicy:
    """Callbacks to the owner of the sandbox.

    ``allowed`` returns whether a nap may begin. ``ping`` asks PID 1 for a sign of life, after which
    the owner calls ``note_pong``. ``changed(stopped)`` is called when the sandbox was stopped or
    continued. ``ended`` is called when the naps have ended by themselves, with the sandbox running.
    """

    allowed: Callable[[], bool]
    ping: Callable[[], None]
    changed: Callable[[bool], None]
    ended: Callable[[], None]


class NapWatch:
    """Looks at one sandbox and stops it, from ``begin`` until ``end`` or until code runs in it.

    Uses the loop that runs at construction.
    """

    def __init__(self, sandbox: PausableSandbox, policy: NapPolicy) -> None:
        self._sandbox = sandbox
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._processes: list[int] = []
        self._used: int | None = None
        self._code_at = float("-inf")
        """Time at which code ran in a break for the last time."""
        self._sent_at = 0.0
        """About when PID 1 got its last byte."""
        self._looks = 0
        """Looks that are left."""
        self._awaits_pong = False
        self.napping = False
        """True once there was a first nap: the sandbox is stopped most of the time."""

    @property
    def active(self) -> bool:
        """Return whether it looks or naps. Meanwhile the host sends only what wakes the sandbox."""
        return self._timer is not None

    def begin(self) -> None:
        """Look whether code runs, and let the sandbox nap if none does."""
        if self.active:
            return
        self._processes = self._sandbox.find_code_processes()
        self._used = self._sandbox.measure_code(self._processes)
        self._code_at = float("-inf")
        self._sent_at = self._loop.time()
        if self._used is not None:
            self._wait(BREAK_SECONDS, self._begin_look)

    def end(self) -> None:
        """Look and nap no more; the sandbox runs. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.napping:
            self.napping = self._awaits_pong = False
            self._continue()

    def note_pong(self) -> None:
        """Note PID 1's sign of life. What it ran for that is not counted."""
        if self._awaits_pong:
            self._awaits_pong = False
            self._wait(BREAK_SECONDS, self._leave_pong)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _has_run(self) -> bool:
        """Return whether code has run, or a process has ended, since the last call."""
        before, self._used = self._used, self._sandbox.measure_code(self._processes)
        return self._used is None or self._used != before

    def _find_code(self) -> tuple[bool, bool]:
        """Return whether code has run since the last call, and whether it does so often."""
        if not self._has_run():
            return False, False
        before, self._code_at = self._code_at, self._loop.time()
        return True, self._used is None or self._code_at - before < LOOK_SECONDS

    def _begin_look(self) -> None:
        self._has_run()  # what PID 1 ran for its reply
        self._looks = LOOKS
        self._wait(LOOK_SECONDS / LOOKS, self._look)

    def _look(self) -> None:
        _, often = self._find_code()
        self._looks -= 1
        if often or not self._policy.allowed():
            self._give_up()
        elif self._looks:
            self._wait(LOOK_SECONDS / LOOKS, self._look)
        else:
            self._nap()

    def _nap(self) -> None:
        self.napping = True
        self._sandbox.pause()
        self._policy.changed(True)
        self._wait(NAP_SECONDS, self._take_break)

    def _take_break(self) -> None:
        self._continue()
        self._wait(BREAK_SECONDS, self._end_break)

    def _end_break(self) -> None:
        runs, often = self._find_code()
        if often:
            self._give_up()
        elif runs:
            self._looks = SETTLE_LOOKS
            self._wait(SETTLE_SECONDS, self._settle)
        else:
            self._leave_break()

    def _settle(self) -> None:
        """Wait until code that ran in the break has ended; give up if it goes on."""
        self._looks -= 1
        if not self._has_run():
            self._leave_break()
        elif self._looks:
            self._wait(SETTLE_SECONDS, self._settle)
        else:
            self._give_up()

    def _leave_break(self) -> None:
        if not self._policy.allowed():
            self._give_up()
        elif self._loop.time() + NAP_SECONDS < self._sent_at + MAX_SILENCE_SECONDS:
            self._nap()
        else:
            self._awaits_pong = True
            self._sent_at = self._loop.time()
            self._wait(PONG_SECONDS, self._give_up)
            self._policy.ping()

    def _leave_pong(self) -> None:
        self._has_run()  # what PID 1 ran for its sign of life
        self._leave_break()

    def _continue(self) -> None:
        self._sandbox.resume()
        self._policy.changed(False)

    def _give_up(self) -> None:
        self.end()
        self._policy.ended()
