"""The kernel process's own end of the link: frames on one socket, two threads. No ZMQ here.

One thread reads; one writes what cannot leave at once. A small message leaves from the thread that
sends it: waking another thread costs more inside gVisor than the call. The socket carries packets,
each some whole frames. So an exception that a signal raises in the main thread (an interrupt, an
alarm of the notebook) may lose the message that is being sent, but never leaves half a frame.

On the other side of the socket PID 1 passes the frames on, unread. See docs/protocol.md.
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
from typing import Deque, List, Optional, Tuple

from gvisor_kernel.guest.notice import explain_drop
from gvisor_kernel.guest.room import with_room
from gvisor_kernel.link import (
    Ask,
    Hello,
    LocalProtocolError,
    Message,
    Quiet,
    Resume,
    Resumed,
    Signal,
)
from gvisor_kernel.link.flow import Flow
from gvisor_kernel.link.frames import DIRECT_CHANNELS, Channel, FrameReader, FrameType, encode_frame

READ_SIZE = 256 * 1024
PACKET = 128 * 1024
"""Bytes of a packet at most: a few frames."""
SMALL = 16 * 1024
"""Bytes of a message that may leave from the thread that sends it."""
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
        self.on_ask: Callable[[], bool] = lambda: False
        """Says whether the kernel has nothing to do by itself; in the reading thread. Set before
        ``start``."""
        self.on_signal: Callable[[int], None] = lambda signum: None
        """Hears of a signal that this process was sent; in the reading thread. Set before
        ``start``."""
        self._flow = Flow(DIRECT_CHANNELS)
        self._frames = FrameReader()
        self._lock = threading.Lock()
        """Guards ``_flow``, ``_unsent`` and the order of what is written."""
        self._waiting: Deque[Tuple[Optional[Channel], Parts]] = deque()
        """For the writing thread, which takes one out when it has been queued in ``_flow``."""
        self._acts: Deque[Callable[[], None]] = deque()
        self._timers: List[Tuple[float, Callable[[], None]]] = []
        self._unsent: Deque[bytes] = deque()
        """Frames that are counted as sent, when the socket was full."""
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Not an Event: whoever is interrupted while it waits would leave that one's lock in
        disorder, for the writing thread to stumble over."""
        self._last_taken = False
        self._drained = threading.Event()
        self._open = False
        self._pid = os.getpid()
        self._delivery = threading.RLock()
        """Held while a message is delivered."""
        self._delivering = True
        self._writer: Optional[threading.Thread] = None
        os.register_at_fork(after_in_child=self._leave_to_parent)

    @staticmethod
    def _thread(target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=with_room(target), name=name, daemon=True)
        # A debugger neither stops these threads nor shows them.
        thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
        thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
        return thread

    def start(self, hello: Hello) -> None:
        """Say that this kernel speaks frames, and begin."""
        self._socket.send(encode_frame(FrameType.HELLO, hello.encode()))
        # Made no sooner: ipykernel 6 lets no thread run that was made before the kernel started.
        self._writer = self._thread(self._writing, "Link writer")
        self._open = True
        self._writer.start()
        self._thread(self._reading, "Link reader").start()
        self._wake.put(None)

    # -- sending, from any thread ----------------------------------------------------------------

    def send(self, channel: Channel, parts: Parts) -> None:
        """Send a message, or leave it to the writing thread. Never waits for the host."""
        if not self._send_at_once(channel, parts):
            self._leave_to_writer(channel, parts)

    def _leave_to_writer(self, channel: Optional[Channel], parts: Parts) -> None:
        self._waiting.append((channel, parts))
        self._wake.put(None)

    def _send_at_once(self, channel: Channel, parts: Parts) -> bool:
        if self._waiting or not self._open or self._lock.locked():
            return False
        if sum(map(len, parts)) > SMALL:
            return False
        with self._lock:
            if self._waiting or self._unsent:
                return False
            frame = self._flow.pass_small(channel, parts)
            if frame is None:
                return False
            try:
                self._socket.send(frame, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._unsent.append(frame)
                self._wake.put(None)
            except OSError:
                return True  # PID 1 is gone, and this process with it
        return True

    def serves(self, thread: threading.Thread) -> bool:
        """Whether ``thread`` may wait for what it lets the writing thread do."""
        return thread is not self._writer and self._writes()

    def _writes(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def run_soon(self, act: Callable[[], None]) -> None:
        """Let the writing thread call ``act``, after what was queued before."""
        self._acts.append(act)
        self._wake.put(None)

    def run_later(self, seconds: float, act: Callable[[], None]) -> None:
        """Let the writing thread call ``act`` after ``seconds``."""
        self._timers.append((time.monotonic() + seconds, act))
        self._wake.put(None)

    def wait_for_room(self) -> None:
        """Wait while far more output is queued than the host takes. For whoever makes output."""
        while self._crowded() and self._pid == os.getpid() and self._writes():
            with contextlib.suppress(queue.Empty):
                self._room.get(timeout=LOOK_SECONDS)

    def _crowded(self) -> bool:
        return self._flow.queued() > AHEAD or len(self._waiting) > AHEAD_MESSAGES

    # -- the two threads -------------------------------------------------------------------------

    def _reading(self) -> None:
        self._to_the_end(self._read)

    def _writing(self) -> None:
        self._to_the_end(self._write)

    def _to_the_end(self, work: Callable[[], None]) -> None:
        """Without one of its threads the link is of no use: PID 1 then sees it closed."""
        try:
            work()
        except Exception as error:  # code of the notebook has changed what is here
            complain(f"The kernel's link ends: {type(error).__name__}: {error}\n")
        finally:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _write(self) -> None:
        while True:
            due = min((at for at, _ in self._timers), default=None)
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            self._act()
            with self._lock:
                urgent: Parts = []
                while self._waiting:
                    self._add(self._waiting[0], urgent)
                    self._waiting.popleft()
                if not self._flush(urgent):
                    return

    def _act(self) -> None:
        """What other threads asked this one to do. An error in it is shown, and is no end."""
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer[0] <= now]:
            self._timers.remove(timer)
            self._acts.append(timer[1])
        while self._acts:
            try:
                self._acts.popleft()()
            except Exception as error:
                complain(f"{type(error).__name__}: {error}\n")

    def _add(self, item: Tuple[Optional[Channel], Parts], urgent: Parts) -> None:
        channel, parts = item
        if channel is None:
            self._last_taken |= parts is _LAST
            urgent += parts
            return
        try:
            self._flow.add(channel, parts)
        except LocalProtocolError as error:
            complain(explain_drop(channel, error))

    def _flush(self, urgent: Parts) -> bool:
        """Write what the host has room for; False when the link is gone."""
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
            out = list(urgent)
            self._flow.write(out, PACKET)
            while out:
                self._socket.send(b"".join(out))
                out = []
                self._flow.write(out, PACKET)
        except OSError:
            return False
        if not self._crowded() and self._room.empty():
            self._room.put(None)
        if self._last_taken and not self._flow.queued():
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
                if frame.type is FrameType.ASK:
                    self._answer(Ask.decode(frame.payload))
                    continue
                if frame.type is FrameType.SIGNAL:
                    self.on_signal(Signal.decode(frame.payload).signum)
                    continue
                with self._lock:
                    if frame.type is FrameType.CREDIT:
                        self._flow.take_credit(frame)
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

    def _answer(self, ask: Ask) -> None:
        """In a packet of its own, for PID 1."""
        idle = self.on_ask()
        with self._lock:
            idle = idle and not (self._waiting or self._unsent or self._timers or self._acts)
            quiet = Quiet(ask.run, idle and not self._flow.queued())
            self._unsent.append(encode_frame(FrameType.QUIET, quiet.encode()))

    def _deliver(self, message: Message) -> None:
        with self._delivery:
            if self._delivering:
                self.on_message(message)

    # -- restored from an image --------------------------------------------------------------------

    def on_resume(self, act: Callable[[Resume], None]) -> None:
        """``act`` makes this process another kernel than its image; called in the reading thread,
        before any message of the new host is read."""
        self._on_resume = act

    def _resume(self, resume: Resume) -> None:
        with self._lock:
            self._flow.begin()
        self._on_resume(resume)
        resumed = encode_frame(FrameType.RESUMED, Resumed(resume.run, True).encode())
        self._leave_to_writer(None, [resumed])

    # -- the end ---------------------------------------------------------------------------------

    def stop_delivering(self) -> None:
        """No message is delivered after this. The host's credit is, for what has to leave."""
        with self._delivery:
            self._delivering = False

    def drain(self) -> None:
        """Wait until what was sent has left this process, DRAIN_SECONDS at most."""
        self._leave_to_writer(None, _LAST)
        self._drained.wait(DRAIN_SECONDS)

    def _leave_to_parent(self) -> None:
        """A forked child has neither the threads nor the link."""
        self._socket.close()


def complain(text: str) -> None:
    """To the process's stderr, which ipykernel shows in the notebook."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
