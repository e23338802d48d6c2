"""The streams on one link: who serves them, and how far ahead of the guest they are written.

Nothing here parses a stream: whole frames pass, undecoded, between the link and the process that
serves the kernel's routes. That process may be slow or dead, and must not delay a message. So a
queue of STREAM_BACKLOG bytes is kept in each direction: the guest may send no more than that ahead,
and nothing is read from the process above it. Messages go first: the link asks here how many bytes
of streams it may write.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gvisor_kernel.errors import GvisorKernelError
from gvisor_kernel.link import Connection, LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import STREAM_SIZES, Channel, find_whole_frames_size
from gvisor_kernel.link.state import SENDERS, Role

OpenEgress = Callable[[], Awaitable[socket.socket]]
"""Returns one end of a stream socketpair whose other end a process serves; starts that process if
it does not run. Raises GvisorKernelError."""

RENEW_SECONDS = 1.0
"""Least time between two sockets for one run: the process may die at once each time."""
READ_SIZE = 256 * 1024
"""Bytes read at once: other kernels share the loop."""
FROM_HOST = {(int(kind), int(Channel.NONE)) for kind in STREAM_SIZES if kind in SENDERS[Role.HOST]}
"""(type, channel) of the frames that may come from the process."""


class RunEgress:
    """The egress of one run, until ``close``: a pipe to the process, and to the next one if that
    dies. The streams end then; the guest's next one leads to the next process.
    """

    def __init__(
        self,
        connection: Connection,
        flush: Callable[[], None],
        open_egress: OpenEgress,
        note: Callable[[str], None],
    ) -> None:
        """``flush`` is called when frames were queued at ``connection``; ``note`` writes a log."""
        self._connection = connection
        self._flush = flush
        self._open = open_egress
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._pipe: EgressPipe | None = None
        self._early: list[bytes] = []
        """Frames of the guest that came before the pipe: at most a backlog."""
        self._opened = self._loop.time() - RENEW_SECONDS
        self._closed = False
        self._opening: asyncio.Task[None] | None = self._loop.create_task(self._open_pipe())

    def update(self) -> None:
        """Read from the process again, if there is room for its frames."""
        if self._pipe is not None:
            self._pipe.update()

    def receive(self, frames: bytes) -> None:
        """Pass frames of the guest on, as soon as there is a process."""
        if self._pipe is not None:
            self._pipe.receive(frames)
            return
        self._early.append(frames)
        if self._opening is None and not self._closed:
            self._opening = self._loop.create_task(self._open_pipe())

    async def _open_pipe(self) -> None:
        try:
            await asyncio.sleep(self._opened + RENEW_SECONDS - self._loop.time())
            self._opened = self._loop.time()
            end = await self._open()
        except GvisorKernelError as error:
            self._note(f"the kernel's routes cannot be used: {error.fact}")
            self._lose()
            return
        finally:
            self._opening = None
        if self._closed:
            end.close()
            return
        self._pipe = EgressPipe(self._connection, self._flush, end, self._lose)
        early, self._early = self._early, []
        for frames in early:
            if self._pipe is not None:
                self._pipe.receive(frames)

    def _lose(self) -> None:
        """End the streams: the process has died, or has found a violation."""
        self._pipe = None
        self._early.clear()
        if not self._closed:
            self._connection.end_streams()
            self._flush()

    def close(self) -> None:
        """End it with its run. Idempotent."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        if self._pipe is not None:
            self._pipe.close()


class EgressPipe:
    """A pipe to one process, until ``close`` or the end of the process.

    ``flush`` is called when frames were queued at ``connection``.
    """

    def __init__(
        self,
        connection: Connection,
        flush: Callable[[], None],
        end: socket.socket,
        on_end: Callable[[], None],
    ) -> None:
        """Take over ``end``, in a run with egress. ``on_end`` is called once, at its end."""
        self._connection = connection
        self._flush = flush
        self._on_end = on_end
        self._socket = end
        self._loop = asyncio.get_running_loop()
        self._partial = b""
        """The beginning of a frame of the process."""
        self._waiting: deque[memoryview] = deque()
        """Frames for the process."""
        self._reading = self._writing = False
        self.closed = False
        end.setblocking(False)
        self.update()

    def update(self) -> None:
        """Read from the process only while there is room for its frames."""
        wanted = not self.closed and (
            self._connection.stream_room > 0 or not self._connection.queued_streams
        )
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._socket, self._read)
            else:
                self._loop.remove_reader(self._socket)

    # -- from the guest --------------------------------------------------------------------------

    def receive(self, frames: bytes) -> None:
        """Pass frames of the guest on; keep those that the process does not take yet."""
        if self.closed:
            return
        self._waiting.append(memoryview(frames))
        if not self._writing:
            self._write()

    def _write(self) -> None:
        while self._waiting:
            try:
                written = self._socket.send(self._waiting[0])
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            self._connection.passed_on(written)
            if written == len(self._waiting[0]):
                self._waiting.popleft()
            else:
                self._waiting[0] = self._waiting[0][written:]
        if self._writing != bool(self._waiting):
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._socket, self._write_more)
            else:
                self._loop.remove_writer(self._socket)

    def _write_more(self) -> None:
        self._write()
        self._flush()

    # -- to the guest ----------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)  # no timeout: it is ready, or does not block
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        data = self._partial + data
        try:
            size = find_whole_frames_size(data, FROM_HOST)
        except RemoteProtocolError:
            self.close()
            return
        self._partial = data[size:]
        if size:
            with suppress(LocalProtocolError):  # the run is just ending: the frames are late
                self._connection.divert_stream(data[:size])
            self._flush()
        self.update()

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.update()
        if self._writing:
            self._loop.remove_writer(self._socket)
        self._waiting.clear()
        with suppress(OSError):  # a forked child may have a copy of it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._on_end()


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
