"""Two listeners in place of a kernel's client sockets, while nobody is connected to them.

Who connects to iopub rings, and waits to be accepted by the socket that takes the listener over: a
subscriber that is cut off subscribes again only when it reads. The other channels share a listener.
A connection that stays there rings, and is closed: libzmq sends nothing of its messages before it
is greeted, connects again, and finds the sockets that the owner has opened meanwhile. On the
bridge's loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from gvisor_kernel.bridge.addresses import SocketNames
from gvisor_kernel.host.descriptors import is_ready
from gvisor_kernel.link import Channel

STAY_SECONDS = 0.05
"""Seconds after which a connection has stayed: a server begins by some that it does not need."""
AGAIN_SECONDS = 1.0
"""Seconds until a bell that could not be answered rings again."""
MAX_WAITING = 100
MAX_GREETING = 64
"""Bytes that a client sends before it is answered."""


class Bell:
    """Listens from construction to ``close``, and takes two descriptors."""

    def __init__(
        self, names: SocketNames, channels: Iterable[Channel], on_ring: Callable[[], bool]
    ) -> None:
        """``on_ring`` closes the bell; or returns False, and it rings again.

        :raises OSError: when it cannot listen
        """
        self._loop = asyncio.get_running_loop()
        self._on_ring = on_ring
        self._later: asyncio.TimerHandle | None = None
        self.listeners = names.listen(channels)
        self._listen()

    def _listen(self) -> None:
        for listener in self.listeners:
            self._loop.add_reader(listener.fileno(), self._wait, STAY_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._hush()
        self._later = self._loop.call_later(seconds, self._look)

    def _hush(self) -> None:
        if self._later is not None:
            self._later.cancel()
        for listener in self.listeners:
            self._loop.remove_reader(listener.fileno())

    def _look(self) -> None:
        """Ring if somebody is still there. Closes all who came: they connect again."""
        came: list[socket.socket] = []
        with suppress(OSError):  # nobody else waits, or no descriptor is left
            while len(came) < MAX_WAITING:
                came.append(self.listeners.shared.accept()[0])
        if came and not any(map(_stays, came)) and not is_ready(self.listeners.iopub.fileno()):
            self._listen()
        elif not self._on_ring():
            self._wait(AGAIN_SECONDS)
        for connection in came:
            connection.close()

    def close(self) -> None:
        """Let those who are waiting connect again."""
        self._hush()
        for listener in self.listeners:
            listener.close()


def _stays(connection: socket.socket) -> bool:
    """Return whether the other end has not closed a connection, or has sent too much to tell."""
    connection.setblocking(False)
    try:
        data = connection.recv(MAX_GREETING)
        return len(data) == MAX_GREETING or (bool(data) and connection.recv(1) != b"")
    except BlockingIOError:
        return True
    except OSError:
        return False
