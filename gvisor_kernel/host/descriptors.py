"""Waits for single descriptors, and closes them."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def is_ready(fd: int, seconds: float | None = 0.0, events: int = select.POLLIN) -> bool:
    """Return whether a descriptor is ready now, or is so within ``seconds``. None: wait for it."""
    poller = select.poll()  # select() has no descriptors above 1023
    poller.register(fd, events)
    return bool(poller.poll(None if seconds is None else seconds * 1000))
