"""Wakes the main thread after an interrupt that arrived at the wrong moment.

A signal only sets a flag for Python's main thread. If it arrives just before the thread enters a
blocking call (a sleep, a read), or if another thread receives it, the call continues and the
interrupt seems lost. On a busy machine, whose threads wait long for the CPU, this happened to one
interrupt in some five hundred. A second signal, whose handler does nothing, ends the call: Python
then sees the flag, and without a flag it continues the call by itself (PEP 475).
"""

from __future__ import annotations

import signal
import threading
from typing import Any, Callable

WAKE_SIGNAL = signal.SIGURG
"""A signal that processes without a handler for it ignore."""
WAKE_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds after an interrupt at which the main thread is woken, whether it needs it or not."""


def _do_nothing(signum: int, frame: Any) -> None:
    """Handle WAKE_SIGNAL. A signal without a handler would not end a blocking call."""


def install_wake_handler() -> None:
    """Install the handler of WAKE_SIGNAL unless it has one. Main thread, before any interrupt."""
    if signal.getsignal(WAKE_SIGNAL) is signal.SIG_DFL:
        signal.signal(WAKE_SIGNAL, _do_nothing)


def wake_after_interrupt(signum: int, later: Callable[[float, Callable[[], None]], None]) -> None:
    """Wake the main thread several times if ``signum``, which this process received, is SIGINT.

    ``later(seconds, act)`` calls ``act`` in another thread.
    """
    if signum == signal.SIGINT:
        for seconds in WAKE_DELAYS:
            later(seconds, wake_main)


def wake_main() -> None:
    """End the blocking call of the main thread, unless the notebook handles WAKE_SIGNAL itself."""
    main = threading.main_thread().ident
    if main is not None and signal.getsignal(WAKE_SIGNAL) is _do_nothing:
        signal.pthread_kill(main, WAKE_SIGNAL)
