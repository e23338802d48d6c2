"""Limits how fast a kernel's link is read, so that it takes no more than a share of this process.

A flood of output keeps its sandbox, this process and the client busy; on a small machine no CPU is
left for other kernels. So while clients use other kernels of this process, a link may take so many
bytes, and so much of the loop's CPU time, in a second: a slower read costs less. Frames that carry
nothing, which cost their sender nothing either, have a limit at any time. A kernel that is used
alone may write as much as it likes, and no message is lost: a kernel that is not read waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

IN_USE_SECONDS = 2.0
"""Seconds that a kernel counts as used after a client's request on shell."""
# With 50 MB in a second, a neighbour's `1+1` took as long as without a limit.
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
