"""The timers of one link: when its guest counts as dead, when its sandbox may be stopped, and when
its kernel is asked for the memory that it keeps.

An idle sandbox uses about 3 % of a core, a stopped one nothing. ``IdleWatch`` decides when the
guest is asked whether it is idle; it stops nothing itself. ``NapWatch`` is for a kernel that PID 1
cannot ask. It may have a timer, which nobody sees, so its sandbox cannot be stopped until the next
message: it is stopped for two seconds at a time, and between two naps it runs for a moment, in
which whatever is due happens. A timer of such a kernel is late by one nap at most.

Whether code has run is seen from outside, in the CPU time of the sandbox's processes, to the
nanosecond. Code that runs for long, or twice within LOOK_SECONDS, keeps its sandbox awake. What PID
1 runs to answer the host is not counted. Heartbeats of clients would make code run, so the host
answers them from the look on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gvisor_kernel.bridge.linked_sandbox import PausableSandbox
from gvisor_kernel.host.cgroups import is_host_short

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


REST_SECONDS = 30.0
"""Seconds without a cell after which a kernel is asked for the memory that it keeps. Somebody who
runs one each ten seconds does not wait for memory that was given back meanwhile."""
SHORT_LOOK_SECONDS = 2.0
"""Seconds between looks whether the host is short of memory, until it is asked."""


class RestWatch:
    """Timer that calls ``give_back`` once after activity: after REST_SECONDS without any, or as
    soon as ``is_short()``. From the first ``note_activity`` to ``end``.

    ``give_back(short)`` returns whether the kernel was asked; if not, it is called again. Uses
    ``loop``, by default the one that runs at construction.
    """

    def __init__(
        self,
        give_back: Callable[[bool], bool],
        is_short: Callable[[], bool] = is_host_short,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._give_back = give_back
        self._is_short = is_short
        self._loop = loop or asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._last_activity = 0.0
        self._ended = False

    def note_activity(self) -> None:
        """Note a request or a reply on shell. Other channels carry what asks for a kernel's use."""
        self._last_activity = self._loop.time()
        if self._timer is None and not self._ended:
            self._timer = self._loop.call_later(SHORT_LOOK_SECONDS, self._on_timer)

    @property
    def active(self) -> bool:
        """Return whether there was activity since ``give_back`` asked for the last time."""
        return self._timer is not None

    def end(self) -> None:
        """Ask no more, for good. Idempotent."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        short = self._is_short()
        rests = self._loop.time() - self._last_activity >= REST_SECONDS
        if not ((short or rests) and self._give_back(short)) and not self._ended:
            self._timer = self._loop.call_later(SHORT_LOOK_SECONDS, self._on_timer)


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

    Uses ``loop``, by default the one that runs at construction.
    """

    def __init__(
        self,
        sandbox: PausableSandbox,
        policy: NapPolicy,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._sandbox = sandbox
        self._policy = policy
        self._loop = loop or asyncio.get_running_loop()
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
