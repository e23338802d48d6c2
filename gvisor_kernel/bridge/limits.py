"""Limits of one sandbox on this machine: memory, and a share of the process of the bridge.

``MemoryWatch`` measures the memory from outside, and reports when it is over its limit; it ends
nothing itself. ``Share`` limits how fast a link is read: a flood of output keeps its sandbox, this
process and the client busy, and on a small machine no CPU is left for other kernels. So while
clients use other kernels of this process, a link may take so many bytes, and so much of the loop's
CPU time, in a second. Frames that carry nothing, which cost their sender nothing either, have a
limit at any time. A kernel that is used alone may write as much as it likes, and no message is
lost: a kernel that is not read waits.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

from gvisor_kernel.bridge.linked_sandbox import LinkedSandbox
from gvisor_kernel.host.cgroups import (
    MAX_INTERVAL_SECONDS,
    MAX_OVERRUN,
    seconds_to_next_measurement,
)

KILL_GRACE_SECONDS = 1.0
"""Seconds that PID 1 has to end the kernel. After that the whole sandbox is killed."""
SHORT = 0.5
"""Share of the memory limit above which the kernel is asked to give back what it keeps. A call that
holds the interpreter lock may use what is above it before the kernel can answer."""
SHORT_STEP = 0.02
"""The share by which more must be used until it is asked again: it may have freed something since
then, but to answer takes it time."""
SHORT_AGAIN = 0.4
"""Below this share the first of these steps is SHORT again."""
NEARLY_FULL = 0.8
"""Share of the memory limit above which a death by signal is explained by the limit."""


class MemoryWatch:
    """Compares the memory of ``sandbox`` with ``limit`` bytes from ``start`` to ``stop``.

    Calls ``on_short()`` when the limit comes near, and again when it comes nearer; if it returns
    False, nobody could be asked, and it is called again after the next measurement. Calls
    ``on_over(used)`` at each measurement above the limit. Calls ``on_overrun(used)`` once when the
    limit is exceeded by MAX_OVERRUN, and stops. Uses the loop that runs at construction.
    """

    def __init__(
        self,
        sandbox: LinkedSandbox,
        limit: int,
        on_over: Callable[[int], None],
        on_overrun: Callable[[int], None],
        on_short: Callable[[], bool] = lambda: False,
    ) -> None:
        self.limit = limit
        self.used = 0
        """Bytes at the last measurement."""
        self.only_overruns = False
        """While the sandbox is saved, for which it takes some memory, and nobody can be asked."""
        self._sandbox = sandbox
        self._on_over = on_over
        self._on_overrun = on_overrun
        self._on_short = on_short
        self._short_above = SHORT * limit
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._kills = 0
        """OOM kills by the host's kernel that were seen."""

    def start(self) -> None:
        """Measure now, and schedule the next measurement in place of the last that was.

        What is called may start or stop this watch: a sandbox that sleeps is woken to be asked.
        """
        self.stop()
        used = self._sandbox.memory_used()
        wait = MAX_INTERVAL_SECONDS
        if used is not None:
            self.used = used
            wait = seconds_to_next_measurement(used, self.limit)
        self._timer = self._loop.call_later(wait, self.start)
        if used is None:
            return
        if used > self.limit + MAX_OVERRUN:
            self.stop()
            self._on_overrun(used)
            return
        if self.only_overruns:
            return
        self._find_short(used)
        if used > self.limit:
            self._on_over(used)

    def _find_short(self, used: int) -> None:
        if used > self._short_above:
            before, self._short_above = self._short_above, used + SHORT_STEP * self.limit
            if not self._on_short():
                self._short_above = before
        elif used < SHORT_AGAIN * self.limit:
            self._short_above = SHORT * self.limit

    def stop(self) -> None:
        """Measure no more until the next ``start``. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def explains(self, status: int) -> bool:
        """Return whether the memory limit of the host or the runtime can explain a death."""
        killed = status in (-signal.SIGKILL, -signal.SIGBUS, -signal.SIGSEGV)
        return self.has_killed() or (killed and self.used > NEARLY_FULL * self.limit)

    def has_killed(self) -> bool:
        """Return whether the host's kernel killed a process of the sandbox since the last call.

        Inside the sandbox this looks like a program that ended by itself, since the OOM killer
        kills gVisor's stub process for it.
        """
        kills = self._sandbox.memory_kills()
        new, self._kills = kills > self._kills, kills
        if new:
            self.used = max(self.used, self.limit)
        return new

    async def has_fallen(self) -> bool:
        """Wait up to KILL_GRACE_SECONDS after an out-of-memory death; whether memory is free again.

        The memory of a dead kernel is freed soon. Files that it left in memory are not, and would
        end the next kernel.
        """
        deadline = self._loop.time() + KILL_GRACE_SECONDS
        while True:
            used = self._sandbox.memory_used()
            if used is None or used < NEARLY_FULL * self.limit:
                return True
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(0.01)


IN_USE_SECONDS = 2.0
"""Seconds that a kernel counts as used after a client's request on shell."""
BURST = 8 * 1024 * 1024
PER_SECOND = 16 * 1024 * 1024
"""Bytes read at once, and per second, from a kernel while another one is used."""
CPU_BURST = 1.0
CPU_PER_SECOND = 0.25
"""Seconds of CPU time that the loop spends at once, and per second, on what comes from a kernel
while another one is used."""
CONTROL_BURST = 4 * 1024 * 1024
CONTROL_PER_SECOND = 1024 * 1024
"""``Connection.control_received`` at once, and per second: some 15,000 frames, which take a tenth
of a core. An honest guest sends one CREDIT for 256 KiB that it gets, and 32 KiB of log in a
second."""


class Sharing:
    """The shares of all kernels of a bridge. Use on the bridge's loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._used: dict[Share, float] = {}

    def add(self) -> Share:
        """Return the share of another kernel; the caller closes it."""
        return Share(self)

    def note_use(self, share: Share) -> None:
        """Note a client's request to the kernel of ``share``."""
        self._used[share] = self.clock()

    def forget(self, share: Share) -> None:
        """Count the kernel of ``share`` as unused: it has ended."""
        self._used.pop(share, None)

    def others_in_use(self, share: Share) -> bool:
        """Return whether clients have used another kernel in the last IN_USE_SECONDS."""
        since = self.clock() - IN_USE_SECONDS
        return any(at > since for other, at in self._used.items() if other is not share)


class _Budget:
    """A budget of bytes: ``burst`` at once, then ``rate`` in a second."""

    def __init__(self, burst: float, now: float) -> None:
        self._left, self._at = burst, now

    def spend(self, cost: float, burst: float, rate: float, now: float) -> float:
        """Count a cost; return the seconds to wait before the next one."""
        self._left = min(burst, self._left + (now - self._at) * rate) - cost
        self._at = now
        return max(0.0, -self._left / rate)

    def refill(self, burst: float, now: float) -> None:
        self._left, self._at = burst, now


class Share:
    """The budget of bytes that may be read from one kernel."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        now = sharing.clock()
        self._bytes = _Budget(BURST, now)
        self._cpu = _Budget(CPU_BURST, now)
        self._control = _Budget(CONTROL_BURST, now)
        self._suspended_until = now

    def note_use(self) -> None:
        """Note a client's request to this kernel."""
        self._sharing.note_use(self)

    def spend(self, size: int, control: int = 0, seconds: float = 0.0) -> float:
        """Count a read of ``size`` bytes, of which ``control`` is ``Connection.control_received``,
        and which took ``seconds`` of CPU time; return the seconds to wait before the next read."""
        now = self._sharing.clock()
        pause = self._control.spend(control, CONTROL_BURST, CONTROL_PER_SECOND, now)
        if now < self._suspended_until or not self._sharing.others_in_use(self):
            self._bytes.refill(BURST, now)
            self._cpu.refill(CPU_BURST, now)
            return pause
        return max(
            pause,
            self._bytes.spend(size, BURST, PER_SECOND, now),
            self._cpu.spend(seconds, CPU_BURST, CPU_PER_SECOND, now),
        )

    def suspend_limit(self, seconds: float) -> None:
        """Let messages be read at any rate for ``seconds``: the kernel is ending, and its last
        output is awaited."""
        self._suspended_until = self._sharing.clock() + seconds

    def close(self) -> None:
        """Forget the kernel, as its link has ended. Idempotent."""
        self._sharing.forget(self)
