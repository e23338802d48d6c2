"""A kernel's byte streams as asyncio objects: reads and writes the socket to the bridge.

``link.streams`` keeps the state of the streams and does no I/O. Here each opened stream becomes a
``ByteStream`` and a task that serves it. Reading gives the sandbox credit; writing waits for the
sandbox's. So neither side can make this process hold more than a window for each stream.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from gvisor_kernel.host.log_files import Allowance
from gvisor_kernel.link.frames import RemoteProtocolError
from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import Finished, Granted, Opened, Received, Reset, Streams

READ_SIZE = 256 * 1024
QUEUE_BYTES = 1024 * 1024
"""Bytes of all streams of a kernel that wait for the bridge, above which no stream may add any."""
USELESS_BURST, USELESS_PER_SECOND, REFUSAL_PRICE = 2000, 1000, 10
"""Streams on which no request was admitted, as it was malformed or there was none, and what one
that is answered costs of them: each takes 0.1 ms, or one, of the process that serves all kernels.
Nothing is read from a kernel that has more."""
PAUSE_SECONDS = 0.1
"""Between two looks whether a kernel may be read from again."""
PACED_READ = 4 * 1024
"""Bytes to read at once from a kernel that has spent half of its burst: some 50 requests."""
TURN_BYTES = 64 * 1024
"""Bytes of room for which one of the streams that wait for it is woken."""


class StreamReset(Exception):
    """The other end has given the stream up, or the kernel's run has ended."""


class ByteStream:
    """One connection of a program in the sandbox."""

    def __init__(self, link: StreamLink, number: int) -> None:
        self._link = link
        self.number = number
        self._received: deque[bytes] = deque()
        self._returned = b""
        self._at_end = False
        self._finished = False
        self.is_reset = False
        self.is_answered = False
        self.is_useful = False
        """Whether a request of it was admitted, which its route's limits count."""
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def read(self) -> bytes:
        """Return the next bytes; b"" when the sandbox sends no more.

        :raises StreamReset: the stream is over
        """
        if self._returned:
            data, self._returned = self._returned, b""
            return data
        while not self._received:
            if self.is_reset:
                raise StreamReset
            if self._at_end:
                return b""
            self._readable.clear()
            await self._readable.wait()  # no timeout: until the stream is over; callers have limits
        data = self._received.popleft()
        if not self.is_reset:
            self._link.consumed(self.number, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data``; wait until the sandbox has room for nearly all of it.

        :raises StreamReset: the stream is over
        """
        self.is_answered = True
        view = memoryview(data)
        while view:
            if self.is_reset:
                raise StreamReset
            room = self._link.room(self)
            if room <= 0:
                self._writable.clear()
                # no timeout: until the stream is over; callers have limits
                await self._writable.wait()
                continue
            self._link.send(self.number, view[:room])
            view = view[room:]

    def finish(self) -> None:
        """Send no more. Idempotent."""
        if not self._finished and not self.is_reset:
            self._finished = True
            self._link.finish(self.number)

    def reset(self) -> None:
        """Give the stream up in both directions. Idempotent."""
        if not self.is_reset:
            self._link.reset(self.number)
            self.end()

    @property
    def is_over(self) -> bool:
        """Return whether both sides have finished, or one has reset the stream."""
        return self.is_reset or (self._at_end and self._finished)

    def take_back(self, data: bytes) -> None:
        """Let the next ``read`` return ``data`` first, which an earlier one returned."""
        if data:
            self._returned = data

    # -- from the link ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Add bytes of the sandbox."""
        self._received.append(data)
        self._readable.set()

    def receive_end(self) -> None:
        """Note that the sandbox sends no more."""
        self._at_end = True
        self._readable.set()

    def note_room(self) -> None:
        """Wake a writer: there may be credit."""
        self._writable.set()

    def end(self, *, keeps: bool = False) -> None:
        """Wake all that wait: the stream is over. ``keeps``: what has come can still be read."""
        self.is_reset = True
        if not keeps:
            self._received.clear()
        self._readable.set()
        self._writable.set()


class StreamLink:
    """The streams of one kernel's run, on the socket ``sock``, until the socket ends.

    ``serve`` is run as a task for each stream; the stream is reset when it returns without having
    finished. ``on_end`` is called once, with a reason, after all tasks were cancelled. Without
    ``serve`` this is the end that opens streams, as a sandbox's PID 1 does.
    """

    def __init__(
        self,
        sock: socket.socket,
        serve: Callable[[ByteStream], Coroutine[Any, Any, None]] | None,
        on_end: Callable[[str], None],
        useless: Allowance | None = None,
    ) -> None:
        """``useless``: what the kernel has for streams on which no request is admitted."""
        self._sock = sock
        self._serve = serve
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._streams = Streams(Role.GUEST if serve is None else Role.HOST)
        self._open: dict[int, ByteStream] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._crowded: dict[ByteStream, None] = {}
        """Streams that wait for room in the queue, in turn."""
        self._pending = memoryview(b"")
        self._writing = False
        self._flush_planned = False
        self._useless = useless or Allowance(USELESS_BURST, USELESS_PER_SECOND)
        self._waiting: asyncio.TimerHandle | None = None
        """Set while nothing is read from the kernel."""
        self.ended = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)

    def open(self) -> ByteStream:
        """Open a stream. Its owner calls ``close`` at the end.

        :raises StreamReset: the socket has ended
        :raises LocalProtocolError: too many streams are open
        """
        if self.ended:
            raise StreamReset
        stream = ByteStream(self, self._streams.open())  # by path: a stream, not a file
        self._open[stream.number] = stream
        self._plan_flush()
        return stream

    def close(self, stream: ByteStream) -> None:
        """Forget a stream, and reset it if it is not over. Idempotent."""
        if not self.ended and not stream.is_over:
            stream.reset()
        self._crowded.pop(stream, None)
        self._open.pop(stream.number, None)

    # -- for a ByteStream ------------------------------------------------------------------------

    def room(self, stream: ByteStream) -> int:
        """Return how many bytes may be sent on a stream now. If none, ``note_room`` is called
        when there may be room."""
        credit = self._streams.sendable(stream.number)
        room = min(credit, QUEUE_BYTES - self._streams.queued)
        if room <= 0 < credit:
            self._crowded[stream] = None
            self._plan_flush()
        return room

    def send(self, number: int, data: memoryview) -> None:
        """Send bytes, at most ``room``. They must not change any more."""
        self._streams.send(number, data)
        self._flush()

    def consumed(self, number: int, size: int) -> None:
        """Give the sandbox credit for bytes that were read."""
        self._streams.consumed(number, size)
        self._plan_flush()

    def finish(self, number: int) -> None:
        """Send no more on a stream."""
        self._streams.finish(number)
        self._flush()

    def reset(self, number: int) -> None:
        """End a stream in both directions."""
        self._streams.reset(number)
        self._flush()

    # -- the socket ------------------------------------------------------------------------------

    def _read(self) -> None:
        is_paced = self._useless.room() < USELESS_BURST / 2
        try:
            # no timeout: it is ready, or does not block
            data = self._sock.recv(PACED_READ if is_paced else READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(f"the socket to the bridge cannot be read: {error}")
            return
        if not data:
            self.end("")
            return
        try:
            events = self._streams.receive_data(data)
        except RemoteProtocolError as error:
            self.end(f"the sandbox violated the protocol of streams: {error}")
            return
        for event in events:
            self._dispatch(event)
        self._plan_flush()

    def _dispatch(self, event: Opened | Received | Granted | Finished | Reset) -> None:
        number = event.stream
        if isinstance(event, Opened):
            stream = self._open[number] = ByteStream(self, number)
            self._tasks[number] = self._loop.create_task(self._run(stream))
            return
        known = self._open.get(number)
        if known is None:
            return
        if isinstance(event, Received):
            known.receive(event.data)
        elif isinstance(event, Granted):
            known.note_room()
        elif isinstance(event, Finished):
            known.receive_end()
        else:
            known.end(keeps=self._serve is None)
            if number in self._tasks:
                self._tasks[number].cancel()

    async def _run(self, stream: ByteStream) -> None:
        assert self._serve is not None  # else nobody opens a stream at the other end
        try:
            with suppress(StreamReset):
                await self._serve(stream)
        finally:
            self.close(stream)
            self._plan_flush()
            self._tasks.pop(stream.number, None)
            if not stream.is_useful:
                self._useless.spend(REFUSAL_PRICE if stream.is_answered else 1)
                self._pause()

    def _pause(self) -> None:
        """Read nothing while the kernel has opened too many useless streams."""
        is_over = not self.ended and self._useless.room() < 1
        if is_over and self._waiting is None:
            self._loop.remove_reader(self._sock.fileno())
        elif not is_over and self._waiting is not None and not self.ended:
            self._loop.add_reader(self._sock.fileno(), self._read)
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self._loop.call_later(PAUSE_SECONDS, self._pause) if is_over else None

    def _plan_flush(self) -> None:
        """Flush at the end of this turn of the loop: several grants then cost one write."""
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        self._write()
        room = QUEUE_BYTES - self._streams.queued
        while self._crowded and room > 0:
            stream = next(iter(self._crowded))
            del self._crowded[stream]
            stream.note_room()
            room -= TURN_BYTES

    def _write(self) -> None:
        while not self.ended:
            if not self._pending:
                self._pending = memoryview(self._streams.data_to_send(READ_SIZE))
                if not self._pending:
                    self._watch_writable(False)
                    return
            try:
                written = self._sock.send(self._pending)
            except BlockingIOError:
                self._watch_writable(True)
                return
            except OSError:  # EPIPE: the reading side reports the end
                self._watch_writable(False)
                return
            self._pending = self._pending[written:]

    def _watch_writable(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._sock.fileno())

    def end(self, reason: str) -> None:
        """Cancel what serves the streams, and close the socket. Idempotent."""
        if self.ended:
            return
        self._watch_writable(False)
        self.ended = True
        self._pause()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for stream in self._open.values():
            stream.end(keeps=self._serve is None)
        for task in tuple(self._tasks.values()):
            task.cancel()
        self._on_end(reason)
