"""Event loops in whose threads Python's garbage collector does not begin.

The collector runs in whichever thread allocates (CPython 3.11 and 3.13), and calls there the
destructors of any object of the process. One of them may never return: ``zmq.Context.__del__``
waits for sockets that nobody closes any more. A loop that serves all kernels must not wait for it.

So the collector is switched off while such a loop works, and on while it waits. The switch is one
for the whole process, which may use it itself: what was off when the loop's turn began stays off.
Other threads collect while the loop waits, as before; nothing is moved between generations.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
import select
import selectors
import struct

_poll = ctypes.CDLL(None).poll
_MAX_MS = 2**31 - 1


class _Switch:
    """Counts the loops that work. Changed only between two points where CPython changes threads."""

    def __init__(self) -> None:
        self.working = 0
        self.is_ours = False
        """True if the collector is off because of a loop, and not of the program."""
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Begin anew in a forked child, which has none of the loops."""
        if self.is_ours:
            gc.enable()
        self.working, self.is_ours = 0, False


_switch = _Switch()


class _QuietSelector(selectors.EpollSelector):
    def __init__(self) -> None:
        super().__init__()
        # Of bytes, an address is passed without an object that the collector counts.
        self._waited_for = struct.pack("iHH", self.fileno(), select.POLLIN, 0)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ms = -1 if timeout is None else min(max(0, math.ceil(timeout * 1000)), _MAX_MS)
        (self, timeout, ms)  # noqa: B018 - freed at once, so that the call below allocates nothing
        _switch.working -= 1
        if _switch.working == 0 and _switch.is_ours:
            gc.enable()
        # Not epoll: it makes a list before anybody can switch the collector off again.
        _poll(self._waited_for, 1, ms)
        begin_turn()
        return super().select(0)


def begin_turn() -> None:
    """Switch the collector off, if it is on: a loop begins to work."""
    is_on = gc.isenabled()
    if _switch.working == 0:
        _switch.is_ours = is_on
        gc.disable()
    _switch.working += 1


def make_quiet_loop() -> asyncio.AbstractEventLoop:
    """Return a loop for a thread of its own, which runs it by ``run_quietly``."""
    return asyncio.SelectorEventLoop(_QuietSelector())


def run_quietly(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop of ``make_quiet_loop`` for ever: no destructor of unreachable objects runs in this
    thread, so none can keep it.

    CPython 3.12 leaves a collection to the thread that is next to look; so one that another thread
    has asked for just before it waits itself may still run here.
    """
    begin_turn()
    try:
        loop.run_forever()
    finally:
        _switch.working -= 1
        if _switch.working == 0 and _switch.is_ours:
            gc.enable()
