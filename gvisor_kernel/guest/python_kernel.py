"""Runs ipykernel as ``python -m ipykernel_launcher`` does, with room on the interpreter's stack.

CPython 3.11 and newer keeps Python frames in chunks of 16 KiB. A loop whose calls cross the end of
a chunk maps and unmaps one at every call. On Linux that costs a microsecond, inside gVisor a
hundred: at an unlucky depth a first completion took 47 s instead of 2 s (measured; 254,000 pairs
of mmap and munmap). A frame that asks for a large stack makes CPython allocate one chunk that
holds it and everything called from it. The stack itself is never touched, so it costs no memory.
"""

from __future__ import annotations

import runpy
import sys

CHUNK = 4 * 1024 * 1024
"""Bytes: CPython doubles 16 KiB until the frame and 1000 slots fit, so a frame of a little more
than half leaves the other half, 10,000 frames of ordinary size, to what it calls."""
SLOT = 8


def run_kernel() -> None:
    """ipykernel's own entry point; returns when the kernel has been shut down."""
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)


def main() -> None:
    """Call ``run_kernel`` from a frame of half a CHUNK."""
    if sys.version_info >= (3, 11):  # noqa: UP036  # the guest runs on 3.9 as well
        code = run_kernel.__code__
        run_kernel.__code__ = code.replace(co_stacksize=CHUNK // 2 // SLOT)
    run_kernel()


if __name__ == "__main__":
    del sys.path[0]  # this file's folder: its neighbours are not for a kernel to import
    main()
