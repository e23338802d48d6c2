"""Runs a Python module as a kernel, with room on its stack, speaking frames if possible.

``python python_kernel.py [--link FD] MODULE ARGUMENT…`` runs MODULE as ``python -m MODULE
ARGUMENT…`` does. With a link, a kernel of the ipykernel family (MODULE starts an IPKernelApp)
speaks frames on it. Any other kernel asks for the relay on it.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys

LINK_OPTION = "--link"
GUEST = "/opt/gvisor-kernel"
MODULES = f"{GUEST}/gvisor_kernel/guest/modules"
"""Modules for code in the sandbox. They are searched last: a module of the same name that the user
or the image has is found instead."""


def run_kernel() -> None:
    """Run the module. Returns when the kernel has shut down."""
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def speak_frames(end: socket.socket) -> None:
    """Adapt ipykernel to the link, or send the reason why not on it."""
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
    """Take the link and run the module. The import path is the module's own meanwhile."""
    sys.path.insert(0, GUEST)
    try:
        from gvisor_kernel.guest import (
            font_files,
            installed,
            interpreter,
            module_files,
            spinning,
            terminals,
        )

        interpreter.prepare()
        interpreter.cache_pid()
        interpreter.give_threads_room(os.environ)
        spinning.shorten_spins()
        font_files.prepare()
        module_files.prepare()
        installed.activate(os.environ)
        terminals.spawn_quickly()
        if sys.argv[1] == LINK_OPTION:
            link = int(sys.argv[2])
            del sys.argv[1:3]
            os.set_inheritable(link, False)
            speak_frames(socket.socket(fileno=link))
    finally:
        sys.path.remove(GUEST)
    sys.path.append(MODULES)
    interpreter.with_stack_room(run_kernel)()


if __name__ == "__main__":
    del sys.path[0]  # the kernel must not import the modules in this file's directory
    main()
