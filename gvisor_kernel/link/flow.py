"""Flow control of one end: what each channel may send and may still receive, in one run.

Runs, states and frames without a channel belong to the connection. A kernel that speaks frames
itself (``guest.direct``) uses this module without a connection, for all its channels except hb.

Each channel has a window of WINDOW bytes in each direction. A DATA frame costs its payload and
FRAME_COST. A receiver keeps the credit that the sender may still use at WINDOW, less the whole
messages that its owner has not consumed. A fragment in the middle of a message costs credit that
is given back without the owner, so a message may be larger than the window.

So a channel never holds more than WINDOW and its largest message, a partial one included, whatever
the sender does: once held messages fill the window, only the credit that was given out, a window
at most, can still arrive. Credit counts as given when it is written, so a sender that does not
read gets none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from gvisor_kernel.link.events import CREDIT, Message
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    FLAG_LAST,
    HEADER,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameType,
    LocalProtocolError,
    Part,
    RemoteProtocolError,
    encode_frame,
    largest_message,
    pack_message,
    unpack_message,
)

WINDOW = 1024 * 1024
"""Bytes that a sender may be ahead of its receiver, per channel and direction. As large as the
pipe below, so that the pipe stays busy. It also bounds the host's memory per kernel."""

FRAME_COST = 256
"""Bytes of credit that a DATA frame costs in addition to its payload: about the memory of its
object. Without it a window of the smallest messages would take thirty windows of memory."""

CREDIT_STEP = WINDOW // 4
"""Least bytes of credit that are given back at once, so that small messages cost no frame each."""

JOIN_BELOW = 64 * 1024
"""Bytes of a message up to which its parts are joined by a copy: cheaper than to handle each."""


class _Inflow:
    """The state of one channel at its receiver."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.credit = WINDOW
        self.held = 0
        self.partial = bytearray()

    def find_credit_due(self) -> int:
        """Return the credit to give back now, or 0 while it is not worth a frame."""
        due = max(0, WINDOW - self.held) - self.credit
        return due if due >= CREDIT_STEP else 0


class _Outflow:
    """The state of one channel at its sender: pieces of messages, cut into frames as credit allows.

    ``size`` is their size in bytes.
    """

    def __init__(self) -> None:
        self.credit = WINDOW
        self.pieces: deque[tuple[memoryview, bool]] = deque()
        """Each piece, and whether it is the last of its message."""
        self.size = 0

    def add(self, pieces: list[Part]) -> None:
        size = sum(map(len, pieces))
        self.size += size
        if size <= JOIN_BELOW:
            pieces = [b"".join(pieces)]
        last = len(pieces) - 1
        for index, piece in enumerate(pieces):
            self.pieces.append((memoryview(piece), index == last))

    def clear(self) -> None:
        self.pieces.clear()
        self.size = 0

    def cut_frame(self, channel: Channel, out: list[bytes]) -> int:
        """Append one DATA frame to ``out`` and return its size, or 0 if it has to wait."""
        room = min(self.credit - FRAME_COST, MAX_PAYLOAD)
        if not self.pieces or room <= 0:
            return 0
        taken: list[memoryview] = []
        length = flags = 0
        while not flags:
            piece, last = self.pieces[0]
            left = room - length
            if len(piece) > left:
                if left:
                    taken.append(piece[:left])
                    self.pieces[0] = piece[left:], last
                    length += left
                break
            taken.append(piece)
            length += len(piece)
            self.pieces.popleft()
            if last:
                flags = FLAG_LAST
        self.credit -= length + FRAME_COST
        self.size -= length
        out.append(HEADER.pack(FrameType.DATA, channel, flags, 0, length))
        out.extend(taken)  # type: ignore[arg-type]  # join takes any bytes-like object
        return HEADER.size + length


class Flow:
    """The windows of ``channels`` in both directions.

    ``views``: unpack large parts as views; see ``frames.VIEW_ABOVE``.
    """

    def __init__(self, channels: Iterable[Channel] = DATA_CHANNELS, *, views: bool = False) -> None:
        self._channels = tuple(channels)
        self._views = views
        self._generation = 0
        self.begin()

    def begin(self) -> None:
        """Begin a run: full windows, nothing queued. Messages held before do not count any more."""
        self._generation += 1
        self._inflow = {c: _Inflow(largest_message(c)) for c in self._channels}
        self._outflow = {channel: _Outflow() for channel in self._channels}

    def drop_unfinished(self) -> None:
        """Drop the partial messages of the other side and the queued ones of this side."""
        for channel in self._channels:
            self._inflow[channel].partial = bytearray()
            self._outflow[channel].clear()

    # -- receiving -------------------------------------------------------------------------------

    def take(self, frame: Frame, *, late: bool = False) -> Message | None:
        """Count a DATA frame. Return the message that it completes, held until ``consumed``.

        :param late: only check its form
        :raises RemoteProtocolError: when it is empty, or over the credit or the message size
        """
        channel = Channel(frame.channel)
        payload = frame.payload
        if not payload:
            raise RemoteProtocolError("A DATA frame is empty.")
        if late:
            return None
        inflow = self._inflow[channel]
        cost = len(payload) + FRAME_COST
        if cost > inflow.credit:
            raise RemoteProtocolError(
                f"A DATA frame on {channel.name.lower()} costs {cost} bytes of credit; "
                f"only {inflow.credit} are left."
            )
        inflow.credit -= cost
        if len(inflow.partial) + len(payload) > inflow.largest:
            raise RemoteProtocolError(
                f"A message on {channel.name.lower()} is over the limit of {inflow.largest} bytes."
            )
        if not frame.flags & FLAG_LAST:
            inflow.partial += payload
            return None
        if inflow.partial:
            inflow.partial += payload
            size = len(inflow.partial)
            parts = unpack_message(inflow.partial, views=self._views)
            inflow.partial = bytearray()
        else:
            size, parts = len(payload), unpack_message(payload)
        message = Message(channel, parts, size + FRAME_COST, self._generation)
        inflow.held += message.size
        return message

    def receive_credit(self, frame: Frame, *, late: bool = False) -> None:
        """Count a CREDIT frame.

        :param late: only check its form
        :raises RemoteProtocolError: when it is malformed, or credit exceeds the window
        """
        if len(frame.payload) != CREDIT.size:
            raise RemoteProtocolError(
                f"A CREDIT payload has {len(frame.payload)} bytes; {CREDIT.size} are expected."
            )
        if late:
            return
        outflow = self._outflow[Channel(frame.channel)]
        outflow.credit += CREDIT.unpack(frame.payload)[0]
        if outflow.credit > WINDOW:
            raise RemoteProtocolError(f"Credit of {outflow.credit} is over the window of {WINDOW}.")

    def consumed(self, message: Message) -> None:
        """Release ``message``: it has left this process's memory. Its sender gets the credit back.

        A message of windows before the last ``begin`` changes nothing.

        :raises LocalProtocolError: when it is not held; each message is consumed once
        """
        if message.generation != self._generation:
            return
        inflow = self._inflow[message.channel]
        if inflow.held < message.size:
            raise LocalProtocolError(f"{message!r} is not held: it was already consumed.")
        inflow.held -= message.size

    def held(self, channel: Channel) -> int:
        """Return the size in bytes of the whole messages on ``channel`` not consumed yet."""
        return self._inflow[channel].held

    def partial(self, channel: Channel) -> int:
        """Return the received bytes of an incomplete message on ``channel``."""
        return len(self._inflow[channel].partial)

    # -- sending ---------------------------------------------------------------------------------

    def add(self, channel: Channel, parts: Sequence[Part]) -> None:
        """Queue a message. Large parts are not copied.

        :raises LocalProtocolError: when it is too large
        """
        self._outflow[channel].add(pack_message(parts, channel))

    def encode_small(self, channel: Channel, parts: list[bytes]) -> bytes | None:
        """Return the one DATA frame of a message, counted as sent; None if it must be queued.

        :raises LocalProtocolError: when the message is too large
        """
        outflow = self._outflow[channel]
        pieces = pack_message(parts, channel)
        length = sum(map(len, pieces))
        if outflow.pieces or length > MAX_PAYLOAD or length + FRAME_COST > outflow.credit:
            return None
        outflow.credit -= length + FRAME_COST
        return HEADER.pack(FrameType.DATA, channel, FLAG_LAST, 0, length) + b"".join(pieces)

    def queued(self, channel: Channel | None = None) -> int:
        """Return the queued bytes of messages, on one channel or on all."""
        if channel is not None:
            return self._outflow[channel].size
        return sum(outflow.size for outflow in self._outflow.values())

    def write(self, out: list[bytes], limit: int) -> int:
        """Append the frames that may be sent, about ``limit`` bytes at most. Return their size.

        CREDIT first, then the channels in the order of DATA_CHANNELS.
        """
        size = 0
        for channel in self._channels:
            inflow = self._inflow[channel]
            due = inflow.find_credit_due()
            if due:
                inflow.credit += due
                frame = encode_frame(FrameType.CREDIT, CREDIT.pack(due), channel)
                out.append(frame)
                size += len(frame)
        for channel in self._channels:
            outflow = self._outflow[channel]
            while size < limit:
                added = outflow.cut_frame(channel, out)
                if not added:
                    break
                size += added
        return size
