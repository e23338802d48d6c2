"""Room on the interpreter's stack: a function whose calls never map or unmap a chunk of it.

CPython 3.11 and newer keeps Python frames in chunks of 16 KiB, a list of them a thread. A loop
whose calls cross the end of a chunk maps and unmaps one at every call. On Linux that costs a
microsecond, inside gVisor a hundred: at an unlucky depth a first completion took 47 s instead of
2 s (measured; 254,000 pairs of mmap and munmap). A frame that asks for a large stack makes CPython
allocate one chunk that holds it and everything called from it. The stack itself is never touched,
so it costs no memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType

CHUNK = 4 * 1024 * 1024
"""Bytes: CPython doubles 16 KiB until the frame and 1000 slots fit, so a frame of a little more
than half leaves the other half, 10,000 frames of ordinary size, to what it calls."""
SLOT = 8


def with_room(function: Callable[[], None]) -> Callable[[], None]:
    """``function``, to be called from a frame of half a CHUNK; once a thread."""

    def call() -> None:
        function()

    if sys.version_info >= (3, 11):  # noqa: UP036  # the guest runs on 3.9 as well
        assert isinstance(call, FunctionType)
        call.__code__ = call.__code__.replace(co_stacksize=CHUNK // 2 // SLOT)
    return call
