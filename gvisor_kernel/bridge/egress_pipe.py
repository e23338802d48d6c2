"""Moves the frames of a kernel's streams between its link and the process that serves its routes.

Nothing here parses a stream: whole frames pass, undecoded. That process may be slow or dead, and
must not delay a message. So a queue of STREAM_BACKLOG bytes is kept in each direction: the guest
may send no more than that ahead, and nothing is read from the process above it. Frames of streams
are written to the link after everything else.
"""

from __future__ import annotations

import asyncio
import socket
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
