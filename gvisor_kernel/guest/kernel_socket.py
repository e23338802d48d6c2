"""PID 1's end of the socket on which a kernel speaks frames itself. Frames pass here unread.

The socket carries packets, each some whole frames.
PID 1 stays in between, so that whatever the kernel does, the link never carries half a frame of
it, and a signal, an exit or a sign of life never waits for the kernel's interpreter.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import Deque, Dict, Optional

from gvisor_kernel.link import Hello, Quiet, RemoteProtocolError
from gvisor_kernel.link.frames import DIRECT_CHANNELS, Frame, FrameReader, FrameType, whole_frames

READ_SIZE = 256 * 1024
"""More than a packet of a kernel that keeps to the rules."""
BUFFER = 1024 * 1024
"""Bytes that the socket is asked to keep in each direction."""
RELAY = "relay"
"""The fact in a kernel's HELLO that asks for the relay, with the reason."""

FROM_KERNEL = {(int(FrameType.DATA), int(channel)) for channel in DIRECT_CHANNELS} | {
    (int(FrameType.CREDIT), int(channel)) for channel in DIRECT_CHANNELS
}
"""What passes."""


class KernelSocket:
    """Between PID 1 and one kernel, from the kernel's start to its end."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._waiting: Deque[bytes] = deque()
        self.facts: Optional[Dict[str, str]] = None
        """What the kernel said of itself; None until it has spoken."""
        self.resuming = False
        """A RESUME was passed on, and its RESUMED has not come."""
        self.quiet: Optional[Quiet] = None
        """The kernel's answer to an ASK, for PID 1 to take away."""
        self.closed = False
        """The kernel's end is closed: nothing comes any more."""
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, option, BUFFER)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def direct(self) -> bool:
        """The kernel speaks frames."""
        return self.facts is not None and RELAY not in self.facts

    # -- to the kernel ---------------------------------------------------------------------------

    @property
    def wants_to_write(self) -> bool:
        return bool(self._waiting)

    def put(self, frame: bytes) -> None:
        """Pass a frame on, as soon as the kernel takes it."""
        self._waiting.append(frame)

    def resume(self, frame: bytes) -> None:
        """Pass a RESUME on. Until the kernel's RESUMED, what it sends is dropped."""
        self._waiting.clear()
        self.resuming = True
        self.put(frame)

    def flush(self) -> None:
        """Write what may be written without waiting; for a kernel that reads no more, nothing."""
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
        """Read once; whole frames to pass on, maybe none.

        Raises RemoteProtocolError when the kernel sent anything else.
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
            return self._answer(data)
        if data[0] == FrameType.QUIET:
            self.quiet = Quiet.decode(_only_frame(data).payload)
            return b""
        if whole_frames(data, FROM_KERNEL) != len(data):
            raise RemoteProtocolError("The kernel sent a part of a frame.")
        return data

    def _answer(self, data: bytes) -> bytes:
        """The packet that answers what PID 1 waits for, or one that comes too early to count."""
        reader = FrameReader()
        reader.receive_data(data)
        frame = reader.next_frame()
        if self.facts is None:
            if frame is None or frame.type is not FrameType.HELLO:
                raise RemoteProtocolError("The kernel's first frame is no HELLO.")
            self.facts = dict(Hello.decode(frame.payload).facts)
        elif frame is not None and frame.type is FrameType.RESUMED:
            self.resuming = False
        return b""

    def close(self) -> None:
        self._socket.close()


def _only_frame(packet: bytes) -> Frame:
    reader = FrameReader()
    reader.receive_data(packet)
    frame = reader.next_frame()
    if frame is None or reader.pending:
        raise RemoteProtocolError("The kernel sent a part of a frame.")
    return frame
