"""PID 1's end of the socket on which a kernel speaks frames itself. Frames pass undecoded.

The socket keeps packet boundaries, and each packet holds whole frames. PID 1 stays in between, so
that the link never carries a partial frame, whatever the kernel does, and so that a signal, an exit
or a sign of life never waits for the kernel's interpreter.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import Deque, Dict, Optional

from gvisor_kernel.link import Hello, IdleReply, RemoteProtocolError
from gvisor_kernel.link.frames import (
    DIRECT_CHANNELS,
    Frame,
    FrameReader,
    FrameType,
    find_whole_frames_size,
)

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
        self._waiting: Deque[bytes] = deque()
        self.facts: Optional[Dict[str, str]] = None
        """The facts of the kernel's HELLO; None until it has come."""
        self.resuming = False
        """True while a RESUME was forwarded and the RESUMED has not come yet."""
        self.idle_reply: Optional[IdleReply] = None
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
