"""The frames of streams at one end of the link, undecoded: those that wait, and how many may come.

The state of each stream is in ``streams``, at the two ends of a stream. A host's connection passes
frames on to a process that may be slow, and must not stop reading meanwhile: messages come on the
same link. So a guest may be ahead of that process by STREAM_BACKLOG bytes, on all streams together.
The host grants more as it passes frames on: a GRANT of stream 0. In the other direction nothing is
needed: the windows of the streams bound what a guest may have to hold.
"""

from __future__ import annotations

from collections import deque

from gvisor_kernel.link.events import StreamFrames, StreamsEnded
from gvisor_kernel.link.frames import (
    ALL_STREAMS,
    HEADER,
    Frame,
    FrameType,
    LocalProtocolError,
    RemoteProtocolError,
    check_size,
    decode_grant,
    decode_stream,
    encode_frame,
    encode_grant,
    encode_short,
)
from gvisor_kernel.link.state import Role

STREAM_BACKLOG = 256 * 1024
"""Bytes of stream frames, with their headers, that a guest may send before the host has passed them
on. It bounds what a host holds for all streams of a kernel."""

BACKLOG_STEP = STREAM_BACKLOG // 4
"""Least bytes that are granted at once, so that small frames do not cost a frame each."""


class Backlog:
    """One instance per connection. Begins without a run."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._frames: deque[bytes] = deque()
        self.queued = 0
        """Bytes of frames that wait to be written."""
        self._allowed = False
        """The run has egress."""
        self._ended = False
        """A host's: it has ended all streams, and the guest has not answered."""
        self._control: deque[bytes] = deque()
        self._credit = 0
        """Bytes that a guest may still send; the host counts the same."""
        self._held = 0
        """A host's: bytes that came and were not passed on yet."""

    def begin(self, egress: bool) -> None:
        """Begin a run. ``egress``: whether the guest may open streams in it."""
        self.drop()
        self._allowed = egress
        self._ended = False
        self._credit = STREAM_BACKLOG
        self._held = 0

    def drop(self) -> None:
        """Drop what waits to be written: the run is over."""
        self._frames.clear()
        self._control.clear()
        self.queued = 0

    # -- receiving -------------------------------------------------------------------------------

    def take(self, frame: Frame, *, late: bool = False) -> StreamFrames | StreamsEnded | None:
        """Check a frame, and return the event for the owner.

        :param late: only check its form
        :raises RemoteProtocolError: when its size is wrong, it exceeds the backlog, or the run has
            no egress
        """
        check_size(frame)
        if late:
            return None
        kind, payload = frame.type, frame.payload
        if not self._allowed:
            raise RemoteProtocolError(f"A {kind.name} was sent in a run without egress.")
        if decode_stream(payload) == ALL_STREAMS:
            return self._take_for_all(frame)
        if self._ended:
            return None
        size = HEADER.size + len(payload)
        if self._role is Role.HOST:
            if size > self._credit:
                raise RemoteProtocolError(
                    f"A {kind.name} has {size} bytes; only {self._credit} are left of the backlog."
                )
            self._credit -= size
            self._held += size
        return StreamFrames(encode_frame(kind, payload))

    def _take_for_all(self, frame: Frame) -> StreamsEnded | None:
        """Handle a frame that is about all streams together."""
        if self._role is Role.HOST and frame.type is FrameType.RESET and self._ended:
            self._ended, self._credit, self._held = False, STREAM_BACKLOG, 0
            return StreamsEnded()
        if self._role is Role.HOST or frame.type not in (FrameType.GRANT, FrameType.RESET):
            raise RemoteProtocolError(f"A {frame.type.name} names stream {ALL_STREAMS}.")
        if frame.type is FrameType.GRANT:
            self._credit += decode_grant(frame.payload)[1]
            if self._credit > STREAM_BACKLOG:
                raise RemoteProtocolError(
                    f"{self._credit} bytes are granted; the backlog is {STREAM_BACKLOG}."
                )
            return None
        self.drop()
        return StreamsEnded()

    def passed_on(self, size: int) -> None:
        """Release ``size`` bytes of StreamFrames: the host's owner has passed them on.

        Bytes of an earlier run change nothing.
        """
        self._held = max(0, self._held - size)
        due = STREAM_BACKLOG - self._held - self._credit
        if due >= BACKLOG_STEP and not self._ended:
            self._credit += due
            self._control.append(encode_grant(ALL_STREAMS, due))

    # -- sending ---------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes of frames that may be added now."""
        if not self._allowed or self._ended:
            return 0
        if self._role is Role.GUEST:
            return self._credit
        return max(0, STREAM_BACKLOG - self.queued)

    def add(self, frames: bytes) -> None:
        """Queue whole frames. Dropped while the guest has not answered the end of all streams.

        :raises LocalProtocolError: when the run has no egress, or a guest has no room
        """
        if not self._allowed:
            raise LocalProtocolError("This run has no egress.")
        if self._ended:
            return
        if self._role is Role.GUEST:
            if len(frames) > self._credit:
                raise LocalProtocolError(
                    f"{len(frames)} bytes are over the {self._credit} left of the backlog."
                )
            self._credit -= len(frames)
        self._frames.append(frames)
        self.queued += len(frames)

    def end(self) -> None:
        """End all streams of the run, as a host. Idempotent until the guest has answered."""
        if self._allowed and not self._ended:
            self.drop()
            self._ended = True
            self._control.append(encode_short(FrameType.RESET, ALL_STREAMS))

    def begin_again(self) -> None:
        """Answer the end of all streams, as a guest: what follows is of new ones."""
        self.drop()
        self._credit = STREAM_BACKLOG
        self._control.append(encode_short(FrameType.RESET, ALL_STREAMS))

    def write(self, out: list[bytes], limit: int) -> None:
        """Append frames to write: about ``limit`` bytes at most, and those about all streams."""
        while self._control:
            out.append(self._control.popleft())
        while self._frames and limit > 0:
            frames = self._frames.popleft()
            out.append(frames)
            limit -= len(frames)
            self.queued -= len(frames)
