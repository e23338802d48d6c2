"""Programs in a pod whose output a kernel has taken over."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from gvisor_kernel.runtimes.kubernetes import removal
from gvisor_kernel.runtimes.kubernetes.attach import Stream
from gvisor_kernel.runtimes.kubernetes.removal import end_processes

STDOUT_FRAME = bytes((0x82, 3, 1)) + b"xx"


class Babbler:
    """A cluster in which each program writes without an end."""

    def execute(self, pod: str, container: str, argv: list[str]) -> Stream:
        ours, theirs = socket.socketpair()
        self.thread = threading.Thread(target=self._babble, args=(theirs,))
        self.thread.start()
        return Stream(ours)

    @staticmethod
    def _babble(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while True:
                sock.sendall(STDOUT_FRAME)


def test_a_program_that_never_ends_does_not_hold_up_the_removal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(removal, "END_SECONDS", 0.1)
    cluster = Babbler()
    end_processes(cluster, "pod")  # type: ignore[arg-type]
    cluster.thread.join(60)
    assert not cluster.thread.is_alive()
