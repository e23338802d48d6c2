"""One end of a link: bytes in, events out; calls in, bytes out. No I/O, no clock, no thread.

Flow control. Each channel has, in each direction, a window of WINDOW bytes; a DATA frame costs its
payload and FRAME_COST. A receiver keeps the credit that the sender may still use at WINDOW less
the whole messages that its owner has not consumed. A fragment in the middle of a message costs
credit that is given back without the owner: a message may be larger than the window. So a channel
never holds more than WINDOW + MAX_MESSAGE, half a message included, whatever the sender does:
once held messages fill the window, only the credit that is out, a window at most, can still come.
Credit is given when it is written, so a sender that does not read gets none.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Union

from gvisor_kernel.link.errors import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.events import (
    CREDIT,
    VERSION,
    Event,
    Exited,
    Hello,
    Log,
    Message,
    Ping,
    Pong,
    Signal,
    Start,
    Started,
    Stats,
    Stop,
)
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    FLAG_LAST,
    HEADER,
    MAX_MESSAGE,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameReader,
    FrameType,
    LogSource,
    encode_frame,
    pack_message,
    unpack_message,
)
from gvisor_kernel.link.state import ALWAYS, LATE, SENDERS, TRANSITIONS, Role, State

WINDOW = 1024 * 1024
"""Bytes a sender may be ahead of its receiver, per channel and direction. As large as the pipe
below, so that the pipe stays busy; all channels together bound a host's share per kernel."""

FRAME_COST = 256
"""What a DATA frame costs beside its payload: about what an object for it takes in memory. So a
window of the smallest messages is not thirty windows of memory."""

CREDIT_STEP = WINDOW // 4
"""Credit is returned in steps of at least this, so that small messages cost no frame each."""

PONGS_KEPT = 64
"""Answers that wait to be written. Of a flood of pings only the last are answered."""

JOINED = 64 * 1024
"""Messages up to this size are copied into one piece: cheaper than to handle each part."""

_OTHER = {Role.HOST: Role.GUEST, Role.GUEST: Role.HOST}
_EVENTS: dict[FrameType, Callable[[bytes], Event]] = {
    FrameType.START: Start.decode,
    FrameType.STARTED: Started.decode,
    FrameType.SIGNAL: Signal.decode,
    FrameType.EXIT: Exited.decode,
    FrameType.STATS: Stats.decode,
    FrameType.PONG: Pong.decode,
}
_FRAME_OF = {
    Start: FrameType.START,
    Started: FrameType.STARTED,
    Signal: FrameType.SIGNAL,
    Exited: FrameType.EXIT,
    Stats: FrameType.STATS,
    Ping: FrameType.PING,
}
Sendable = Union[Start, Started, Signal, Exited, Stats, Ping]


class _Inflow:
    """One channel as its receiver sees it."""

    def __init__(self) -> None:
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

    def add(self, pieces: list[bytes]) -> None:
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


class Connection:
    """One end of a link.

    After a RemoteProtocolError the connection is CLOSED: every later call with data raises it
    again, and its owner ends the other side. After a STOP it is CLOSED too, and drops data.

    ``state`` is that of the last byte received: it may be ahead of the events still to be taken,
    so an owner that answers an event looks at it first.
    """

    def __init__(self, role: Role, hello: Hello) -> None:
        self.role = role
        self.state = State.OPENING
        self.run: int | None = None
        """The number of the kernel that runs or, while IDLE, ran last."""
        self._reader = FrameReader()
        self._events: deque[Event] = deque()
        self._urgent: deque[bytes] = deque([encode_frame(FrameType.HELLO, hello.encode())])
        self._pongs: deque[int] = deque(maxlen=PONGS_KEPT)
        self._inflow = {channel: _Inflow() for channel in DATA_CHANNELS}
        self._outflow = {channel: _Outflow() for channel in DATA_CHANNELS}
        self._broken: RemoteProtocolError | None = None

    # -- receiving -------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the other side. Raises RemoteProtocolError, and nothing else."""
        if self._broken is not None:
            raise self._broken
        if self.state is State.CLOSED:
            return
        self._reader.receive_data(data)
        try:
            while True:
                frame = self._reader.next_frame()
                if frame is None:
                    return
                self._handle(frame)
        except RemoteProtocolError as error:
            self._broken = error
            self._close()
            raise

    def next_event(self) -> Event | None:
        """The next event, or None until more bytes come in."""
        return self._events.popleft() if self._events else None

    def consumed(self, message: Message) -> None:
        """Tell that ``message`` has left this process's memory; its sender gets the credit back.

        Raises LocalProtocolError for what is not held: a message may be consumed only once.
        """
        inflow = self._inflow[message.channel]
        if inflow.held < message.size:
            raise LocalProtocolError(f"{message!r} is not held: it was consumed before.")
        inflow.held -= message.size

    def held(self, channel: Channel) -> int:
        """The size of all whole messages on ``channel`` that are not yet consumed."""
        return self._inflow[channel].held

    def _handle(self, frame: Frame) -> None:
        kind = frame.type
        if kind is FrameType.DATA and self.state is State.RUNNING:  # most of all frames
            self._handle_data(frame, late=False)
            return
        if kind not in SENDERS[_OTHER[self.role]]:
            raise RemoteProtocolError(f"The {_OTHER[self.role].value} may not send {kind.name}.")
        if (
            kind in LATE
            and self.role is Role.GUEST
            and self.state is State.IDLE
            and self.run is not None
        ):
            self._handle_late(frame)
            return
        after = self._after(kind, RemoteProtocolError)
        if kind in _EVENTS:
            self._handle_run(_EVENTS[kind](frame.payload))
        elif kind is FrameType.CREDIT:
            self._handle_credit(frame)
        elif kind is FrameType.HELLO:
            hello = Hello.decode(frame.payload)
            if hello.version != VERSION:
                raise RemoteProtocolError(
                    f"The {_OTHER[self.role].value} speaks version {hello.version} of the link, "
                    f"this side {VERSION}."
                )
            self._events.append(hello)
        elif kind is FrameType.PING:
            ping = Ping.decode(frame.payload)
            self._pongs.append(ping.token)
            self._events.append(ping)
        elif kind is FrameType.LOG:
            text = frame.payload.decode("utf-8", "replace")
            self._events.append(Log(LogSource(frame.channel), text))
        elif kind is FrameType.STOP:
            if frame.payload:
                raise RemoteProtocolError("A STOP has a payload.")
            self._close()
            for event in self._events:  # none matters any more, and none can be answered
                if isinstance(event, Message):
                    self.consumed(event)
            self._events.clear()
            self._events.append(Stop())
        self.state = after

    def _handle_late(self, frame: Frame) -> None:
        """What the host sent before it knew of the exit: checked, and dropped."""
        if frame.type is FrameType.DATA:
            self._handle_data(frame, late=True)
        elif Signal.decode(frame.payload).run != self.run:
            raise RemoteProtocolError(f"A SIGNAL came that is not for run {self.run}.")

    def _handle_run(self, event: Event) -> None:
        """An event that belongs to one run, or to none (STATS, PONG)."""
        if isinstance(event, Start):
            self.run = event.run
        elif isinstance(event, (Started, Exited, Signal)) and event.run != self.run:
            raise RemoteProtocolError(f"Run {event.run} is spoken of while run {self.run} is on.")
        if isinstance(event, Exited):
            self._give_up()
        self._events.append(event)

    def _handle_data(self, frame: Frame, late: bool) -> None:
        channel = Channel(frame.channel)
        inflow = self._inflow[channel]
        payload = frame.payload
        cost = len(payload) + FRAME_COST
        if cost > inflow.credit:
            raise RemoteProtocolError(
                f"A frame of cost {cost} came on {channel.name.lower()}; "
                f"credit was {inflow.credit}."
            )
        if not payload:
            raise RemoteProtocolError("A DATA frame is empty.")
        inflow.credit -= cost
        if late:
            return
        if len(inflow.partial) + len(payload) > MAX_MESSAGE:
            raise RemoteProtocolError(f"A message is over the limit of {MAX_MESSAGE} bytes.")
        if not frame.flags & FLAG_LAST:
            inflow.partial += payload
            return
        if inflow.partial:
            inflow.partial += payload
            size, parts = len(inflow.partial), unpack_message(inflow.partial)
            inflow.partial = bytearray()
        else:
            size, parts = len(payload), unpack_message(payload)
        message = Message(channel, parts, size + FRAME_COST)
        inflow.held += message.size
        self._events.append(message)

    def _handle_credit(self, frame: Frame) -> None:
        if len(frame.payload) != CREDIT.size:
            raise RemoteProtocolError("A CREDIT payload has not 4 bytes.")
        outflow = self._outflow[Channel(frame.channel)]
        outflow.credit += CREDIT.unpack(frame.payload)[0]
        if outflow.credit > WINDOW:
            raise RemoteProtocolError(f"Credit of {outflow.credit} is over the window of {WINDOW}.")

    # -- sending ---------------------------------------------------------------------------------

    def send(self, event: Sendable) -> None:
        """Queue an event.

        Raises LocalProtocolError, and changes nothing, when the state does not allow it or the
        other side would refuse its values.

        Events overtake messages. An Exited gives up the messages that are queued: an owner that
        wants them out first waits until ``queued()`` is 0.
        """
        kind = _FRAME_OF[type(event)]
        self._check_sender(kind)
        after = self._after(kind, LocalProtocolError)
        if isinstance(event, (Started, Exited, Signal)) and event.run != self.run:
            raise LocalProtocolError(f"Run {event.run} is not on; run {self.run} is.")
        try:
            payload = event.encode()
            type(event).decode(payload)
        except (struct.error, RemoteProtocolError) as error:
            raise LocalProtocolError(f"{event!r} cannot be sent: {error}") from error
        self._urgent.append(encode_frame(kind, payload))
        self.state = after
        if isinstance(event, Start):
            self.run = event.run
        elif isinstance(event, Exited):
            self._give_up()

    def send_message(self, channel: Channel, parts: list[bytes]) -> None:
        """Queue a message; if large, uncopied. Raises LocalProtocolError (state, size)."""
        self._after(FrameType.DATA, LocalProtocolError)
        self._outflow[channel].add(pack_message(parts))

    def send_log(self, source: LogSource, text: str) -> None:
        """Queue text for the log, cut to one frame; in any state, since nothing answers it."""
        self._check_sender(FrameType.LOG)
        payload = text.encode("utf-8", "replace")[:MAX_PAYLOAD]
        self._urgent.append(encode_frame(FrameType.LOG, payload, source))

    def send_stop(self) -> None:
        """Queue a STOP and give up all messages that wait. Does nothing while CLOSED."""
        self._check_sender(FrameType.STOP)
        if self.state is not State.CLOSED:
            self._close()
            self._urgent.append(encode_frame(FrameType.STOP))

    def queued(self, channel: Channel | None = None) -> int:
        """Bytes of messages that wait to be sent, on one channel or on all."""
        if channel is not None:
            return self._outflow[channel].size
        return sum(outflow.size for outflow in self._outflow.values())

    def data_to_send(self, limit: int = 256 * 1024) -> bytes:
        """The next bytes to write, about ``limit`` at most; empty when all must wait.

        Frames without a channel first, then credit, then the channels in the order of
        DATA_CHANNELS.
        """
        out: list[bytes] = []
        size = 0
        while self._urgent and size < limit:
            frame = self._urgent.popleft()
            out.append(frame)
            size += len(frame)
        if self.state is State.CLOSED:
            return b"".join(out)
        while self._pongs and size < limit:
            frame = encode_frame(FrameType.PONG, Pong(self._pongs.popleft()).encode())
            out.append(frame)
            size += len(frame)
        for channel in DATA_CHANNELS:
            inflow = self._inflow[channel]
            due = inflow.due()
            if due:
                inflow.credit += due
                frame = encode_frame(FrameType.CREDIT, CREDIT.pack(due), channel)
                out.append(frame)
                size += len(frame)
        for channel in DATA_CHANNELS:
            outflow = self._outflow[channel]
            while size < limit:
                added = outflow.cut(channel, out)
                if not added:
                    break
                size += added
        return b"".join(out)

    # -- state -----------------------------------------------------------------------------------

    def _check_sender(self, kind: FrameType) -> None:
        if kind not in SENDERS[self.role]:
            raise LocalProtocolError(f"The {self.role.value} may not send {kind.name}.")

    def _after(
        self,
        kind: FrameType,
        error: Callable[[str], RemoteProtocolError] | Callable[[str], LocalProtocolError],
    ) -> State:
        """The state after a frame of ``kind``, from either side; an error if there is none."""
        if kind in ALWAYS and self.state in (State.IDLE, State.RUNNING):
            return self.state
        after = TRANSITIONS.get((self.state, kind))
        if after is None:
            raise error(f"{kind.name} is not allowed while the link is {self.state.value}.")
        return after

    def _close(self) -> None:
        self.state = State.CLOSED
        self._reader = FrameReader()
        self._give_up()

    def _give_up(self) -> None:
        """A run is over: what either side had not finished sending is forgotten."""
        for channel in DATA_CHANNELS:
            self._inflow[channel].partial = bytearray()
            self._outflow[channel].clear()
