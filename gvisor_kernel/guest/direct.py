"""The end of the link in a kernel process that speaks frames itself. No ZMQ here.

It has one socket and two threads. One thread reads; the other writes what cannot be sent at once.
The calling thread sends small messages itself, because to wake another thread costs more inside
gVisor than the system call. The socket keeps packet boundaries, and each packet holds whole frames.
So an exception that a signal raises in the main thread (an interrupt, an alarm of the notebook) may
lose the message that is being sent, but never leaves a partial frame.

PID 1 has the other end of the socket and forwards the frames undecoded. See docs/protocol.md.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from gvisor_kernel.guest.guest_log import explain_drop
from gvisor_kernel.guest.interpreter import with_stack_room
from gvisor_kernel.link import (
    Hello,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    Message,
    Resume,
    Resumed,
    Signal,
)
from gvisor_kernel.link.flow import Flow
from gvisor_kernel.link.frames import DIRECT_CHANNELS, Channel, FrameReader, FrameType, encode_frame

READ_SIZE = 256 * 1024
"""Bytes to read at once; a packet is smaller."""
PACKET_SIZE = 128 * 1024
"""Target size of a packet in bytes: a few frames."""
MAX_SENT_AT_ONCE = 16 * 1024
"""Bytes of a message up to which the calling thread sends it itself."""
MAX_QUEUED = 4 * 1024 * 1024
"""Bytes of output that may wait for the host. Above it, a thread that writes output waits."""
MAX_QUEUED_MESSAGES = 1000
"""Messages that may wait for the writing thread. Above it, a thread that writes output waits."""
DRAIN_SECONDS = 3.0
"""Seconds that the last messages of a kernel that exits may take to leave its process."""
POLL_SECONDS = 0.1
"""Seconds after which a thread that waits for room checks again, in case it missed the signal."""

Parts = list[bytes]
_END: Parts = []
"""Queue entry that marks the end: everything to be sent was queued before it."""


class DirectLink:
    """The kernel's end of the link, from ``start`` to the end of the process.

    Set the ``on_…`` callbacks before ``start``; the reading thread calls them. Any thread may call
    ``send``.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.on_message: Callable[[Message], None] = lambda message: None
        """Called with each received message."""
        self._on_resume: Callable[[Resume], None] = lambda resume: None
        self.on_idle_query: Callable[[], bool] = lambda: False
        """Called for an IDLE_QUERY; returns whether the kernel is idle."""
        self.on_signal: Callable[[int], None] = lambda signum: None
        """Called with the number of a signal that PID 1 has sent to this process."""
        self.on_trim: Callable[[], None] = lambda: None
        """Called for a TRIM; gives memory back."""
        self._flow = Flow(DIRECT_CHANNELS)
        self._frames = FrameReader()
        self._lock = threading.Lock()
        """Guards ``_flow``, ``_unsent`` and the order of writes."""
        self._waiting: deque[tuple[Channel | None, Parts]] = deque()
        """Entries for the writing thread, which removes each after it was added to ``_flow``."""
        self._callbacks: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._unsent: deque[bytes] = deque()
        """Frames that count as sent, but were not written because the socket was full."""
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._room_made: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Not an Event: an interrupt of a thread that waits could leave the Event's lock in a state
        that breaks the writing thread."""
        self._end_queued = False
        self._drained = threading.Event()
        self._started = False
        self._delivery = threading.RLock()
        """Held while ``on_message`` runs."""
        self._delivering = True
        self._writer: threading.Thread | None = None
        self._has_writer = False
        """True while the writing thread runs. ``is_alive`` takes a lock, and so reads the clock."""
        os.register_at_fork(after_in_child=self._close_in_child)

    @staticmethod
    def _make_thread(target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=with_stack_room(target), name=name, daemon=True)
        # Debuggers must neither stop these threads nor list them.
        thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
        thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
        return thread

    def start(self, hello: Hello) -> None:
        """Send the HELLO and start the threads. ``hello``: its facts say what this kernel is."""
        self._socket.send(encode_frame(FrameType.HELLO, hello.encode()))
        # Not created earlier: ipykernel 6 does not run threads created before the kernel started.
        self._writer = self._make_thread(self._run_writer, "Link writer")
        self._started = self._has_writer = True
        self._writer.start()
        self._make_thread(self._run_reader, "Link reader").start()
        self._wake.put(None)

    # -- sending, from any thread ----------------------------------------------------------------

    def send(self, channel: Channel, parts: Parts) -> None:
        """Send a message, or queue it for the writing thread. Any thread.

        Waits at most for the short write of another thread.
        """
        if not self._send_at_once(channel, parts):
            self._queue_for_writer(channel, parts)

    def _queue_for_writer(self, channel: Channel | None, parts: Parts) -> None:
        self._waiting.append((channel, parts))
        self._wake.put(None)

    def _send_at_once(self, channel: Channel, parts: Parts) -> bool:
        if self._waiting or not self._started or self._lock.locked():
            return False
        if sum(map(len, parts)) > MAX_SENT_AT_ONCE:
            return False
        with self._lock:
            if self._waiting or self._unsent:
                return False
            frame = self._flow.encode_small(channel, parts)
            if frame is None:
                return False
            try:
                self._socket.send(frame, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._unsent.append(frame)
                self._wake.put(None)
            except OSError:
                return True  # PID 1 has ended, and this process ends with it
        return True

    def can_wait_for_writer(self, thread: threading.Thread) -> bool:
        """Return whether ``thread`` may wait for a callback that the writing thread runs."""
        return thread is not self._writer and self._has_writer

    def run_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the writing thread, after everything that was queued before."""
        self._callbacks.append(callback)
        self._wake.put(None)

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the writing thread after ``seconds``."""
        self._timers.append((time.monotonic() + seconds, callback))
        self._wake.put(None)

    def wait_for_room(self) -> None:
        """Block while too much output is queued for the host. Called by threads that write."""
        while self._is_full() and self._has_writer:
            with contextlib.suppress(queue.Empty):
                self._room_made.get(timeout=POLL_SECONDS)

    def _is_full(self) -> bool:
        return self._flow.queued() > MAX_QUEUED or len(self._waiting) > MAX_QUEUED_MESSAGES

    # -- the two threads -------------------------------------------------------------------------

    def _run_reader(self) -> None:
        self._run_until_closed(self._read)

    def _run_writer(self) -> None:
        try:
            self._run_until_closed(self._write)
        finally:
            self._has_writer = False

    def _run_until_closed(self, work: Callable[[], None]) -> None:
        """Run ``work``, then close the socket: without either thread the link is useless."""
        try:
            work()
        except Exception as error:  # code of the notebook may have changed objects used here
            print_error(f"The kernel's link failed: {type(error).__name__}: {error}\n")
        finally:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _write(self) -> None:
        while True:
            due = min((at for at, _ in self._timers), default=None)
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            self._run_callbacks()
            with self._lock:
                urgent: Parts = []
                while self._waiting:
                    self._queue_entry(self._waiting[0], urgent)
                    self._waiting.popleft()
                if not self._flush(urgent):
                    return

    def _run_callbacks(self) -> None:
        """Run the callbacks that are due. Their errors are printed and do not end the thread."""
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer[0] <= now]:
            self._timers.remove(timer)
            self._callbacks.append(timer[1])
        while self._callbacks:
            try:
                self._callbacks.popleft()()
            except Exception as error:
                print_error(f"{type(error).__name__}: {error}\n")

    def _queue_entry(self, entry: tuple[Channel | None, Parts], urgent: Parts) -> None:
        channel, parts = entry
        if channel is None:
            self._end_queued |= parts is _END
            urgent += parts
            return
        try:
            self._flow.add(channel, parts)
        except LocalProtocolError as error:
            print_error(explain_drop(channel, error))

    def _flush(self, urgent: Parts) -> bool:
        """Write as much as credit allows. Return False when the socket is closed."""
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
            out = list(urgent)
            self._flow.write(out, PACKET_SIZE)
            while out:
                self._socket.send(b"".join(out))
                out = []
                self._flow.write(out, PACKET_SIZE)
        except OSError:
            return False
        if not self._is_full() and self._room_made.empty():
            self._room_made.put(None)
        if self._end_queued and not self._flow.queued():
            self._drained.set()
        return True

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(READ_SIZE)
            except OSError:
                return
            if not data:
                return
            self._frames.receive_data(data)
            while True:
                frame = self._frames.next_frame()
                if frame is None:
                    break
                if frame.type is FrameType.RESUME:
                    self._resume(Resume.decode(frame.payload))
                    continue
                if frame.type is FrameType.IDLE_QUERY:
                    self._answer_idle_query(IdleQuery.decode(frame.payload))
                    continue
                if frame.type is FrameType.SIGNAL:
                    self.on_signal(Signal.decode(frame.payload).signum)
                    continue
                if frame.type is FrameType.TRIM:
                    with contextlib.suppress(Exception):  # a courtesy, and no reason to end
                        self.on_trim()
                    continue
                with self._lock:
                    if frame.type is FrameType.CREDIT:
                        self._flow.receive_credit(frame)
                        message = None
                    else:
                        message = self._flow.take(frame)
                if message is not None:
                    self._deliver(message)
                    with self._lock:
                        self._flow.consumed(message)
            with self._lock:
                if not self._flush([]):
                    return

    def _answer_idle_query(self, query: IdleQuery) -> None:
        """Answer an IDLE_QUERY. The IDLE_REPLY leaves in a packet of its own, as PID 1 expects."""
        idle = self.on_idle_query()
        with self._lock:
            idle = idle and not (self._waiting or self._unsent or self._timers or self._callbacks)
            reply = IdleReply(query.run, idle and not self._flow.queued())
            self._unsent.append(encode_frame(FrameType.IDLE_REPLY, reply.encode()))

    def _deliver(self, message: Message) -> None:
        with self._delivery:
            if self._delivering:
                self.on_message(message)

    # -- restored from a snapshot ------------------------------------------------------------------

    def on_resume(self, callback: Callable[[Resume], None]) -> None:
        """Set ``callback``, which applies a RESUME to this process.

        The reading thread calls it before it reads any message of the new host.
        """
        self._on_resume = callback

    def _resume(self, resume: Resume) -> None:
        with self._lock:
            self._flow.begin()
            self._unsent.clear()  # of the host before
        self._on_resume(resume)
        resumed = encode_frame(FrameType.RESUMED, Resumed(resume.run, True).encode())
        self._queue_for_writer(None, [resumed])

    # -- the end ---------------------------------------------------------------------------------

    def stop_delivering(self) -> None:
        """Deliver no message from now on. Credit is still read, so that queued output leaves."""
        with self._delivery:
            self._delivering = False

    def drain(self) -> None:
        """Block until everything queued has left this process, for DRAIN_SECONDS at most."""
        self._queue_for_writer(None, _END)
        self._drained.wait(DRAIN_SECONDS)

    def _close_in_child(self) -> None:
        """Close the socket in a forked child, which has neither the threads nor the link."""
        self._has_writer = False
        self._socket.close()


def print_error(text: str) -> None:
    """Print to the process's stderr, which ipykernel shows in the notebook."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
