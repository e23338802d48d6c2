"""Byte streams beside the channels: the state of each, without any I/O.

The guest opens a stream for each connection that a program makes to its port; what the bytes mean
is the host's matter. Both ends use the same class, ``Streams``: PID 1 for the sockets inside, the
host's egress process for its side. The bridge between them moves whole frames and keeps no state of
a stream (``backlog``). docs/protocol.md specifies the frames.

Each stream has a window of STREAM_WINDOW bytes in each direction. A receiver grants more as its
owner takes bytes (``consumed``). So an end never holds more than a window of each stream, and a
stream that nobody reads slows only itself. A guest, whose sandbox has the memory for it, lets the
window of a stream that is read grow to DOWN_WINDOW, and to less while many are open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from gvisor_kernel.link.frames import (
    GRANT_SIZE,
    HEAD_SIZE,
    LAST_STREAM,
    MAX_STREAM_DATA,
    STREAM_SIZES,
    Frame,
    FrameReader,
    FrameType,
    LocalProtocolError,
    RemoteProtocolError,
    check_size,
    decode_data,
    decode_grant,
    decode_stream,
    encode_bytes,
    encode_grant,
    encode_short,
)
from gvisor_kernel.link.state import SENDERS, Role

EGRESS_PORT = 3128
"""The port of the sandbox's loopback on which PID 1 accepts connections."""

MAX_STREAMS = 256
"""Streams that may be open at once. PID 1 accepts no more; connections wait in its backlog."""

STREAM_WINDOW = 128 * 1024
"""Bytes that a sender may be ahead of the receiver's owner, per stream and direction. With
MAX_STREAMS it bounds what an end may have to hold."""

DOWN_WINDOW = 1024 * 1024
"""Bytes that a host may be ahead on a stream that its program reads. A grant takes milliseconds to
arrive at the host, so this bounds the speed of one stream."""

DOWN_BYTES = 32 * DOWN_WINDOW
"""Bytes for such larger windows: with many streams each gets its part of them, if that is more than
STREAM_WINDOW."""

_LARGEST = {Role.GUEST: STREAM_WINDOW, Role.HOST: DOWN_WINDOW}
"""The most credit of a sender."""

GRANT_STEP = STREAM_WINDOW // 4
"""Least bytes that are granted at once, so that small reads do not cost a frame each."""


@dataclass(frozen=True)
class Opened:
    """The other side has opened a stream. Only a host gets this."""

    stream: int


@dataclass(frozen=True)
class Received:
    """Bytes of a stream, which count as held until ``Streams.consumed``."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class Granted:
    """More bytes may be sent on a stream: ``Streams.sendable`` has grown."""

    stream: int


@dataclass(frozen=True)
class Finished:
    """The other side sends no more on a stream. This side may still send."""

    stream: int


@dataclass(frozen=True)
class Reset:
    """The other side has ended a stream in both directions. Nothing can be sent on it any more."""

    stream: int


StreamEvent = Union[Opened, Received, Granted, Finished, Reset]


class _Stream:
    """One stream at one end."""

    def __init__(self) -> None:
        self.credit = STREAM_WINDOW
        """Bytes that this side's owner may still queue."""
        self.out = bytearray()
        """Queued bytes. All of them are covered by credit already."""
        self.finishing = False
        """``finish`` was called. FINISH is sent after the queued bytes."""
        self.finished = False
        """FINISH was sent."""
        self.allowed = STREAM_WINDOW
        """Bytes that the other side may still send."""
        self.taken = 0
        """Bytes that the owner has consumed since the last grant."""
        self.held = 0
        """Bytes received that the owner has not consumed."""
        self.ended = False
        """The other side has sent FINISH."""

    def find_grant_due(self, window: int) -> int:
        """Return the bytes to grant now; 0 while they are not worth a frame."""
        due = window - self.held - self.allowed
        return due if min(due, self.taken) >= GRANT_STEP and not self.ended else 0

    def take(self, size: int) -> bytes:
        """Remove and return up to ``size`` queued bytes."""
        taken = bytes(self.out[:size])
        del self.out[:size]
        return taken


class Streams:
    """All streams of one run at one end. A new run needs a new object.

    ``role`` GUEST opens streams; HOST is told of them. A stream is over after a RESET of either
    side, or when both sides have sent FINISH. What is asked for a stream that is over has no
    effect, since the other side may have ended it meanwhile.
    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self._other = Role.GUEST if role is Role.HOST else Role.HOST
        self._reader = FrameReader()
        self._streams: dict[int, _Stream] = {}
        self._highest = 0
        self._control: deque[bytes] = deque()
        """OPEN and RESET frames, in order."""
        self._granting: dict[int, None] = {}
        """Streams on which a GRANT is due; in the order in which it became due."""
        self._turns: deque[int] = deque()
        """Streams with bytes or a FINISH to send, each once. The first is the next in turn."""
        self._queued = 0
        """Bytes of ``out`` of all streams."""
        self._error: RemoteProtocolError | None = None

    @property
    def open_count(self) -> int:
        """Number of streams that are not over."""
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        """Return whether another stream may be opened now."""
        return len(self._streams) < MAX_STREAMS and self._highest < LAST_STREAM

    @property
    def queued(self) -> int:
        """Bytes of streams that wait to be sent, with the frames OPEN and RESET that do."""
        return self._queued + HEAD_SIZE * len(self._control)

    @property
    def has_data_to_send(self) -> bool:
        """Return whether ``data_to_send`` would return frames."""
        return bool(self._control or self._granting or self._turns)

    # -- receiving -------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[StreamEvent]:
        """Process bytes of the other side, which may be cut anywhere.

        :raises RemoteProtocolError: when they violate the protocol, and again after that
        """
        if self._error is not None:
            raise self._error
        self._reader.receive_data(data)
        events: list[StreamEvent] = []
        try:
            for frame in iter(self._reader.next_frame, None):
                events += self.receive(frame)
        except RemoteProtocolError as error:
            self._error = error
            raise
        return events

    def receive(self, frame: Frame) -> Sequence[StreamEvent]:
        """Process one frame of the other side. One for a stream that is over is dropped.

        :raises RemoteProtocolError: when it violates the protocol
        """
        kind = frame.type
        if kind not in STREAM_SIZES or kind not in SENDERS[self._other]:
            raise RemoteProtocolError(f"The {self._other.value} may not send {kind.name} here.")
        check_size(frame)
        number = decode_stream(frame.payload)
        if kind is FrameType.OPEN:
            return (self._receive_open(number),)
        if not 0 < number <= self._highest:
            raise RemoteProtocolError(
                f"A {kind.name} names stream {number}; {self._highest} were opened."
            )
        stream = self._streams.get(number)
        if stream is None:
            return ()
        if kind is FrameType.STREAM:
            return (self._receive_bytes(number, stream, decode_data(frame.payload)),)
        if kind is FrameType.GRANT:
            return self._receive_grant(number, stream, frame.payload)
        if kind is FrameType.RESET:
            self._forget(number)
            return (Reset(number),)
        if stream.ended:
            raise RemoteProtocolError(f"Stream {number} was finished twice.")
        stream.ended = True
        self._granting.pop(number, None)
        if stream.finished:
            self._forget(number)
        return (Finished(number),)

    def _receive_open(self, number: int) -> Opened:
        if number != self._highest + 1:
            raise RemoteProtocolError(
                f"An OPEN names stream {number}; the next one is {self._highest + 1}."
            )
        if len(self._streams) >= MAX_STREAMS:
            raise RemoteProtocolError(f"More than {MAX_STREAMS} streams are open.")
        self._highest = number
        self._streams[number] = _Stream()
        return Opened(number)

    def _receive_bytes(self, number: int, stream: _Stream, data: bytes) -> Received:
        if stream.ended:
            raise RemoteProtocolError(f"Bytes came on stream {number} after its FINISH.")
        if len(data) > stream.allowed:
            raise RemoteProtocolError(
                f"{len(data)} bytes came on stream {number}; only {stream.allowed} were granted."
            )
        stream.allowed -= len(data)
        stream.held += len(data)
        return Received(number, data)

    def _receive_grant(self, number: int, stream: _Stream, payload: bytes) -> Sequence[StreamEvent]:
        amount = decode_grant(payload)[1]
        window = _LARGEST[self._role]
        if not amount or stream.credit + amount > window:
            raise RemoteProtocolError(
                f"A GRANT of {amount} bytes on stream {number}, which has {stream.credit}, is"
                f" none, or over the window of {window}."
            )
        stream.credit += amount
        return () if stream.finishing else (Granted(number),)

    def consumed(self, number: int, size: int) -> None:
        """Release ``size`` received bytes: they have left this process's memory.

        :raises LocalProtocolError: when fewer are held
        """
        stream = self._find(number)
        if stream is None:
            return
        if not 0 <= size <= stream.held:
            raise LocalProtocolError(
                f"{size} bytes of stream {number} cannot be consumed; {stream.held} are held."
            )
        stream.held -= size
        stream.taken += size
        if stream.find_grant_due(self._window):
            self._granting[number] = None

    # -- sending ---------------------------------------------------------------------------------

    def open(self) -> int:
        """Open a stream and return its number.

        :raises LocalProtocolError: when this side may not, or MAX_STREAMS are open
        """
        if FrameType.OPEN not in SENDERS[self._role]:
            raise LocalProtocolError(f"The {self._role.value} may not open a stream.")
        if not self.can_open:
            raise LocalProtocolError(
                f"{len(self._streams)} streams are open, {self._highest} were opened in this run;"
                f" {MAX_STREAMS} and {LAST_STREAM} are allowed."
            )
        self._highest += 1
        self._streams[self._highest] = _Stream()
        self._control.append(encode_short(FrameType.OPEN, self._highest))
        return self._highest

    def sendable(self, number: int) -> int:
        """Return how many bytes ``send`` accepts now; 0 if the stream is over or finishing."""
        stream = self._find(number)
        return 0 if stream is None or stream.finishing else stream.credit

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Queue bytes.

        :raises LocalProtocolError: when they are more than ``sendable``
        """
        stream = self._find(number)
        if len(data) > self.sendable(number):
            raise LocalProtocolError(
                f"{len(data)} bytes cannot be sent on stream {number};"
                f" {self.sendable(number)} are allowed."
            )
        if stream is not None and data:
            self._take_turn(number, stream)
            stream.out += data
            stream.credit -= len(data)
            self._queued += len(data)

    def finish(self, number: int) -> None:
        """Send no more on a stream, after the bytes that are queued. Idempotent."""
        stream = self._find(number)
        if stream is not None and not stream.finishing:
            self._take_turn(number, stream)
            stream.finishing = True

    def reset(self, number: int) -> None:
        """End a stream in both directions, and drop its queued bytes. Idempotent."""
        if self._find(number) is not None:
            self._forget(number)
            self._control.append(encode_short(FrameType.RESET, number))

    def data_to_send(self, limit: int = 256 * 1024) -> bytes:
        """Return whole frames to write, at most ``limit`` bytes; empty if there are none.

        OPEN and RESET come first, then GRANT, then a frame of each stream in turn.
        """
        out: list[bytes] = []
        while self._control and len(self._control[0]) <= limit:
            out.append(self._control.popleft())
            limit -= len(out[-1])
        while self._granting and not self._control and limit >= GRANT_SIZE:
            number = next(iter(self._granting))
            del self._granting[number]
            stream = self._streams[number]
            due = stream.find_grant_due(self._window)
            if not due:  # more streams are open now
                continue
            stream.allowed += due
            stream.taken = 0
            out.append(encode_grant(number, due))
            limit -= GRANT_SIZE
        while self._turns and not self._control and limit > HEAD_SIZE:
            number = self._turns.popleft()
            out.append(self._cut_frame(number, limit))
            limit -= len(out[-1])
        return b"".join(out)

    def _cut_frame(self, number: int, limit: int) -> bytes:
        """Return one frame of a stream whose turn it is. It may get another turn, as the last."""
        stream = self._streams[number]
        if stream.out:
            data = stream.take(min(MAX_STREAM_DATA, limit - HEAD_SIZE))
            self._queued -= len(data)
            if stream.out or stream.finishing:
                self._turns.append(number)
            return encode_bytes(number, data)
        stream.finished = True
        if stream.ended:
            self._forget(number)
        return encode_short(FrameType.FINISH, number)

    # -- streams ---------------------------------------------------------------------------------

    def _find(self, number: int) -> _Stream | None:
        """Return a stream, or None if it is over.

        :raises LocalProtocolError: when it never was open
        """
        if not 0 < number <= self._highest:
            raise LocalProtocolError(f"There is no stream {number}; {self._highest} were opened.")
        return self._streams.get(number)

    @property
    def _window(self) -> int:
        """Bytes that the other side may be ahead on a stream now, when more are granted."""
        part = DOWN_BYTES // max(1, len(self._streams))
        return min(_LARGEST[self._other], max(STREAM_WINDOW, part))

    def _take_turn(self, number: int, stream: _Stream) -> None:
        """Let a stream send that is about to get bytes or its FINISH."""
        if not stream.out and not stream.finishing:
            self._turns.append(number)

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number)
        self._granting.pop(number, None)
        self._queued -= len(stream.out)
        if (stream.out or stream.finishing) and not stream.finished:
            self._turns.remove(number)
