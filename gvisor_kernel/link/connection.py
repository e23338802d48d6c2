"""One end of a link: received bytes become events, calls become bytes to write.

No I/O, no clock and no thread here. The windows are in ``flow``; the tables of who may send which
frame in which state are in ``state``.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Union

from gvisor_kernel.link.backlog import Backlog
from gvisor_kernel.link.events import (
    VERSION,
    Diverted,
    Event,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    Log,
    Message,
    Ping,
    Pong,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    Trim,
)
from gvisor_kernel.link.flow import Flow
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    DIRECT_CHANNELS,
    MAX_PAYLOAD,
    STREAM_SIZES,
    Channel,
    Frame,
    FrameReader,
    FrameType,
    LocalProtocolError,
    LogSource,
    Part,
    RemoteProtocolError,
    encode_frame,
)
from gvisor_kernel.link.state import ALWAYS, LATE, SENDERS, STALE, TRANSITIONS, Role, State

PONGS_KEPT = 64
"""Number of PONGs that may wait to be written. Only the last pings of a flood are answered, so a
flood does not grow the queue."""

FRAME_PRICE = 64
"""Bytes that a frame counts in ``Connection.control_received`` in addition to its payload."""

_OTHER = {Role.HOST: Role.GUEST, Role.GUEST: Role.HOST}
_DECODERS: dict[FrameType, Callable[[bytes], Event]] = {
    FrameType.START: Start.decode,
    FrameType.STARTED: Started.decode,
    FrameType.SIGNAL: Signal.decode,
    FrameType.EXIT: Exited.decode,
    FrameType.STATS: Stats.decode,
    FrameType.PONG: Pong.decode,
    FrameType.RESUME: Resume.decode,
    FrameType.RESUMED: Resumed.decode,
    FrameType.IDLE_QUERY: IdleQuery.decode,
    FrameType.IDLE_REPLY: IdleReply.decode,
    FrameType.TRIM: Trim.decode,
}
_FRAME_TYPES = {
    Start: FrameType.START,
    Started: FrameType.STARTED,
    Signal: FrameType.SIGNAL,
    Exited: FrameType.EXIT,
    Stats: FrameType.STATS,
    Ping: FrameType.PING,
    Resumed: FrameType.RESUMED,
    IdleQuery: FrameType.IDLE_QUERY,
    IdleReply: FrameType.IDLE_REPLY,
    Trim: FrameType.TRIM,
}
Sendable = Union[Start, Started, Signal, Exited, Stats, Ping, Resumed, IdleQuery, IdleReply, Trim]
_RUN_EVENTS = (Started, Exited, Signal, IdleQuery, IdleReply, Trim)


class Connection:
    """One end of a link.

    After a RemoteProtocolError the state is CLOSED: every later ``receive_data`` raises the same
    error, and the owner must end the other side.

    ``state`` is the state after the last received byte. It may be ahead of the events that the
    owner has not taken yet, so the owner must check it before it answers an event.
    """

    def __init__(self, role: Role, hello: Hello, resume: Resume | None = None) -> None:
        """Create an end that is to send HELLO, or ``resume`` instead.

        :param resume: the first frame of a host whose guest was restored in the middle of a run
        :raises LocalProtocolError: when ``resume`` cannot be sent
        """
        self.role = role
        self.state = State.OPENING
        self.run: int | None = None
        """Number of the current run or, while IDLE, of the last one. None before the first."""
        self.control_received = 0
        """Bytes of received frames that carry no message of a run and no stream, each with its
        FRAME_PRICE. No credit limits how many come, so the owner limits how fast."""
        self.diverts = False
        """Guest only: whether the kernel reads and writes DATA and CREDIT of DIRECT_CHANNELS.
        Such frames become Diverted events, undecoded; ``divert`` sends the kernel's own frames."""
        self._reader = FrameReader()
        self._events: deque[Event] = deque()
        self._urgent: deque[bytes] = deque([encode_frame(FrameType.HELLO, hello.encode())])
        self._pongs: deque[int] = deque(maxlen=PONGS_KEPT)
        self._diverted: deque[bytes] = deque()
        self._flow = Flow(DATA_CHANNELS, views=role is Role.HOST)
        self._backlog = Backlog(role)
        self._error: RemoteProtocolError | None = None
        if resume is not None:
            payload = _encode_checked(resume)
            self._urgent = deque([encode_frame(FrameType.RESUME, payload)])
            self.state = State.RESUMING
            self.run = resume.run
            self._backlog.begin(resume.egress)

    # -- receiving -------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Process bytes from the other side.

        :raises RemoteProtocolError: when they violate the protocol; no other exception is raised
        """
        if self._error is not None:
            raise self._error
        self._reader.receive_data(data)
        try:
            while True:
                frame = self._reader.next_frame()
                if frame is None:
                    return
                self._handle(frame)
        except RemoteProtocolError as error:
            self._error = error
            self.state = State.CLOSED
            self._reader = FrameReader()
            self._drop_unfinished()
            raise

    def forget_half(self) -> None:
        """Forget half a frame of a host that has ended: the next one begins with a RESUME."""
        self._reader, self._error = FrameReader(), None

    def next_event(self) -> Event | None:
        """Return the next event, or None until more bytes are received."""
        return self._events.popleft() if self._events else None

    def consumed(self, message: Message) -> None:
        """See ``Flow.consumed``."""
        self._flow.consumed(message)

    def held(self, channel: Channel) -> int:
        """Return the size in bytes of the whole messages on ``channel`` not consumed yet."""
        return self._flow.held(channel)

    def _handle(self, frame: Frame) -> None:
        kind = frame.type
        if kind is FrameType.DATA and self.state is State.RUNNING:  # the most frequent case
            self._handle_channel(frame)
            return
        if kind not in STREAM_SIZES:
            self.control_received += FRAME_PRICE + len(frame.payload)
        if kind not in SENDERS[_OTHER[self.role]]:
            raise RemoteProtocolError(f"The {_OTHER[self.role].value} may not send {kind.name}.")
        if (
            kind in LATE
            and self.role is Role.GUEST
            and self.state is State.IDLE
            and self.run is not None
        ):
            self._drop_late(frame)
            return
        if kind in STALE and self.role is Role.HOST and self.state is State.RESUMING:
            return  # written before the snapshot was taken: it counts in the windows of that time
        after = self._next_state(kind, RemoteProtocolError)
        if kind in _DECODERS:
            self._handle_run(_DECODERS[kind](frame.payload))
        elif kind is FrameType.DATA or kind is FrameType.CREDIT:
            self._handle_channel(frame)
        elif kind in STREAM_SIZES:
            of_streams = self._backlog.take(frame)
            if of_streams is not None:
                self._events.append(of_streams)
        elif kind is FrameType.HELLO:
            hello = Hello.decode(frame.payload)
            if hello.version != VERSION:
                raise RemoteProtocolError(
                    f"The {_OTHER[self.role].value} speaks version {hello.version} of the link, "
                    f"this side speaks {VERSION}."
                )
            self._events.append(hello)
        elif kind is FrameType.PING:
            ping = Ping.decode(frame.payload)
            self._pongs.append(ping.token)
            self._events.append(ping)
        elif kind is FrameType.LOG:
            text = frame.payload.decode("utf-8", "replace")
            self._events.append(Log(LogSource(frame.channel), text))
        self.state = after

    def _drop_late(self, frame: Frame) -> None:
        """Check and drop a frame that the host sent before it received the EXIT."""
        if frame.type is FrameType.DATA:
            self._flow.take(frame, late=True)
        elif frame.type is FrameType.CREDIT:
            self._flow.receive_credit(frame, late=True)
        elif frame.type in STREAM_SIZES:
            self._backlog.take(frame, late=True)
        else:
            event = _DECODERS[frame.type](frame.payload)
            if getattr(event, "run", None) != self.run:
                raise RemoteProtocolError(f"A {frame.type.name} does not name run {self.run}.")

    def _handle_run(self, event: Event) -> None:
        """Handle an event that belongs to one run, and also STATS and PONG."""
        if isinstance(event, (Start, Resume)):
            self._begin_run(event)
        elif isinstance(event, (*_RUN_EVENTS, Resumed)) and event.run != self.run:
            raise RemoteProtocolError(
                f"A frame names run {event.run}; the current run is {self.run}."
            )
        if isinstance(event, Resume):  # the new host waits for none of these frames
            self._urgent.clear()
            self._pongs.clear()
        if isinstance(event, Exited):
            self._drop_unfinished()
        self._events.append(event)

    def _handle_channel(self, frame: Frame) -> None:
        """Handle a DATA or CREDIT frame."""
        if self.diverts and frame.channel in DIRECT_CHANNELS:
            payload = frame.payload
            self._events.append(
                Diverted(encode_frame(frame.type, payload, frame.channel, frame.flags))
            )
        elif frame.type is FrameType.CREDIT:
            self._flow.receive_credit(frame)
        else:
            message = self._flow.take(frame)
            if message is not None:
                self._events.append(message)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, event: Sendable) -> None:
        """Queue a frame for ``event``. Events overtake messages.

        An Exited drops the messages that are queued: an owner that wants to send them first must
        wait until ``queued()`` returns 0.

        :raises LocalProtocolError: when the state does not allow it, or the other side would refuse
            its values; nothing has changed then
        """
        kind = _FRAME_TYPES[type(event)]
        self._check_sender(kind)
        after = self._next_state(kind, LocalProtocolError)
        if isinstance(event, _RUN_EVENTS) and event.run != self.run:
            raise LocalProtocolError(
                f"Run {event.run} is not the current run, which is {self.run}."
            )
        payload = _encode_checked(event)
        self._urgent.append(encode_frame(kind, payload))
        self.state = after
        if isinstance(event, Start):
            self._begin_run(event)
        elif isinstance(event, Exited):
            self._drop_unfinished()

    def send_message(self, channel: Channel, parts: Sequence[Part]) -> None:
        """Queue a message. Large parts are not copied.

        :raises LocalProtocolError: when the state does not allow it, or the message is too large
        """
        self._next_state(FrameType.DATA, LocalProtocolError)
        self._flow.add(channel, parts)

    def divert(self, frames: bytes) -> None:
        """Queue whole DATA and CREDIT frames that the kernel wrote itself.

        :raises LocalProtocolError: when the state does not allow it
        """
        self._next_state(FrameType.DATA, LocalProtocolError)
        self._diverted.append(frames)

    def divert_stream(self, frames: bytes) -> None:
        """Queue whole frames of streams. They are sent last.

        A guest may queue ``stream_room`` bytes at most; a host should not queue more.

        :raises LocalProtocolError: when the state or the run does not allow it, or a guest has no
            room
        """
        self._next_state(FrameType.STREAM, LocalProtocolError)
        self._backlog.add(frames)

    @property
    def stream_room(self) -> int:
        """Bytes of streams' frames that may be queued now."""
        return self._backlog.room if self.state is State.RUNNING else 0

    @property
    def queued_streams(self) -> int:
        """Queued bytes of streams' frames."""
        return self._backlog.queued

    def passed_on(self, size: int) -> None:
        """Release ``size`` bytes of StreamFrames, as a host: they have left this process."""
        self._backlog.passed_on(size)

    def end_streams(self) -> None:
        """End all streams, as a host. Idempotent.

        StreamsEnded tells that the guest has ended them too. Frames after it are of new streams,
        numbered from 1.
        """
        if self.state in (State.RUNNING, State.RESUMING):
            self._backlog.end()

    def renew_streams(self) -> None:
        """Answer StreamsEnded, as a guest: frames that are queued after this are of new streams."""
        if self.state is State.RUNNING:
            self._backlog.begin_again()

    def send_log(self, source: LogSource, text: str) -> None:
        """Queue text for the log, cut to one frame. Allowed in any state: a LOG has no reply."""
        self._check_sender(FrameType.LOG)
        payload = text.encode("utf-8", "replace")[:MAX_PAYLOAD]
        self._urgent.append(encode_frame(FrameType.LOG, payload, source))

    def queued(self, channel: Channel | None = None) -> int:
        """Return the queued bytes of messages on ``channel``, or on all and of diverted frames."""
        own = self._flow.queued(channel)
        return own if channel is not None else own + sum(map(len, self._diverted))

    def data_to_send(self, limit: int = 256 * 1024, stream_limit: int = 256 * 1024) -> bytes:
        """Return the next bytes to write, about ``limit`` at most; empty if nothing may be sent.

        Order: frames without a channel, CREDIT, then the channels in the order of DATA_CHANNELS,
        then about ``stream_limit`` bytes of streams at most.
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
        # A resuming host drops DATA and CREDIT without counting them, so a resuming guest waits.
        if self.state is State.RUNNING or (self.state is State.RESUMING and self.role is Role.HOST):
            size += self._flow.write(out, limit - size)
            while self._diverted and size < limit:
                frames = self._diverted.popleft()
                out.append(frames)
                size += len(frames)
        if self.state is State.RUNNING:
            self._backlog.write(out, min(limit - size, stream_limit))
        return b"".join(out)

    # -- state -----------------------------------------------------------------------------------

    def _check_sender(self, kind: FrameType) -> None:
        if kind not in SENDERS[self.role]:
            raise LocalProtocolError(f"The {self.role.value} may not send {kind.name}.")

    def _next_state(
        self,
        kind: FrameType,
        error: Callable[[str], RemoteProtocolError] | Callable[[str], LocalProtocolError],
    ) -> State:
        """Return the state after a frame of ``kind`` from either side, or raise ``error``."""
        if kind in ALWAYS and self.state in (State.IDLE, State.RUNNING, State.RESUMING):
            return self.state
        after = TRANSITIONS.get((self.state, kind))
        if after is None:
            raise error(f"{kind.name} is not allowed while the link is {self.state.value}.")
        return after

    def _begin_run(self, event: Start | Resume) -> None:
        self.run = event.run
        self._flow.begin()
        self._backlog.begin(event.egress)
        self._diverted.clear()

    def _drop_unfinished(self) -> None:
        """Drop the partial and queued messages of a run that has ended."""
        self._flow.drop_unfinished()
        self._backlog.drop()
        self._diverted.clear()


def _encode_checked(event: Sendable | Resume) -> bytes:
    """Encode ``event`` and check that the other side would accept it.

    :raises LocalProtocolError: when it would not
    """
    try:
        payload = event.encode()
        type(event).decode(payload)
    except (struct.error, RemoteProtocolError) as error:
        raise LocalProtocolError(f"{event!r} cannot be sent: {error}") from error
    if len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(
            f"{event!r} cannot be sent: its payload of {len(payload)} bytes is over the"
            f" {MAX_PAYLOAD} of a frame."
        )
    return payload
