"""Tells whoever listens what a start waits for, such as resources of a cluster.

Like ``tracing``: a listener is set for a context, and called in the worker in which the start runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]

_listener: ContextVar[Listener | None] = ContextVar("gvisor_kernel_waits", default=None)


def tell_wait(text: str) -> None:
    """Tell the listener of this context what is waited for; an empty text ends the wait."""
    listener = _listener.get()
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
