"""Feed one end of the streams with what a hostile end may send; see README.md in this directory.

``check`` checks what must hold for any bytes. It needs nothing but the project, and the tests call
it too. Only ``main`` needs atheris.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable
from contextlib import suppress

from gvisor_kernel.link import RemoteProtocolError
from gvisor_kernel.link.state import Role
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

COUNT = 3
"""Streams that a guest has opened."""


def make_end(situation: int) -> Streams:
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


def split(stream: bytes, size: int) -> list[bytes]:
    return [stream[index : index + size] for index in range(0, len(stream), size)]


def feed(end: Streams, stream: list[bytes]) -> tuple[list[StreamEvent], str | None]:
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


def drive(end: Streams, guest: bool, stream: list[bytes], every: int) -> None:
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


def check(data: bytes) -> None:
    """Check that bytes raise nothing but RemoteProtocolError, and the same however they are cut."""
    if not data:
        return
    first, stream = data[0], data[1:]
    size = (first >> 3 & 7) * 5 + 1
    events, error = feed(make_end(first), split(stream, 1))
    for cut in ([stream], split(stream, size)):
        same, again = feed(make_end(first), cut)
        assert again == error
        assert same == events[: len(same)]  # those of the read that fails are lost
        assert error is not None or len(same) == len(events)
    drive(make_end(first), bool(first & 1), split(stream, size), every=(first >> 6) + 1)


def outcome(data: bytes) -> tuple[Hashable, set[Hashable]]:
    """Return what an input does to an end, as a whole and in parts, without numbers."""
    events, error = feed(make_end(data[0]), split(data[1:], 1))
    error_kind = re.sub(r"\d+", "", error or "")
    kinds = frozenset(type(event).__name__ for event in events)
    return (data[0] & 1, kinds, error_kind), {
        (data[0] & 1, error_kind),
        *((data[0] & 1, kind) for kind in kinds),
    }


def main() -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
