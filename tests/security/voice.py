"""Another PID 1 for the attacked kernels: the guest, which lets its kernel speak in its voice.

No kernel may do that by itself where PID 1 has a uid of its own, or with a current gVisor. What the
host makes of whatever PID 1 says has to hold all the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from gvisor_kernel.runtimes.runsc import description, runtime
from gvisor_kernel.spec.oci import guest_argv

INIT = """
def lend_voice():
    import os, signal, socket
    from gvisor_kernel.guest import process

    def be_silent(*_):
        while True:
            signal.pause()

    def lend(listener):
        os.dup2(listener.fileno(), 3)
        os.closerange(4, 100)
        listener = socket.socket(fileno=3)
        while True:
            asked, _ = listener.accept()
            if asked.recv(1) == b"s":
                os.kill(1, signal.SIGUSR1)
            socket.send_fds(asked, [b"."], [0, 1, 2])
            asked.close()

    def start_kernel(*arguments):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(chr(0) + "voice")
            listener.listen()
            if os.fork() == 0:
                try:
                    lend(listener)
                finally:
                    os._exit(1)
        return start(*arguments)

    start, process.start_kernel = process.start_kernel, start_kernel
    signal.signal(signal.SIGUSR1, be_silent)
lend_voice()
"""
"""Runs in PID 1 before it serves. A process beside each kernel has the link's ends to give."""

VOICE = """
def borrow(what=b"f"):
    '''PID 1's own stdin, stdout and stderr: descriptors that nobody can get without its help.'''
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(chr(0) + "voice")
        asking.send(what)
        return socket.recv_fds(asking, 1, 3)[1]

def say(data):
    '''In PID 1's voice, to the host.'''
    ends = borrow()
    shout(ends[1], data, os.write)
    for end in ends:
        os.close(end)

def silence():
    '''PID 1 says nothing more itself.'''
    for end in borrow(b"s"):
        os.close(end)
"""
"""The other side, for a kernel. ``shout`` is ``speaking``'s."""


def lend_voice(patch: pytest.MonkeyPatch) -> None:
    """Let sandboxes that start from now on begin with this PID 1."""
    for module in (runtime, description):
        patch.setattr(module, "guest_argv", _argv)


def _argv(*arguments: Any) -> tuple[str, ...]:
    *argv, code = guest_argv(*arguments)
    before, separator, main = code.rpartition("; ")
    assert separator
    return (*argv, f"{before}\n{INIT}\n{main}")
