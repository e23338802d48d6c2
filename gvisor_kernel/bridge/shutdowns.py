"""Decides whether a shutdown request is for the running kernel or for one that has ended.

A manager sends its request over a socket and also announces it to the provisioner. The socket may
still be connecting, so the request may come late. If the kernel is dead already, the manager starts
the next one at once, and a late request would end that one.
"""

from __future__ import annotations

import time

STRAY_SECONDS = 10.0
"""Seconds until a request counts as lost: one that never comes must not hide another for longer."""


class ShutdownRequests:
    """Counts announced requests against received ones, across restarts."""

    def __init__(self) -> None:
        self._due = 0
        """Announced, but not received yet."""
        self._early = 0
        """Received, but not announced: not yet, or a client sent it by itself."""
        self._strays = 0
        """Announced for a kernel that has ended, and not received yet."""
        self._until = 0.0

    def announce(self) -> None:
        """Note that the manager has sent a request to the kernel."""
        if self._early:
            self._early -= 1
        else:
            self._due += 1

    def begin(self) -> None:
        """Note the start of a kernel. May be called again during the same start."""
        if time.monotonic() > self._until:
            self._strays = 0
        if self._due:
            self._until = time.monotonic() + STRAY_SECONDS
        self._strays += self._due
        self._due = self._early = 0

    def arrive(self, *, running: bool) -> bool:
        """Note a received request; return whether it is for the running kernel."""
        if self._strays and time.monotonic() < self._until:
            self._strays -= 1
            return False
        if self._due:
            self._due -= 1
        else:
            self._early += 1
        return running
