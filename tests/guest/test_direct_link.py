"""The kernel's end of the link (``guest.direct``), run in this process."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from gvisor_kernel.guest.direct import DirectLink
from gvisor_kernel.link import Hello


def test_link_threads_run_with_the_thread_hooks_of_ipykernel_6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ipykernel 6.29 to 6.31 replaces ``Thread.__init__``, and runs only threads made since."""
    host, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = DirectLink(kernel)
    init, run = threading.Thread.__init__, threading.Thread.run

    def noting_init(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.noted = True

    def noted_run(self: Any) -> None:
        if hasattr(self, "noted"):
            run(self)

    monkeypatch.setattr(threading.Thread, "__init__", noting_init)
    monkeypatch.setattr(threading.Thread, "run", noted_run)
    with host:
        host.settimeout(10)
        link.start(Hello())
        assert host.recv(4096)
        acted = threading.Event()
        link.run_soon(acted.set)
        assert acted.wait(10)
        host.shutdown(socket.SHUT_WR)
        assert host.recv(4096) == b"", "the reading thread did not notice the end"
    kernel.close()
