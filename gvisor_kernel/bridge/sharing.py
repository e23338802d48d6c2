"""Limits how fast a kernel's output is read while clients use other kernels of this process.

A flood of output keeps its sandbox, this process and the client busy; on a small machine no CPU is
left for other kernels. A slower read costs less CPU. A kernel that is used alone is not limited,
and no message is lost: a kernel whose output is not read waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

IN_USE_SECONDS = 2.0
"""How long a kernel counts as used after a client's request on shell."""
BURST = 8 * 1024 * 1024
PER_SECOND = 16 * 1024 * 1024
"""Bytes read at once, and per second, from a kernel while another one is used."""


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


class Share:
    """How much may be read from one kernel."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._left = float(BURST)
        self._at = sharing.clock()
        self._suspended_until = self._at

    def note_use(self) -> None:
        """Note a client's request to this kernel."""
        self._sharing.note_use(self)

    def spend(self, size: int) -> float:
        """Count ``size`` bytes that were read; return the seconds to wait before the next read."""
        now = self._sharing.clock()
        if now < self._suspended_until or not self._sharing.others_in_use(self):
            self._left, self._at = float(BURST), now
            return 0.0
        self._left = min(BURST, self._left + (now - self._at) * PER_SECOND) - size
        self._at = now
        return max(0.0, -self._left / PER_SECOND)

    def suspend_limit(self, seconds: float) -> None:
        """Do not limit the kernel for ``seconds``: it is ending, and its last output is awaited."""
        self._suspended_until = self._sharing.clock() + seconds

    def close(self) -> None:
        """Forget the kernel, as its link has ended. Idempotent."""
        self._sharing.forget(self)
