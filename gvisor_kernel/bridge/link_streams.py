"""The streams on one link: who serves them, and how far ahead of the guest they are written.

``egress_pipe.py`` moves their frames. Messages go first: the link asks here how many bytes of
streams it may write.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable

from gvisor_kernel.bridge.egress_pipe import OpenEgress, RunEgress
from gvisor_kernel.link import Connection

STREAMS_AHEAD = 128 * 1024
"""Bytes that may be unread in the pipe to the guest when frames of streams are written: a message
that comes after them waits no longer."""
STREAMS_PAUSE = 0.001
"""Seconds until the pipe is looked at again. Mostly the guest's next frame comes earlier."""
YIELD_SECONDS = 0.05
"""Seconds that streams are slow after a request on shell: a download keeps both CPUs of a small
machine busy, and a short cell would wait for them."""
YIELD_AHEAD = 64 * 1024
YIELD_PAUSE = 0.01
"""STREAMS_AHEAD and STREAMS_PAUSE in that time: few large writes, as each one wakes the sandbox."""


class LinkStreams:
    """Streams between ``connection`` and what serves them, until ``close``.

    ``pipe``: the descriptor that leads to the guest. ``flush`` writes the connection's data there.
    """

    def __init__(self, connection: Connection, pipe: int, flush: Callable[[], None]) -> None:
        self._connection = connection
        self._pipe = pipe
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._egress: RunEgress | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._yield_until = 0.0
        """Until when streams are slow."""

    def carry(self, egress: OpenEgress | None, note: Callable[[str], None]) -> None:
        """Pass the streams of the run that has just begun to what ``egress`` opens, until it ends.

        None for a run without egress. ``note`` writes to the kernel's log.
        """
        self.close()
        if egress is not None:
            self._egress = RunEgress(self._connection, self._flush, egress, note)

    def close(self) -> None:
        """End the streams of the run. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        egress, self._egress = self._egress, None
        if egress is not None:
            egress.close()

    def receive(self, frames: bytes) -> None:
        """Pass on frames of the guest. Those of a run without egress are dropped."""
        if self._egress is not None:
            self._egress.receive(frames)

    def update(self) -> None:
        """Take more frames for the guest, if there is room for them."""
        if self._egress is not None:
            self._egress.update()

    def note_request(self) -> None:
        """Note a request on shell: streams are slow for a while."""
        self._yield_until = self._loop.time() + YIELD_SECONDS

    def find_limit(self) -> int:
        """Return the bytes of streams that may be written now; look again soon if there are none.

        Otherwise a message would wait behind a pipe full of a download.
        """
        if not self._connection.queued_streams:
            return 0
        is_yielding = self._loop.time() < self._yield_until
        if is_yielding and self._timer is not None:
            return 0
        ahead = YIELD_AHEAD if is_yielding else STREAMS_AHEAD
        room = ahead - count_unread(self._pipe)
        if (is_yielding or room <= 0) and self._timer is None:
            pause = YIELD_PAUSE if is_yielding else STREAMS_PAUSE
            self._timer = self._loop.call_later(pause, self._look_again)
        return max(0, room)

    def _look_again(self) -> None:
        self._timer = None
        self._flush()


def count_unread(pipe: int) -> int:
    """Return the bytes in a pipe that its reader has not read; 0 where that cannot be told."""
    try:
        (unread,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    except OSError:
        return 0
    return int(unread)
