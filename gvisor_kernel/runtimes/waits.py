"""Connects a start in a worker with its caller: tells what the start waits for, such as resources
of a cluster, and whether anybody still wants it.

Like ``tracing``: a listener is set for a context, and called in the worker in which the start runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]

_listener: ContextVar[Listener | None] = ContextVar("gvisor_kernel_waits", default=None)
_given_up: ContextVar[threading.Event | None] = ContextVar("gvisor_kernel_given_up", default=None)


def tell_wait(text: str) -> None:
    """Tell the listener of this context what is waited for; an empty text ends the wait."""
    listener = _listener.get()  # no timeout: a variable of a context, not a queue
    if listener is not None:
        listener(text)


@contextmanager
def hearing(listener: Listener) -> Iterator[None]:
    """Call ``listener`` for each wait that begins, changes or ends inside this context. Any
    thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def is_given_up() -> bool:
    """Return whether nobody wants the start of this context any more. A start that waits for long
    asks this every few seconds."""
    event = _given_up.get()  # no timeout: a variable of a context, not a queue
    return event is not None and event.is_set()


@contextmanager
def until(given_up: threading.Event) -> Iterator[None]:
    """Let starts of this context end early when ``given_up`` is set. Any thread sets it."""
    token = _given_up.set(given_up)
    try:
        yield
    finally:
        _given_up.reset(token)
