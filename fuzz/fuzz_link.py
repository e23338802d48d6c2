"""Feed the link and its streams with what a hostile end may send; see README.md in this directory.

``check`` and ``check_streams`` check what must hold for any bytes. They need nothing but the
project, and the tests call them too. Only ``main`` needs atheris.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import replace

from gvisor_kernel.link import (
    Connection,
    Diverted,
    Event,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    Message,
    RemoteProtocolError,
    Resume,
    Resumed,
    Signal,
    Start,
    StreamFrames,
)
from gvisor_kernel.link.backlog import STREAM_BACKLOG
from gvisor_kernel.link.flow import WINDOW
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    MAX_FRAME,
    MAX_MESSAGE,
    FrameType,
    encode_bytes,
    encode_frame,
)
from gvisor_kernel.link.state import Role, State
from gvisor_kernel.link.streams import (
    DOWN_WINDOW,
    MAX_STREAMS,
    STREAM_WINDOW,
    Finished,
    Opened,
    Received,
    Reset,
    StreamEvent,
    Streams,
)

START = Start(1, ("x",), (), "/", "k", egress=True)
RESUME = Resume(1, (("A", "b"),), "/", "k", "00" * 64, egress=True)
PEER_HELLO = encode_frame(FrameType.HELLO, Hello().encode())


def make_end(situation: int) -> Connection:
    """Return an end in one of eight situations, chosen by the low bits of the input's first byte.

    If its two highest bits are set, a guest diverts frames to a kernel that speaks them itself.
    """
    role = Role.GUEST if situation & 1 else Role.HOST
    stage = situation >> 1 & 3
    if stage == 3 and role is Role.HOST:
        return Connection(role, Hello(), RESUME)
    end = Connection(role, Hello())
    end.diverts = role is Role.GUEST and situation >> 6 == 3
    if stage >= 1:
        end.receive_data(PEER_HELLO)
    if stage >= 2:
        if role is Role.HOST:
            end.send(START)
        else:
            end.receive_data(encode_frame(FrameType.START, START.encode()))
    if stage == 3:
        end.send(Exited(1, 0))
    return end


def split(stream: bytes, size: int) -> list[bytes]:
    return [stream[index : index + size] for index in range(0, len(stream), size)]


def events(end: Connection) -> list[Event]:
    return list(iter(end.next_event, None))


def feed(end: Connection, stream: list[bytes]) -> tuple[list[Event], str | None, State]:
    """Return all events, the error's text and the state. Any other exception is a finding."""
    error = None
    try:
        for piece in stream:
            end.receive_data(piece)
    except RemoteProtocolError as broken:
        error = str(broken)
        assert end.state is State.CLOSED
    return events(end), error, end.state


def reply_to(end: Connection, event: Event) -> None:
    """Reply to an event: SIGKILL ends the kernel, and after its end the next one is started."""
    if end.run is not None:
        with suppress(LocalProtocolError):  # the state may be ahead of the event
            if isinstance(event, Signal) and event.signum == 9:
                end.send(Exited(end.run, -9))
            elif isinstance(event, Resume):
                end.send(Resumed(event.run, True))
            elif isinstance(event, IdleQuery):
                end.send(IdleReply(event.run, True))
            elif isinstance(event, Diverted):
                end.divert(event.frame)
            elif isinstance(event, Exited):
                end.send(replace(START, run=end.run + 1, egress=end.run % 3 > 0))


def drive(end: Connection, stream: list[bytes], consume: int) -> None:
    """Use an end as an owner does: take events between reads, consume some messages late, write."""
    held: list[Message] = []
    frames: list[int] = []
    for piece in stream:
        with suppress(RemoteProtocolError):
            end.receive_data(piece)
        for event in events(end):
            repr(event)
            if isinstance(event, Message):
                held.append(event)
            elif isinstance(event, Exited):
                frames.clear()
            elif isinstance(event, StreamFrames) and end.role is Role.HOST:
                frames.append(len(event.frames))
                assert sum(frames) <= STREAM_BACKLOG
            reply_to(end, event)
        for channel in DATA_CHANNELS:
            assert 0 <= end.held(channel) <= WINDOW + MAX_MESSAGE
        while len(held) > consume:
            end.consumed(held.pop(0))
        while len(frames) > consume:
            end.passed_on(frames.pop(0))
        if end.stream_room >= 12 + len(piece):
            end.divert_stream(encode_bytes(1, piece))
        with suppress(LocalProtocolError):  # refused while there is no kernel
            end.send_message(DATA_CHANNELS[len(piece) % len(DATA_CHANNELS)], [piece, b""])
        for output in iter(end.data_to_send, b""):
            assert len(output) < 256 * 1024 + 2 * MAX_FRAME
    if end.role is Role.HOST:
        end.end_streams()
    while held:
        end.consumed(held.pop())
    assert all(end.held(channel) == 0 for channel in DATA_CHANNELS)


def check(data: bytes) -> None:
    """Check that bytes raise nothing but RemoteProtocolError, and the same however they are cut."""
    if not data:
        return
    first, stream = data[0], data[1:]
    size = (first >> 3 & 7) * 5 + 1
    whole = feed(make_end(first), [stream])
    assert feed(make_end(first), split(stream, 1)) == whole
    assert feed(make_end(first), split(stream, size)) == whole
    drive(make_end(first), split(stream, size), consume=first >> 6)


def outcome(data: bytes) -> tuple[Hashable, set[Hashable]]:
    """Return what an input does to an end, as a whole and in parts, without numbers and texts.

    The parts are an error, by role, and each type of event, by situation. The corpus has one input
    for each part.
    """
    events, error, state = feed(make_end(data[0]), [data[1:]])
    error_kind = re.sub(r"\d+|'.*'", "", error or "")
    kinds = frozenset(type(event).__name__ for event in events)
    found_parts = {(data[0] & 1, error_kind), *((data[0] & 7, state, kind) for kind in kinds)}
    return (data[0] & 7, kinds, error_kind, state), found_parts


# -- streams ---------------------------------------------------------------------------------------

COUNT = 3
"""Streams that a guest has opened."""


def make_streams_end(situation: int) -> Streams:
    """Return an end, chosen by the lowest bit of the input's first byte: 1 for a guest.

    A guest has COUNT streams: one that does nothing, one with bytes to send, one that finishes.
    """
    end = Streams(Role.GUEST if situation & 1 else Role.HOST)
    if situation & 1:
        for _ in range(COUNT):
            end.open()
        end.send(2, bytes(STREAM_WINDOW))
        end.finish(3)
    return end


def feed_streams(end: Streams, stream: list[bytes]) -> tuple[list[StreamEvent], str | None]:
    """Return the events until the first error, and its text. Any other exception is a finding."""
    events: list[StreamEvent] = []
    try:
        for piece in stream:
            events += end.receive_data(piece)
    except RemoteProtocolError as broken:
        return events, str(broken)
    return events, None


class Owner:
    """Uses an end as its owner does, and checks what it reports."""

    def __init__(self, end: Streams, guest: bool, every: int) -> None:
        self.end = end
        self.every = every
        """Every which Received is consumed at once; the others are only when a stream ends."""
        self.held: dict[int, int] = dict.fromkeys(range(1, COUNT + 1), 0) if guest else {}
        self.over: set[int] = set()
        self.received = 0

    def handle(self, event: StreamEvent) -> None:
        number = event.stream
        assert number not in self.over, "an event of a stream that is over"
        if isinstance(event, Opened):
            assert number not in self.held
            self.held[number] = 0
        elif isinstance(event, Received):
            assert event.data
            self.held[number] += len(event.data)
            assert self.held[number] <= DOWN_WINDOW
            self.received += 1
            if self.received % self.every == 0:
                self.end.consumed(number, self.held[number])
                self.held[number] = 0
            room = self.end.sendable(number)
            self.end.send(number, event.data[:room])
        elif isinstance(event, Finished):
            if number % 2:
                self.end.finish(number)
            elif number % 4:
                self.end.reset(number)
                self.over.add(number)
        elif isinstance(event, Reset):
            self.over.add(number)
            assert self.end.sendable(number) == 0


def drive_streams(end: Streams, guest: bool, stream: list[bytes], every: int) -> None:
    owner = Owner(end, guest, every)
    for piece in stream:
        events: list[StreamEvent] = []
        with suppress(RemoteProtocolError):
            events = end.receive_data(piece)
        for event in events:
            if event.stream not in owner.over:
                owner.handle(event)
        assert end.open_count <= MAX_STREAMS
        assert end.queued <= (end.open_count + 1) * DOWN_WINDOW + 12 * len(owner.held) * 2
        for limit in (11, 40, 32768):
            assert len(end.data_to_send(limit)) <= limit
    while end.has_data_to_send:
        assert end.data_to_send()
    assert end.queued == 0


def check_streams(data: bytes) -> None:
    """Check that bytes raise nothing but RemoteProtocolError, and the same however they are cut."""
    if not data:
        return
    first, stream = data[0], data[1:]
    size = (first >> 3 & 7) * 5 + 1
    events, error = feed_streams(make_streams_end(first), split(stream, 1))
    for cut in ([stream], split(stream, size)):
        same, again = feed_streams(make_streams_end(first), cut)
        assert again == error
        assert same == events[: len(same)]  # those of the read that fails are lost
        assert error is not None or len(same) == len(events)
    drive_streams(
        make_streams_end(first), bool(first & 1), split(stream, size), every=(first >> 6) + 1
    )


def outcome_streams(data: bytes) -> tuple[Hashable, set[Hashable]]:
    """Return what an input does to an end, as a whole and in parts, without numbers."""
    events, error = feed_streams(make_streams_end(data[0]), split(data[1:], 1))
    error_kind = re.sub(r"\d+", "", error or "")
    kinds = frozenset(type(event).__name__ for event in events)
    return (data[0] & 1, kinds, error_kind), {
        (data[0] & 1, error_kind),
        *((data[0] & 1, kind) for kind in kinds),
    }


TARGETS = {"link": (check, outcome), "streams": (check_streams, outcome_streams)}
"""What checks an input, and what it does to an end; each has its corpus of the same name."""


def main() -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]][0])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
