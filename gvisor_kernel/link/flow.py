"""Flow control of one end: what each channel may send and may still receive, in one run.

No state of a run, no frames without a channel: those are the connection's. A kernel that speaks
frames itself (``guest.direct``) uses this without a connection, for all its channels but hb.

Each channel has, in each direction, a window of WINDOW bytes; a DATA frame costs its payload and
FRAME_COST. A receiver keeps the credit that the sender may still use at WINDOW less the whole
messages that its owner has not consumed. A fragment in the middle of a message costs credit that
is given back without the owner: a message may be larger than the window. So a channel never holds
more than WINDOW and its largest message, half of one included, whatever the sender does: once held
messages fill the window, only the credit that is out, a window at most, can still come. Credit is
given when it is written, so a sender that does not read gets none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from gvisor_kernel.link.errors import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.events import CREDIT, Message
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    FLAG_LAST,
    HEADER,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameType,
    Part,
    encode_frame,
    largest_message,
    pack_message,
    unpack_message,
)

WINDOW = 1024 * 1024
"""Bytes a sender may be ahead of its receiver, per channel and direction. As large as the pipe
below, so that the pipe stays busy; all channels together bound a host's share per kernel."""

FRAME_COST = 256
"""What a DATA frame costs beside its payload: about what an object for it takes in memory. So a
window of the smallest messages is not thirty windows of memory."""

CREDIT_STEP = WINDOW // 4
"""Credit is returned in steps of at least this, so that small messages cost no frame each."""

JOINED = 64 * 1024
"""Messages up to this size are copied into one piece: cheaper than to handle each part."""


class _Inflow:
    """One channel as its receiver sees it."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.credit = WINDOW
        self.held = 0
        self.partial = bytearray()

    def due(self) -> int:
        """Credit to give back now, 0 while it is not worth a frame."""
        due = max(0, WINDOW - self.held) - self.credit
        return due if due >= CREDIT_STEP else 0


class _Outflow:
    """One channel as its sender sees it: pieces of messages, cut into frames as credit allows."""

    def __init__(self) -> None:
        self.credit = WINDOW
        self.pieces: deque[tuple[memoryview, bool]] = deque()
        """Each with whether it is the last of its message."""
        self.size = 0

    def add(self, pieces: list[Part]) -> None:
        size = sum(map(len, pieces))
        self.size += size
        if size <= JOINED:
            pieces = [b"".join(pieces)]
        last = len(pieces) - 1
        for index, piece in enumerate(pieces):
            self.pieces.append((memoryview(piece), index == last))

    def clear(self) -> None:
        self.pieces.clear()
        self.size = 0

    def cut(self, channel: Channel, out: list[bytes]) -> int:
        """Append one DATA frame to ``out`` and return its size, or 0 when it has to wait."""
        room = min(self.credit - FRAME_COST, MAX_PAYLOAD)
        if not self.pieces or room <= 0:
            return 0
        taken: list[memoryview] = []
        length = flags = 0
        while not flags:
            piece, last = self.pieces[0]
            cut = room - length
            if len(piece) > cut:
                if cut:
                    taken.append(piece[:cut])
                    self.pieces[0] = piece[cut:], last
                    length += cut
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
    """The windows of ``channels`` in both directions. ``begin`` makes them fresh for a run.

    ``views``: see ``frames.VIEWED``.
    """

    def __init__(self, channels: Iterable[Channel] = DATA_CHANNELS, *, views: bool = False) -> None:
        self._channels = tuple(channels)
        self._views = views
        self._generation = 0
        self.begin()

    def begin(self) -> None:
        """Full windows, nothing held, nothing queued. What was held before is nobody's."""
        self._generation += 1
        self._inflow = {c: _Inflow(largest_message(c)) for c in self._channels}
        self._outflow = {channel: _Outflow() for channel in self._channels}

    def give_up(self) -> None:
        """Forget what either side had not finished sending."""
        for channel in self._channels:
            self._inflow[channel].partial = bytearray()
            self._outflow[channel].clear()

    # -- receiving -------------------------------------------------------------------------------

    def take(self, frame: Frame, *, late: bool = False) -> Message | None:
        """Count a DATA frame; the message that it completes, which is held until ``consumed``.

        ``late``: only its form is checked. Raises RemoteProtocolError.
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
                f"A frame of cost {cost} came on {channel.name.lower()}; "
                f"credit was {inflow.credit}."
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

    def take_credit(self, frame: Frame, *, late: bool = False) -> None:
        """Count a CREDIT frame; ``late``: only its form is checked. Raises RemoteProtocolError."""
        if len(frame.payload) != CREDIT.size:
            raise RemoteProtocolError("A CREDIT payload has not 4 bytes.")
        if late:
            return
        outflow = self._outflow[Channel(frame.channel)]
        outflow.credit += CREDIT.unpack(frame.payload)[0]
        if outflow.credit > WINDOW:
            raise RemoteProtocolError(f"Credit of {outflow.credit} is over the window of {WINDOW}.")

    def consumed(self, message: Message) -> None:
        """Tell that ``message`` has left this process's memory; its sender gets the credit back.

        Of windows before the last ``begin`` it changes nothing. Raises LocalProtocolError for what
        is not held: a message may be consumed only once.
        """
        if message.generation != self._generation:
            return
        inflow = self._inflow[message.channel]
        if inflow.held < message.size:
            raise LocalProtocolError(f"{message!r} is not held: it was consumed before.")
        inflow.held -= message.size

    def held(self, channel: Channel) -> int:
        """The size of all whole messages on ``channel`` that are not yet consumed."""
        return self._inflow[channel].held

    def partial(self, channel: Channel) -> int:
        """Bytes of half a message on ``channel``."""
        return len(self._inflow[channel].partial)

    # -- sending ---------------------------------------------------------------------------------

    def add(self, channel: Channel, parts: Sequence[Part]) -> None:
        """Queue a message; if large, uncopied. Raises LocalProtocolError (size)."""
        self._outflow[channel].add(pack_message(parts, channel))

    def pass_small(self, channel: Channel, parts: list[bytes]) -> bytes | None:
        """The one DATA frame of a message, counted as sent; None when it has to be queued.

        Raises LocalProtocolError (size).
        """
        outflow = self._outflow[channel]
        pieces = pack_message(parts, channel)
        length = sum(map(len, pieces))
        if outflow.pieces or length > MAX_PAYLOAD or length + FRAME_COST > outflow.credit:
            return None
        outflow.credit -= length + FRAME_COST
        return HEADER.pack(FrameType.DATA, channel, FLAG_LAST, 0, length) + b"".join(pieces)

    def queued(self, channel: Channel | None = None) -> int:
        """Bytes of messages that wait to be sent, on one channel or on all."""
        if channel is not None:
            return self._outflow[channel].size
        return sum(outflow.size for outflow in self._outflow.values())

    def write(self, out: list[bytes], limit: int) -> int:
        """Append the frames that may be sent, about ``limit`` bytes at most; returns their size.

        Credit first, then the channels in the order of DATA_CHANNELS.
        """
        size = 0
        for channel in self._channels:
            inflow = self._inflow[channel]
            due = inflow.due()
            if due:
                inflow.credit += due
                frame = encode_frame(FrameType.CREDIT, CREDIT.pack(due), channel)
                out.append(frame)
                size += len(frame)
        for channel in self._channels:
            outflow = self._outflow[channel]
            while size < limit:
                added = outflow.cut(channel, out)
                if not added:
                    break
                size += added
        return size
