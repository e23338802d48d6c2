"""Runs a Python module as a kernel, with room on its stack, speaking frames if it can.

``python python_kernel.py [--link FD] MODULE ARGUMENT…`` does what ``python -m MODULE ARGUMENT…``
does. With a link, a kernel of the ipykernel family (MODULE starts an IPKernelApp) speaks frames on
it; any other says on it that it wants the relay.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys

LINK_OPTION = "--link"
GUEST = "/opt/gvisor-kernel"


def run_kernel() -> None:
    """Returns when the kernel has been shut down."""
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def speak_frames(end: socket.socket) -> None:
    """Adapt ipykernel to the link, or say on it why not."""
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
        end.send(encode_frame(FrameType.HELLO, hello.encode()))
        end.close()
        return
    adapt(IPKernelApp, Adapter(DirectLink(end), Hello(facts=(("ipykernel", release),))))


def main() -> None:
    """Take the link, then run the module; nothing of the guest's stays on the import path."""
    sys.path.insert(0, GUEST)
    try:
        from gvisor_kernel.guest.room import with_room

        if sys.argv[1] == LINK_OPTION:
            link = int(sys.argv[2])
            del sys.argv[1:3]
            os.set_inheritable(link, False)
            speak_frames(socket.socket(fileno=link))
    finally:
        sys.path.remove(GUEST)
    with_room(run_kernel)()


if __name__ == "__main__":
    del sys.path[0]  # this file's folder: its neighbours are not for a kernel to import
    main()
