"""One end of a link: bytes in, events out; calls in, bytes out. No I/O, no clock, no thread.

Flow control. Each channel has, in each direction, a window of WINDOW bytes. A receiver keeps the
credit that the sender may still use at WINDOW less the whole messages that its owner has not
consumed, so that it never holds more than a window, one message being assembled and one
complete, whatever the sender does. A fragment in the middle of a message costs credit that is
given back at once: a message may be larger than the window.
"""

from __future__ import annotations

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

CREDIT_STEP = WINDOW // 4
"""Credit is returned in steps of at least this, so that small messages cost no frame each."""

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
        self.pieces: deque[memoryview] = deque()
        self.last: deque[bool] = deque()
        self.size = 0

    def add(self, pieces: list[bytes]) -> None:
        for index, piece in enumerate(pieces):
            self.pieces.append(memoryview(piece))
            self.last.append(index == len(pieces) - 1)
            self.size += len(piece)

    def clear(self) -> None:
        self.pieces.clear()
        self.last.clear()
        self.size = 0

    def cut(self, channel: Channel, out: list[bytes]) -> int:
        """Append one DATA frame to ``out`` and return its size, or 0 when it has to wait."""
        room = min(self.credit, MAX_PAYLOAD)
        if not self.pieces or not room:
            return 0
        taken: list[memoryview] = []
        length = flags = 0
        while self.pieces and not flags:
            piece = self.pieces[0]
            if len(piece) > room - length:
                cut = room - length
                if cut:
                    taken.append(piece[:cut])
                    self.pieces[0] = piece[cut:]
                    length += cut
                break
            taken.append(piece)
            length += len(piece)
            self.pieces.popleft()
            if self.last.popleft():
                flags = FLAG_LAST
        self.credit -= length
        self.size -= length
        out.append(HEADER.pack(FrameType.DATA, channel, flags, 0, length))
        out.extend(taken)  # type: ignore[arg-type]  # join takes any bytes-like object
        return HEADER.size + length


class Connection:
    """One end of a link.

    After a RemoteProtocolError the connection is CLOSED: every later call with data raises it
    again, and its owner ends the other side.
    """

    def __init__(self, role: Role, hello: Hello) -> None:
        self.role = role
        self.state = State.OPENING
        self.run: int | None = None
        """The number of the kernel that runs or, while IDLE, ran last."""
        self._reader = FrameReader()
        self._events: deque[Event] = deque()
        self._urgent: deque[bytes] = deque([encode_frame(FrameType.HELLO, hello.encode())])
        self._inflow = {channel: _Inflow() for channel in DATA_CHANNELS}
        self._outflow = {channel: _Outflow() for channel in DATA_CHANNELS}
        self._broken: RemoteProtocolError | None = None

    # -- receiving -------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the other side. Raises RemoteProtocolError, and nothing else."""
        if self._broken is not None:
            raise self._broken
        self._reader.receive_data(data)
        try:
            while True:
                frame = self._reader.next_frame()
                if frame is None:
                    return
                self._handle(frame)
        except RemoteProtocolError as error:
            self._broken = error
            self.state = State.CLOSED
            raise

    def next_event(self) -> Event | None:
        """The next event, or None until more bytes come in."""
        return self._events.popleft() if self._events else None

    def consumed(self, message: Message) -> None:
        """Tell that ``message`` has left this process's memory; its sender gets the credit back."""
        self._inflow[message.channel].held -= message.size
        self._return_credit(message.channel)

    def held(self, channel: Channel) -> int:
        """Bytes of whole messages that were reported and not yet consumed."""
        return self._inflow[channel].held

    def _handle(self, frame: Frame) -> None:
        kind = frame.type
        if kind not in SENDERS[_OTHER[self.role]]:
            raise RemoteProtocolError(f"The {_OTHER[self.role].value} may not send {kind.name}.")
        late = self.role is Role.GUEST and self.state is State.IDLE and kind in LATE
        if not late:
            self._advance(kind, RemoteProtocolError)
        if kind is FrameType.DATA:
            self._handle_data(frame, late)
        elif late:
            Signal.decode(frame.payload)
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
            if len(self._urgent) < 1024:  # a flood of pings is answered in part, not in memory
                self._urgent.append(encode_frame(FrameType.PONG, Pong(ping.token).encode()))
            self._events.append(ping)
        elif kind is FrameType.LOG:
            text = frame.payload.decode("utf-8", "replace")
            self._events.append(Log(LogSource(frame.channel), text))
        elif kind is FrameType.STOP:
            if frame.payload:
                raise RemoteProtocolError("A STOP has a payload.")
            self._events.append(Stop())
        else:
            self._handle_run(_EVENTS[kind](frame.payload))

    def _handle_run(self, event: Event) -> None:
        """An event that belongs to one run, or to none (STATS, PONG)."""
        if isinstance(event, Start):
            self._begin(event.run)
        elif isinstance(event, (Started, Exited, Signal)) and event.run != self.run:
            raise RemoteProtocolError(f"Run {event.run} is spoken of while run {self.run} is on.")
        if isinstance(event, Exited):
            self._end()
        self._events.append(event)

    def _handle_data(self, frame: Frame, late: bool) -> None:
        channel = Channel(frame.channel)
        inflow = self._inflow[channel]
        size = len(frame.payload)
        if size > inflow.credit:
            raise RemoteProtocolError(
                f"{size} bytes came on {channel.name.lower()}; credit was {inflow.credit}."
            )
        if not size:
            raise RemoteProtocolError("A DATA frame is empty.")
        inflow.credit -= size
        if not late:
            if len(inflow.partial) + size > MAX_MESSAGE:
                raise RemoteProtocolError(f"A message is over the limit of {MAX_MESSAGE} bytes.")
            inflow.partial += frame.payload
            if frame.flags & FLAG_LAST:
                data, inflow.partial = inflow.partial, bytearray()
                message = Message(channel, unpack_message(data), len(data))
                inflow.held += message.size
                self._events.append(message)
        self._return_credit(channel)

    def _handle_credit(self, frame: Frame) -> None:
        if len(frame.payload) != CREDIT.size:
            raise RemoteProtocolError("A CREDIT payload has not 4 bytes.")
        outflow = self._outflow[Channel(frame.channel)]
        outflow.credit += CREDIT.unpack(frame.payload)[0]
        if outflow.credit > WINDOW:
            raise RemoteProtocolError(f"Credit of {outflow.credit} is over the window of {WINDOW}.")

    def _return_credit(self, channel: Channel) -> None:
        inflow = self._inflow[channel]
        due = inflow.due()
        if due and self._broken is None:
            inflow.credit += due
            self._urgent.append(encode_frame(FrameType.CREDIT, CREDIT.pack(due), channel))

    # -- sending ---------------------------------------------------------------------------------

    def send(self, event: Sendable) -> None:
        """Queue an event. Raises LocalProtocolError when the state does not allow it.

        An Exited overtakes nothing that was queued before it only if ``queued()`` is 0: the
        owner waits for that, or gives up what is queued.
        """
        kind = _FRAME_OF[type(event)]
        self._check_sender(kind)
        self._advance(kind, LocalProtocolError)
        if isinstance(event, Start):
            self._begin(event.run)
        elif isinstance(event, (Started, Exited, Signal)) and event.run != self.run:
            raise LocalProtocolError(f"Run {event.run} is not on; run {self.run} is.")
        self._urgent.append(encode_frame(kind, event.encode()))
        if isinstance(event, Exited):
            self._end()

    def send_message(self, channel: Channel, parts: list[bytes]) -> None:
        """Queue a message; its bytes are not copied. Raises LocalProtocolError (state, size)."""
        self._check_sender(FrameType.DATA)
        self._advance(FrameType.DATA, LocalProtocolError)
        self._outflow[channel].add(pack_message(parts))

    def send_log(self, source: LogSource, text: str) -> None:
        """Queue text for the log, cut to one frame."""
        self._check_sender(FrameType.LOG)
        payload = text.encode("utf-8", "replace")[:MAX_PAYLOAD]
        self._urgent.append(encode_frame(FrameType.LOG, payload, source))

    def send_stop(self) -> None:
        """Queue a STOP; allowed in every state but CLOSED."""
        self._check_sender(FrameType.STOP)
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._urgent.append(encode_frame(FrameType.STOP))

    def queued(self, channel: Channel | None = None) -> int:
        """Bytes of messages that wait to be sent, on one channel or on all."""
        if channel is not None:
            return self._outflow[channel].size
        return sum(outflow.size for outflow in self._outflow.values())

    def data_to_send(self, limit: int = 256 * 1024) -> bytes:
        """The next bytes to write, about ``limit`` at most; empty when all must wait.

        Frames without a channel first, then the channels in the order of DATA_CHANNELS.
        """
        out: list[bytes] = []
        size = 0
        while self._urgent and size < limit:
            frame = self._urgent.popleft()
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

    def _advance(
        self,
        kind: FrameType,
        error: Callable[[str], RemoteProtocolError] | Callable[[str], LocalProtocolError],
    ) -> None:
        if kind in ALWAYS and self.state is not State.OPENING:
            return
        after = TRANSITIONS.get((self.state, kind))
        if after is None:
            raise error(f"{kind.name} is not allowed while the link is {self.state.value}.")
        self.state = after

    def _begin(self, run: int) -> None:
        self.run = run
        for inflow in self._inflow.values():
            inflow.partial = bytearray()

    def _end(self) -> None:
        """A run is over: what either side had not finished sending is given up."""
        for channel in DATA_CHANNELS:
            self._inflow[channel].partial = bytearray()
            self._outflow[channel].clear()
