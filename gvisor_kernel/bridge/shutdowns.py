"""For which kernel a shutdown request was meant: the one that runs, or one that has ended before.

A manager sends its request, and says so to the provisioner; the request comes by a socket that may
only just be connecting. When the kernel is dead the manager waits for nothing, and starts the next
one, which the request would end.
"""

from __future__ import annotations

import time

STRAY_SECONDS = 10.0
"""How late a request may come. One that never does must not hide another for longer."""


class ShutdownRequests:
    """Counts what was announced against what has come, from kernel to kernel."""

    def __init__(self) -> None:
        self._due = 0
        """Announced, and not here yet."""
        self._early = 0
        """Here, and not announced: yet, or because a client sent it by itself."""
        self._strays = 0
        """Announced for a kernel that has ended since."""
        self._until = 0.0

    def announce(self) -> None:
        """The manager says that it has sent a request to the kernel."""
        if self._early:
            self._early -= 1
        else:
            self._due += 1

    def begin(self) -> None:
        """Another kernel starts; or the same one goes on starting."""
        if time.monotonic() > self._until:
            self._strays = 0
        if self._due:
            self._until = time.monotonic() + STRAY_SECONDS
        self._strays += self._due
        self._due = self._early = 0

    def arrive(self, *, running: bool) -> bool:
        """A request is here. Whether it is meant for a kernel that runs."""
        if self._strays and time.monotonic() < self._until:
            self._strays -= 1
            return False
        if self._due:
            self._due -= 1
        else:
            self._early += 1
        return running
