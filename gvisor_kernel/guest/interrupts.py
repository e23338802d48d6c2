"""Interrupts that come at the wrong moment: the main thread is woken until it has noticed.

A signal leaves no more than a mark for Python's main thread. Where it comes just before that thread
calls what waits (a sleep, a read), or is taken by another thread, the call goes on waiting, and the
interrupt seems lost. On a busy machine, whose threads wait long for their turn, it was one of some
five hundred. A second signal, which does nothing, ends the call: Python then sees the mark, and
where there is none it goes on waiting by itself (PEP 475).
"""

from __future__ import annotations

import signal
import threading
from typing import Any, Callable

WAKE = signal.SIGURG
"""Ignored by whoever has no handler for it."""
AFTER = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds after an interrupt at which the main thread is woken, noticed or not."""


def _do_nothing(signum: int, frame: Any) -> None:
    """The handler of WAKE. A signal without one would end no call."""


def get_ready() -> None:
    """In the main thread, before any interrupt. Does nothing where WAKE has a handler."""
    if signal.getsignal(WAKE) is signal.SIG_DFL:
        signal.signal(WAKE, _do_nothing)


def notice(signum: int, later: Callable[[float, Callable[[], None]], None]) -> None:
    """``signum`` was sent to this process. ``later(seconds, act)`` calls ``act`` in a thread."""
    if signum == signal.SIGINT:
        for seconds in AFTER:
            later(seconds, wake_main)


def wake_main() -> None:
    """End the call in which the main thread waits, unless the notebook uses WAKE itself."""
    main = threading.main_thread().ident
    if main is not None and signal.getsignal(WAKE) is _do_nothing:
        signal.pthread_kill(main, WAKE)
