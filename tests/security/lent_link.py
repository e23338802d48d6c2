"""A modified PID 1 for the attacked kernels, which gives them its ends of the link.

A kernel cannot get these where PID 1 has a uid of its own, or with a current gVisor. The host must
handle whatever PID 1 sends all the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from gvisor_kernel.runtimes.runsc import description, runtime
from gvisor_kernel.spec.oci import guest_argv

INIT = """
def lend_link():
    import os, signal, socket
    from gvisor_kernel.guest import process

    def sleep_for_ever(*_):
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
            listener.bind(chr(0) + "lent link")
            listener.listen()
            if os.fork() == 0:
                try:
                    lend(listener)
                finally:
                    os._exit(1)
        return start(*arguments)

    start, process.start_kernel = process.start_kernel, start_kernel
    signal.signal(signal.SIGUSR1, sleep_for_ever)
lend_link()
"""
"""Runs in PID 1 before it serves. A process beside each kernel passes the link's ends to it."""

LENT_LINK = """
def borrow_ends(what=b"f"):
    '''PID 1's stdin, stdout and stderr, which nobody can get without its help.'''
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(chr(0) + "lent link")
        asking.send(what)
        return socket.recv_fds(asking, 1, 3)[1]

def forge(data):
    '''Send data to the host as PID 1.'''
    ends = borrow_ends()
    send_all(ends[1], data, os.write)
    for end in ends:
        os.close(end)

def stop_pid_1():
    '''Make PID 1 itself stop sending.'''
    for end in borrow_ends(b"s"):
        os.close(end)
"""
"""The kernel's side. ``send_all`` is defined in ``forging``."""


def lend_link(patch: pytest.MonkeyPatch) -> None:
    """Start sandboxes with this PID 1 from now on."""
    for module in (runtime, description):
        patch.setattr(module, "guest_argv", _argv)


def _argv(*arguments: Any) -> tuple[str, ...]:
    *argv, code = guest_argv(*arguments)
    before, separator, main = code.rpartition("; ")
    assert separator
    return (*argv, f"{before}\n{INIT}\n{main}")
