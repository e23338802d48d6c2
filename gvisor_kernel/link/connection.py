"""One end of a link: bytes in, events out; calls in, bytes out. No I/O, no clock, no thread.

The windows are in ``flow``, the table of who may send what in ``state``.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Union

from gvisor_kernel.link.errors import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.events import (
    VERSION,
    Ask,
    Diverted,
    Event,
    Exited,
    Hello,
    Log,
    Message,
    Ping,
    Pong,
    Quiet,
    Resume,
    Resumed,
    Signal,
    Start,
    Started,
    Stats,
    Stop,
)
from gvisor_kernel.link.flow import Flow
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameReader,
    FrameType,
    LogSource,
    Part,
    encode_frame,
)
from gvisor_kernel.link.state import ALWAYS, LATE, SENDERS, STALE, TRANSITIONS, Role, State

PONGS_KEPT = 64
"""Answers that wait to be written. Of a flood of pings only the last are answered."""

_OTHER = {Role.HOST: Role.GUEST, Role.GUEST: Role.HOST}
_EVENTS: dict[FrameType, Callable[[bytes], Event]] = {
    FrameType.START: Start.decode,
    FrameType.STARTED: Started.decode,
    FrameType.SIGNAL: Signal.decode,
    FrameType.EXIT: Exited.decode,
    FrameType.STATS: Stats.decode,
    FrameType.PONG: Pong.decode,
    FrameType.RESUME: Resume.decode,
    FrameType.RESUMED: Resumed.decode,
    FrameType.ASK: Ask.decode,
    FrameType.QUIET: Quiet.decode,
}
_FRAME_OF = {
    Start: FrameType.START,
    Started: FrameType.STARTED,
    Signal: FrameType.SIGNAL,
    Exited: FrameType.EXIT,
    Stats: FrameType.STATS,
    Ping: FrameType.PING,
    Resumed: FrameType.RESUMED,
    Ask: FrameType.ASK,
    Quiet: FrameType.QUIET,
}
Sendable = Union[Start, Started, Signal, Exited, Stats, Ping, Resumed, Ask, Quiet]
_OF_ONE_RUN = (Started, Exited, Signal, Ask, Quiet)


class Connection:
    """One end of a link.

    After a RemoteProtocolError the connection is CLOSED: every later call with data raises it
    again, and its owner ends the other side. After a STOP it is CLOSED too, and drops data.

    ``state`` is that of the last byte received: it may be ahead of the events still to be taken,
    so an owner that answers an event looks at it first.
    """

    def __init__(self, role: Role, hello: Hello, resume: Resume | None = None) -> None:
        """``resume``: a host's first frame to a guest that was restored in the middle of a run.

        Raises LocalProtocolError when ``resume`` cannot be sent.
        """
        self.role = role
        self.state = State.OPENING
        self.run: int | None = None
        """The number of the kernel that runs or, while IDLE, ran last."""
        self.diverts = False
        """A guest's: whether DATA and CREDIT are for the kernel to read, all but those of hb.
        They are events then (Diverted), unread; ``divert`` sends the kernel's own."""
        self._reader = FrameReader()
        self._events: deque[Event] = deque()
        self._urgent: deque[bytes] = deque([encode_frame(FrameType.HELLO, hello.encode())])
        self._pongs: deque[int] = deque(maxlen=PONGS_KEPT)
        self._diverted: deque[bytes] = deque()
        self._flow = Flow(DATA_CHANNELS, views=role is Role.HOST)
        self._broken: RemoteProtocolError | None = None
        if resume is not None:
            payload = _checked_payload(resume)
            self._urgent = deque([encode_frame(FrameType.RESUME, payload)])
            self.state = State.RESUMING
            self.run = resume.run

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
        """See ``Flow.consumed``."""
        self._flow.consumed(message)

    def held(self, channel: Channel) -> int:
        """The size of all whole messages on ``channel`` that are not yet consumed."""
        return self._flow.held(channel)

    def _handle(self, frame: Frame) -> None:
        kind = frame.type
        if kind is FrameType.DATA and self.state is State.RUNNING:  # most of all frames
            self._handle_channel(frame)
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
        if kind in STALE and self.role is Role.HOST and self.state is State.RESUMING:
            return  # written before the image was taken, or counted in the windows of that time
        after = self._after(kind, RemoteProtocolError)
        if kind in _EVENTS:
            self._handle_run(_EVENTS[kind](frame.payload))
        elif kind is FrameType.DATA or kind is FrameType.CREDIT:
            self._handle_channel(frame)
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
            self._flow.take(frame, late=True)
        elif frame.type is FrameType.CREDIT:
            self._flow.take_credit(frame, late=True)
        else:
            decode = Ask.decode if frame.type is FrameType.ASK else Signal.decode
            if decode(frame.payload).run != self.run:
                raise RemoteProtocolError(f"A {frame.type.name} is not for run {self.run}.")

    def _handle_run(self, event: Event) -> None:
        """An event that belongs to one run, or to none (STATS, PONG)."""
        if isinstance(event, (Start, Resume)):
            self._begin(event.run)
        elif isinstance(event, (*_OF_ONE_RUN, Resumed)) and event.run != self.run:
            raise RemoteProtocolError(f"Run {event.run} is spoken of while run {self.run} is on.")
        if isinstance(event, Resume):  # nobody waits for these any more
            self._urgent.clear()
            self._pongs.clear()
        if isinstance(event, Exited):
            self._give_up()
        self._events.append(event)

    def _handle_channel(self, frame: Frame) -> None:
        """A frame of a kernel's channel."""
        if self.diverts and frame.channel != Channel.HB:
            payload = frame.payload
            self._events.append(
                Diverted(encode_frame(frame.type, payload, frame.channel, frame.flags))
            )
        elif frame.type is FrameType.CREDIT:
            self._flow.take_credit(frame)
        else:
            message = self._flow.take(frame)
            if message is not None:
                self._events.append(message)

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
        if isinstance(event, _OF_ONE_RUN) and event.run != self.run:
            raise LocalProtocolError(f"Run {event.run} is not on; run {self.run} is.")
        payload = _checked_payload(event)
        self._urgent.append(encode_frame(kind, payload))
        self.state = after
        if isinstance(event, Start):
            self._begin(event.run)
        elif isinstance(event, Exited):
            self._give_up()

    def send_message(self, channel: Channel, parts: Sequence[Part]) -> None:
        """Queue a message; if large, uncopied. Raises LocalProtocolError (state, size)."""
        self._after(FrameType.DATA, LocalProtocolError)
        self._flow.add(channel, parts)

    def divert(self, frames: bytes) -> None:
        """Queue whole DATA and CREDIT frames of a kernel that reads and writes them itself.

        Raises LocalProtocolError (state).
        """
        self._after(FrameType.DATA, LocalProtocolError)
        self._diverted.append(frames)

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
        """Bytes of messages that wait to be sent, on one channel or, diverted ones too, on all."""
        own = self._flow.queued(channel)
        return own if channel is not None else own + sum(map(len, self._diverted))

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
        # While a guest resumes, its host drops what it sends, and would not count it.
        if self.state is State.RUNNING or (self.state is State.RESUMING and self.role is Role.HOST):
            size += self._flow.write(out, limit - size)
            while self._diverted and size < limit:
                frames = self._diverted.popleft()
                out.append(frames)
                size += len(frames)
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
        if kind in ALWAYS and self.state in (State.IDLE, State.RUNNING, State.RESUMING):
            return self.state
        after = TRANSITIONS.get((self.state, kind))
        if after is None:
            raise error(f"{kind.name} is not allowed while the link is {self.state.value}.")
        return after

    def _close(self) -> None:
        self.state = State.CLOSED
        self._reader = FrameReader()
        self._give_up()

    def _begin(self, run: int) -> None:
        self.run = run
        self._flow.begin()
        self._diverted.clear()

    def _give_up(self) -> None:
        """A run is over: what either side had not finished sending is forgotten."""
        self._flow.give_up()
        self._diverted.clear()


def _checked_payload(event: Sendable | Resume) -> bytes:
    """The payload of an event that the other side will take. Raises LocalProtocolError."""
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
