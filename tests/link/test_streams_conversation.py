"""Streams between two honest ends: whatever both do, each gets what the other sent, in order."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import (
    STREAM_WINDOW,
    Finished,
    Opened,
    Received,
    Reset,
    StreamEvent,
    Streams,
)

from ..sweeps import ALL

SIZES = st.sampled_from([1, 2, 100, 32_756, 32_757, 70_000, STREAM_WINDOW])
ACTIONS = st.one_of(
    st.tuples(st.just("open")),
    st.tuples(st.just("send"), st.booleans(), st.integers(1, 5), SIZES),
    st.tuples(st.just("finish"), st.booleans(), st.integers(1, 5)),
    st.tuples(st.just("reset"), st.booleans(), st.integers(1, 5)),
    st.tuples(st.just("consume"), st.booleans(), st.integers(1, 5), SIZES),
    st.tuples(st.just("move"), st.booleans(), st.integers(16, 100_000)),
)
ANY = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=300 if ALL else 100,
)


class Side:
    """One end and what its owner knows."""

    def __init__(self, role: Role) -> None:
        self.streams = Streams(role)
        self.known: set[int] = set()
        self.sent: dict[int, bytearray] = {}
        self.got: dict[int, bytearray] = {}
        self.held: dict[int, int] = {}
        self.finished: set[int] = set()
        self.told: set[int] = set()
        """Streams that the other side has finished."""
        self.over: set[int] = set()

    def know(self, number: int) -> None:
        self.known.add(number)
        self.sent[number], self.got[number], self.held[number] = bytearray(), bytearray(), 0

    def handle(self, event: StreamEvent) -> None:
        assert event.stream not in self.over
        if isinstance(event, Opened):
            self.know(event.stream)
        elif isinstance(event, Received):
            assert event.stream not in self.told
            self.got[event.stream] += event.data
            self.held[event.stream] += len(event.data)
        elif isinstance(event, Finished):
            assert event.stream not in self.told
            self.told.add(event.stream)
        elif isinstance(event, Reset):
            self.over.add(event.stream)

    def send(self, number: int, size: int) -> None:
        room = min(size, self.streams.sendable(number))
        data = bytes([(len(self.sent[number]) + number) % 251]) * room
        self.streams.send(number, data)
        self.sent[number] += data

    def consume(self, number: int, size: int) -> None:
        size = min(size, self.held[number])
        self.streams.consumed(number, size)
        self.held[number] -= size


def move(sender: Side, receiver: Side, limit: int) -> bool:
    """Move the next bytes, in two pieces; return whether there were any."""
    data = sender.streams.data_to_send(limit)
    assert len(data) <= limit
    for piece in (data[: limit // 3], data[limit // 3 :]):
        for event in receiver.streams.receive_data(piece):
            receiver.handle(event)
    return bool(data)


def drain(host: Side, guest: Side) -> None:
    """Consume and move until nothing is under way."""
    going = True
    while going:
        for side in (host, guest):
            for number in side.known - side.over:
                side.consume(number, STREAM_WINDOW)
        going = move(host, guest, 1 << 20) | move(guest, host, 1 << 20)


@ANY
@given(st.lists(ACTIONS, max_size=60))
def test_any_conversation_delivers_what_was_sent(actions: list[tuple[object, ...]]) -> None:
    host, guest = Side(Role.HOST), Side(Role.GUEST)
    for action, *values in actions:
        if action == "open":
            guest.know(guest.streams.open())
            continue
        side, other = (host, guest) if values[0] else (guest, host)
        number = values[1]
        assert isinstance(number, int)
        if action == "move":
            move(side, other, number)
        elif number in side.known - side.over:
            if action == "send":
                side.send(number, values[2])  # type: ignore[arg-type]
            elif action == "finish":
                side.streams.finish(number)
                side.finished.add(number)
            elif action == "reset":
                side.streams.reset(number)
                side.over.add(number)
            elif action == "consume":
                side.consume(number, values[2])  # type: ignore[arg-type]
        assert side.streams.queued <= 5 * STREAM_WINDOW + 12 * len(actions)
    drain(host, guest)
    assert host.streams.queued == guest.streams.queued == 0
    assert host.known == guest.known
    assert host.streams.open_count == guest.streams.open_count
    for number in host.known:
        reset = number in host.over | guest.over
        for sender, receiver in ((host, guest), (guest, host)):
            sent, got = sender.sent[number], receiver.got[number]
            assert got == (sent[: len(got)] if reset else sent)
            if not reset:
                assert (number in receiver.told) == (number in sender.finished)
