"""Room on the interpreter's stack: calls that never map or unmap a chunk of it.

CPython 3.11 and newer keeps Python frames in chunks of 16 KiB, a list of them for each thread. A
loop whose calls cross the end of a chunk maps and unmaps one at every call. That costs a
microsecond on Linux and a hundred inside gVisor: at an unlucky depth a first completion took 47 s
instead of 2 s (measured; 254,000 pairs of mmap and munmap). A frame that asks for a large stack
makes CPython allocate one chunk for it and everything called from it. The stack itself is never
touched, so it costs no memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType

CHUNK_SIZE = 1024 * 1024
"""Bytes of the chunk. CPython doubles 16 KiB until the frame and 1000 slots fit. So a frame of a
little more than half leaves the other half, 2,500 ordinary frames, to what it calls. CPython allows
1000 calls unless it is told otherwise. gVisor copies up to 2 MiB of a chunk twice at each fork."""
SLOT_SIZE = 8
"""Bytes of a slot of the interpreter's stack."""


def with_stack_room(function: Callable[[], None]) -> Callable[[], None]:
    """Return ``function`` called from a frame of half of CHUNK_SIZE. Use it once per thread."""

    def call() -> None:
        function()

    if sys.version_info >= (3, 11):  # noqa: UP036  # the guest runs on 3.9 as well
        assert isinstance(call, FunctionType)
        call.__code__ = call.__code__.replace(co_stacksize=CHUNK_SIZE // 2 // SLOT_SIZE)
    return call
