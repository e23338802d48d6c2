"""Forwards frames between the link and a kernel that speaks frames itself.

Frames pass undecoded, over a socket that keeps packet boundaries; each packet holds whole frames.
PID 1 stays in between, so that the link never carries a partial frame, whatever the kernel does,
and so that a signal, an exit or a sign of life never waits for the kernel's interpreter.

A kernel is killed when it violates the protocol, or lives on after it has closed its socket; this
module decides when, and what is logged. The kernel decides whether it speaks frames at all. Until
then the frames for it are kept.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from typing import Callable

from gvisor_kernel.guest.connection_file import socket_prefix
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.process import KernelProcess
from gvisor_kernel.guest.processes import SandboxActivity, has_other_process
from gvisor_kernel.link import (
    Channel,
    Connection,
    Hello,
    IdleQuery,
    IdleReply,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Trim,
)
from gvisor_kernel.link.frames import (
    DIRECT_CHANNELS,
    Frame,
    FrameReader,
    FrameType,
    encode_frame,
    find_whole_frames_size,
)
from gvisor_kernel.link.state import State

MAX_QUEUED = 8 * 1024 * 1024
"""Bytes of a kernel's frames that may wait for the host. Above it nothing more is read from the
kernel. This is more than its credit, so only a kernel that violates the protocol gets there."""
DECIDE_MS = 50
"""Milliseconds between checks whether a kernel without a HELLO listens on ZMQ instead."""
CLOSED_SECONDS = 3.0
"""Seconds that a kernel may live after it has closed its socket: time to exit by itself."""


READ_SIZE = 256 * 1024
"""Bytes to read at once: more than a packet of a kernel that follows the protocol."""
BUFFER_SIZE = 1024 * 1024
"""Bytes of the socket's buffer in each direction."""
RELAY = "relay"
"""Name of the fact in a kernel's HELLO that asks for the relay; its value is the reason."""

FROM_KERNEL = {(int(FrameType.DATA), int(channel)) for channel in DIRECT_CHANNELS} | {
    (int(FrameType.CREDIT), int(channel)) for channel in DIRECT_CHANNELS
}
"""(type, channel) of the frames that are forwarded to the host."""


class KernelSocket:
    """Connects PID 1 to one kernel, from the kernel's start to its end."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._waiting: deque[bytes] = deque()
        self.facts: dict[str, str] | None = None
        """The facts of the kernel's HELLO; None until it has come."""
        self.resuming = False
        """True while a RESUME was forwarded and the RESUMED has not come yet."""
        self.idle_reply: IdleReply | None = None
        """The kernel's reply to an IDLE_QUERY; the caller resets it to None."""
        self.closed = False
        """True once the kernel has closed its end, so that nothing more can be read."""
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, option, BUFFER_SIZE)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    @property
    def direct(self) -> bool:
        """Return whether the kernel speaks frames."""
        return self.facts is not None and RELAY not in self.facts

    # -- to the kernel ---------------------------------------------------------------------------

    @property
    def wants_to_write(self) -> bool:
        """Return whether frames wait for the socket to accept them."""
        return bool(self._waiting)

    def put(self, frame: bytes) -> None:
        """Queue a frame for the kernel."""
        self._waiting.append(frame)

    def resume(self, frame: bytes) -> None:
        """Forward a RESUME. Until the kernel's RESUMED everything that it sends is dropped."""
        self._waiting.clear()
        self.resuming = True
        self.put(frame)

    def flush(self) -> None:
        """Write what the socket accepts without blocking. If the kernel has ended, drop it all."""
        while self._waiting:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self._waiting.clear()
                return
            self._waiting.popleft()

    # -- from the kernel -------------------------------------------------------------------------

    def read(self) -> bytes:
        """Read one packet. Return the whole frames to forward, which may be none.

        :raises RemoteProtocolError: when the packet violates the protocol
        """
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return b""
        if self.facts is None or self.resuming:
            return self._read_reply(data)
        if data[0] == FrameType.IDLE_REPLY:
            self.idle_reply = IdleReply.decode(_decode_single(data).payload)
            return b""
        if find_whole_frames_size(data, FROM_KERNEL) != len(data):
            raise RemoteProtocolError("The kernel sent a partial frame.")
        return data

    def _read_reply(self, data: bytes) -> bytes:
        """Handle the HELLO or RESUMED that PID 1 waits for; drop everything that precedes it."""
        reader = FrameReader()
        reader.receive_data(data)
        frame = reader.next_frame()
        if self.facts is None:
            if frame is None or frame.type is not FrameType.HELLO:
                raise RemoteProtocolError("The first frame of the kernel is not a HELLO.")
            self.facts = dict(Hello.decode(frame.payload).facts)
        elif frame is not None and frame.type is FrameType.RESUMED:
            self.resuming = False
        return b""

    def close(self) -> None:
        """Close PID 1's end. The kernel sees the end of its socket."""
        self._socket.close()


def _decode_single(packet: bytes) -> Frame:
    reader = FrameReader()
    reader.receive_data(packet)
    frame = reader.next_frame()
    if frame is None or reader.pending:
        raise RemoteProtocolError("The kernel sent a partial frame.")
    return frame


class Passage:
    """One instance per kernel process, until it ends or gets the relay.

    ``unsent``: returns whether bytes that the connection has given out still wait for the host.
    """

    def __init__(
        self,
        end: socket.socket,
        kernel: KernelProcess,
        connection: Connection,
        log: GuestLog,
        unsent: Callable[[], bool],
    ) -> None:
        self._socket = KernelSocket(end)
        self._kernel = kernel
        self._connection = connection
        self._log = log
        self._has_unsent = unsent
        self._activity = SandboxActivity()
        self._query_pending = False
        """True while an IDLE_QUERY was forwarded to the kernel and its reply has not come yet."""
        self._kill_at: float | None = None
        self.early: list[bytes] = []
        """Frames for the kernel that came before it was known to speak frames."""

    # -- waiting ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor to poll for ``events``."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """The events to poll for; 0 for none."""
        events = select.POLLOUT if self._socket.wants_to_write else 0
        if not self._socket.closed and self._connection.queued() < MAX_QUEUED:
            events |= select.POLLIN
        return events

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds after which ``find_mode`` must be called without an event; None: never."""
        undecided = self._socket.facts is None
        return DECIDE_MS if undecided or self._kill_at is not None else None

    @property
    def finished(self) -> bool:
        """Return whether nothing more can come from the kernel."""
        return self._socket.closed

    # -- to the kernel ---------------------------------------------------------------------------

    def put(self, frame: bytes) -> None:
        """Forward a frame of the host to the kernel."""
        if self._socket.direct:
            self._socket.put(frame)
        else:
            self.early.append(frame)

    def resume(self, resume: Resume) -> None:
        """Forward a RESUME. Everything that was under way in the snapshot is dropped."""
        self._query_pending = False
        self.early.clear()
        self._socket.resume(encode_frame(FrameType.RESUME, resume.encode()))
        self._socket.flush()

    def forward_signal(self, sent: Signal) -> None:
        """Report a signal to the kernel that was sent to its process group already.

        Its main thread may have to be woken to handle it.
        """
        if self._socket.direct:
            self._socket.put(encode_frame(FrameType.SIGNAL, sent.encode()))

    def forward_trim(self, asked: Trim) -> None:
        """Forward a TRIM, which a kernel that needs the relay does not understand."""
        if self._socket.direct:
            self._socket.put(encode_frame(FrameType.TRIM, asked.encode()))

    def flush(self) -> None:
        """Write what the kernel's socket accepts without blocking."""
        self._socket.flush()

    def answer_idle_query(self, query: IdleQuery) -> None:
        """Answer an IDLE_QUERY, or forward it if the kernel looks idle from outside."""
        if not self._socket.direct:
            self._connection.send(IdleReply(query.run, False))
        elif self._activity.check_idle(self._kernel.pid) and not self._query_pending:
            self._query_pending = True
            self._socket.put(encode_frame(FrameType.IDLE_QUERY, query.encode()))
        elif not self._query_pending:
            self._connection.send(IdleReply(query.run, False))

    # -- from the kernel -------------------------------------------------------------------------

    def read(self) -> None:
        """Forward what has come. A kernel that violates the protocol is killed."""
        resuming, run = self._socket.resuming, self._connection.run
        try:
            frames = self._socket.read()
        except RemoteProtocolError as error:
            self._log.write_limited(f"Killed the kernel: it violated the link protocol. {error}\n")
            self._socket.closed = True
            self._kernel.signal_group(signal.SIGKILL)
            return
        if resuming and not self._socket.resuming and run is not None:
            self._connection.send(Resumed(run, True))
        reply, self._socket.idle_reply = self._socket.idle_reply, None
        if self._connection.state is State.RUNNING:
            if frames:
                self._connection.divert(frames)
            if reply is not None and self._query_pending and reply.run == run:
                self._query_pending = False
                idle = reply.idle and not self._connection.queued() and not self._has_unsent()
                others = idle and has_other_process(self._kernel.pid)  # which cannot be asked
                self._connection.send(IdleReply(reply.run, idle and not others, unknown=others))

    def find_mode(self) -> bool | None:
        """Return whether the kernel speaks frames; None while this is not known.

        It does not if it asks for the relay, or listens on ZMQ without having sent a HELLO.
        """
        if self._socket.direct:
            for frame in self.early:
                self._socket.put(frame)
            self.early.clear()
            return True
        if self._socket.facts is not None:
            self._log.write_limited(
                f"Using the relay for this kernel: {self._socket.facts[RELAY]}.\n"
            )
            return False
        assert self._connection.run is not None
        listening = os.path.exists(f"{socket_prefix(self._connection.run)}-{int(Channel.SHELL)}")
        return False if listening else None

    def kill_if_closed(self) -> None:
        """Kill a kernel that lives on CLOSED_SECONDS after it has closed its end of the link."""
        if not (self._socket.direct and self._socket.closed):
            return
        now = time.monotonic()
        if self._kill_at is None:
            self._kill_at = now + CLOSED_SECONDS
        elif now >= self._kill_at:
            self._log.write_limited("Killed the kernel: it closed its end of the link.\n")
            self._kernel.signal_group(signal.SIGKILL)
            self._kill_at = now + CLOSED_SECONDS

    def close(self) -> None:
        """Close the socket to the kernel. Frames that wait are dropped."""
        self._socket.close()
