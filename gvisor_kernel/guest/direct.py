"""The kernel process's own end of the link: frames on one socket, two threads. No ZMQ here.

One thread reads, one writes; neither is ever the main thread. So an exception that a signal
raises there (an interrupt, an alarm of the notebook) cannot leave half a frame behind: the main
thread only puts messages into a queue, which is one call in C.

On the other side of the socket PID 1 passes whole frames on, unread. See docs/protocol.md.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import List, Optional, Tuple

from gvisor_kernel.link import Hello, LocalProtocolError, Message, Resume, Resumed
from gvisor_kernel.link.flow import Flow
from gvisor_kernel.link.frames import (
    DIRECT_CHANNELS,
    Channel,
    FrameReader,
    FrameType,
    encode_frame,
)

READ_SIZE = 256 * 1024
AHEAD = 4 * 1024 * 1024
"""Bytes of output that wait for the host; above, whoever writes output waits too."""
AHEAD_MESSAGES = 1000
"""Messages that wait for the writing thread, likewise."""
DRAIN_SECONDS = 3.0
"""How long the last messages of a kernel that ends may take to leave its process."""
LOOK_SECONDS = 0.1
"""How often a thread that waits for room looks again, should it have missed the news."""

Parts = List[bytes]
_LAST: Parts = []
"""In the queue: what was sent before it is the last."""


class DirectLink:
    """The link as the kernel process has it, from ``start`` to the end of the process.

    ``send`` may be called from any thread.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.on_message: Callable[[Message], None] = lambda message: None
        """Takes what came; in the reading thread. Set before ``start``."""
        self._on_resume: Callable[[Resume], None] = lambda resume: None
        self._flow = Flow(DIRECT_CHANNELS)
        self._frames = FrameReader()
        self._lock = threading.Lock()
        """Held by the two threads alone, never by one that a signal handler may interrupt."""
        self._outgoing: queue.SimpleQueue[Tuple[Optional[Channel], Parts]] = queue.SimpleQueue()
        self._room = threading.Event()
        self._last_taken = False
        self._drained = threading.Event()
        self._greeting: Parts = []
        self._pid = os.getpid()
        self._reading = True
        self._reader = self._thread(self._read, "Link reader")
        self._writer = self._thread(self._write, "Link writer")
        os.register_at_fork(after_in_child=self._leave_to_parent)

    @staticmethod
    def _thread(target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=name, daemon=True)
        # A debugger neither stops these threads nor shows them.
        thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
        thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
        return thread

    def start(self, hello: Hello) -> None:
        """Say that this kernel speaks frames, and begin."""
        self._greeting = [encode_frame(FrameType.HELLO, hello.encode())]
        self._writer.start()
        self._reader.start()

    # -- sending, from any thread ----------------------------------------------------------------

    def send(self, channel: Channel, parts: Parts) -> None:
        """Send a message. Never waits, and is done or not done whatever a signal handler raises."""
        self._outgoing.put((channel, parts))

    def wait_for_room(self) -> None:
        """Wait while far more output is queued than the host takes. For whoever makes output."""
        while self._crowded() and self._pid == os.getpid() and self._writer.is_alive():
            self._room.clear()
            self._room.wait(LOOK_SECONDS)

    def _crowded(self) -> bool:
        return self._flow.queued() > AHEAD or self._outgoing.qsize() > AHEAD_MESSAGES

    # -- the two threads -------------------------------------------------------------------------

    def _write(self) -> None:
        with self._lock:
            self._flush(self._greeting)
        while True:
            item = self._outgoing.get()
            with self._lock:
                urgent: Parts = []
                while True:
                    self._add(item, urgent)
                    try:
                        item = self._outgoing.get_nowait()
                    except queue.Empty:
                        break
                if not self._flush(urgent):
                    return

    def _add(self, item: Tuple[Optional[Channel], Parts], urgent: Parts) -> None:
        channel, parts = item
        if channel is None:
            self._last_taken |= parts is _LAST
            urgent += parts
            return
        try:
            self._flow.add(channel, parts)
        except LocalProtocolError as error:
            complain(f"A message on {channel.name.lower()} was dropped. {error}\n")

    def _flush(self, urgent: Parts) -> bool:
        """Write what the host has room for; False when the link is gone."""
        out = list(urgent)
        self._flow.write(out, READ_SIZE)
        while out:
            try:
                self._socket.sendall(b"".join(out))
            except OSError:
                return False
            out = []
            self._flow.write(out, READ_SIZE)
        if not self._crowded():
            self._room.set()
        if self._last_taken and not self._flow.queued():
            self._drained.set()
        return True

    def _read(self) -> None:
        while self._reading:
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
                with self._lock:
                    if frame.type is FrameType.CREDIT:
                        self._flow.take_credit(frame)
                        message = None
                    else:
                        message = self._flow.take(frame)
                if message is not None:
                    self.on_message(message)
                    with self._lock:
                        self._flow.consumed(message)
            with self._lock:
                if not self._flush([]):
                    return

    # -- restored from an image --------------------------------------------------------------------

    def on_resume(self, act: Callable[[Resume], None]) -> None:
        """``act`` makes this process another kernel than its image; called in the reading thread,
        before any message of the new host is read."""
        self._on_resume = act

    def _resume(self, resume: Resume) -> None:
        with self._lock:
            self._flow.begin()
        self._on_resume(resume)
        self._outgoing.put((None, [encode_frame(FrameType.RESUMED, Resumed(resume.run).encode())]))

    # -- the end ---------------------------------------------------------------------------------

    def stop_reading(self) -> None:
        """No message is delivered after this. What is sent still leaves."""
        self._reading = False
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            return
        if threading.current_thread() is not self._reader:
            self._reader.join(DRAIN_SECONDS)

    def drain(self) -> None:
        """Wait until what was sent has left this process, DRAIN_SECONDS at most."""
        self._outgoing.put((None, _LAST))
        self._drained.wait(DRAIN_SECONDS)

    def _leave_to_parent(self) -> None:
        """A forked child has neither the threads nor the link."""
        self._socket.close()


def complain(text: str) -> None:
    """To the process's stderr, which ipykernel shows in the notebook."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
