"""How fast a kernel's output is read while clients use other kernels of this process.

A flood keeps the sandbox busy that sends it, this process, and the client that reads it: on a small
machine there is no CPU left for the others. Read slowly, it costs as little as it is slow. Nobody
is slowed down who is alone, and no message is lost: a kernel that is not read waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

IN_USE_SECONDS = 2.0
"""How long after a client's request on shell a kernel counts as one that is being used."""
BURST = 8 * 1024 * 1024
PER_SECOND = 16 * 1024 * 1024
"""Bytes that are read at once, and in the long run, from a kernel beside one that is used."""


class Sharing:
    """One instance per bridge. On its loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._used: dict[Share, float] = {}

    def add(self) -> Share:
        """The share of one more kernel, until ``Share.leave``."""
        return Share(self)

    def note_use(self, share: Share) -> None:
        self._used[share] = self.clock()

    def forget(self, share: Share) -> None:
        self._used.pop(share, None)

    def others_are_used(self, share: Share) -> bool:
        since = self.clock() - IN_USE_SECONDS
        return any(at > since for other, at in self._used.items() if other is not share)


class Share:
    """What one kernel may send."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._left = float(BURST)
        self._at = sharing.clock()
        self._hurried_until = self._at

    def note_use(self) -> None:
        """A client has asked this kernel something."""
        self._sharing.note_use(self)

    def take(self, size: int) -> float:
        """``size`` bytes were read; for how many seconds no more are to be."""
        now = self._sharing.clock()
        if now < self._hurried_until or not self._sharing.others_are_used(self):
            self._left, self._at = float(BURST), now
            return 0.0
        self._left = min(BURST, self._left + (now - self._at) * PER_SECOND) - size
        self._at = now
        return max(0.0, -self._left / PER_SECOND)

    def hurry(self, seconds: float) -> None:
        """The kernel is being ended, and somebody waits for its last words: read them at once."""
        self._hurried_until = self._sharing.clock() + seconds

    def leave(self) -> None:
        """The kernel's link has ended. Idempotent."""
        self._sharing.forget(self)
