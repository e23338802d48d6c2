"""Runs a Python module as a kernel, with room on its stack, speaking frames if it can.

``python python_kernel.py [--link FD] MODULE ARGUMENT…`` does what ``python -m MODULE ARGUMENT…``
does. With a link, a kernel of the ipykernel family (MODULE starts an IPKernelApp) speaks frames on
it; any other says on it that it wants the relay.

The room: CPython 3.11 and newer keeps Python frames in chunks of 16 KiB. A loop whose calls cross
the end of a chunk maps and unmaps one at every call. On Linux that costs a microsecond, inside
gVisor a hundred: at an unlucky depth a first completion took 47 s instead of 2 s (measured;
254,000 pairs of mmap and munmap). A frame that asks for a large stack makes CPython allocate one
chunk that holds it and everything called from it. The stack itself is never touched, so it costs
no memory.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys

LINK_OPTION = "--link"
GUEST = "/opt/gvisor-kernel"
CHUNK = 4 * 1024 * 1024
"""Bytes: CPython doubles 16 KiB until the frame and 1000 slots fit, so a frame of a little more
than half leaves the other half, 10,000 frames of ordinary size, to what it calls."""
SLOT = 8


def run_kernel() -> None:
    """Returns when the kernel has been shut down."""
    if sys.argv[1] == LINK_OPTION:
        link = int(sys.argv[2])
        del sys.argv[1:3]
        os.set_inheritable(link, False)
        speak_frames(socket.socket(fileno=link))
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def speak_frames(end: socket.socket) -> None:
    """Adapt ipykernel to the link, or say on it why not."""
    sys.path.insert(0, GUEST)
    try:
        from gvisor_kernel.link import Hello
        from gvisor_kernel.link.frames import FrameType, encode_frame

        try:
            from ipykernel._version import __version__ as release
            from ipykernel.kernelapp import IPKernelApp

            from gvisor_kernel.guest.direct import DirectLink
            from gvisor_kernel.guest.ipykernel_adapter import Adapter, adapt, find_obstacle

            obstacle = find_obstacle(IPKernelApp)
        except ImportError as error:
            obstacle = str(error)
        if obstacle is not None:
            hello = Hello(facts=(("relay", obstacle),))
            end.sendall(encode_frame(FrameType.HELLO, hello.encode()))
            end.close()
            return
        link = DirectLink(end)
        adapt(IPKernelApp, Adapter(link, Hello(facts=(("ipykernel", release),))))
    finally:
        sys.path.remove(GUEST)


def main() -> None:
    """Call ``run_kernel`` from a frame of half a CHUNK."""
    if sys.version_info >= (3, 11):  # noqa: UP036  # the guest runs on 3.9 as well
        code = run_kernel.__code__
        run_kernel.__code__ = code.replace(co_stacksize=CHUNK // 2 // SLOT)
    run_kernel()


if __name__ == "__main__":
    del sys.path[0]  # this file's folder: its neighbours are not for a kernel to import
    main()
