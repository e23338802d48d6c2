"""One listener in place of a kernel's client sockets, while nobody is connected to them.

A connection rings, and is not answered: libzmq, which has sent nothing of its messages before it
was greeted, connects again as soon as the listener is closed, and finds the sockets that the owner
has opened meanwhile. On the bridge's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.bridge.addresses import SocketNames
from gvisor_kernel.link import Channel

# by path: below the state directory, whose parents only this user can change

AGAIN_SECONDS = 1.0
"""Seconds until a bell that could not be answered rings again."""


class Bell:
    """Listens from construction to ``close``, and takes one descriptor."""

    def __init__(
        self, names: SocketNames, channels: Iterable[Channel], on_ring: Callable[[], None]
    ) -> None:
        """``on_ring`` closes the bell, or calls ``ring_later``.

        :raises OSError: when it cannot listen
        """
        self._loop = asyncio.get_running_loop()
        self._on_ring = on_ring
        self._again: asyncio.TimerHandle | None = None
        self._listener = names.listen(channels)
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._on_ring)

    def ring_later(self) -> None:
        """Ring again for those who are waiting, after AGAIN_SECONDS."""
        self._loop.remove_reader(self._listener.fileno())
        self._again = self._loop.call_later(AGAIN_SECONDS, self._listen)

    def close(self) -> None:
        """Let those who are waiting connect again."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listener.fileno())
        place = Path(self._listener.getsockname())
        self._listener.close()
        with suppress(OSError):
            place.unlink()
