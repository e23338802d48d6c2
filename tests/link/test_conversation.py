"""Two connected ends, with hypothesis as the wire and as the owners.

Whatever is sent arrives once, whole and in order on its channel, however the bytes are cut and
whenever messages are consumed. The end of a run drops the tail of a channel and nothing else.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gvisor_kernel.link import (
    Channel,
    Connection,
    Event,
    Exited,
    Hello,
    Log,
    LogSource,
    Message,
    Ping,
    Pong,
    Signal,
    Start,
    Started,
    Stats,
)
from gvisor_kernel.link.frames import DATA_CHANNELS
from gvisor_kernel.link.state import Role, State

from ..sweeps import ALL
from .helpers import OTHER, connected_pair, partial, small_limits

WINDOW, MESSAGE = 4096, 65536

channels = st.sampled_from(DATA_CHANNELS)
roles = st.sampled_from(Role)
part = st.one_of(
    st.just(b""),
    st.binary(max_size=20),
    st.builds(lambda size, fill: bytes([fill]) * size, st.integers(0, 12_000), st.integers(0, 255)),
)
messages = st.lists(part, min_size=1, max_size=5)


class Conversation(RuleBasedStateMachine):
    """Two ends and two wires. Each rule is one step of a wire or of an owner."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = small_limits(window=WINDOW, step=1024, message=MESSAGE)
        self.limits.__enter__()
        self.ends = {role: Connection(role, Hello()) for role in Role}
        self.wires = {role: bytearray() for role in Role}  # towards role
        self.held: dict[Role, deque[Message]] = {role: deque() for role in Role}
        self.sent: dict[tuple[Role, int, Channel], list[list[bytes]]] = defaultdict(list)
        self.received: dict[tuple[Role, int, Channel], list[list[bytes]]] = defaultdict(list)
        self.run_seen = dict.fromkeys(Role, 0)
        self.expected: dict[Role, list[Event]] = {role: [] for role in Role}
        self.seen: dict[Role, list[Event]] = {role: [] for role in Role}
        self.token = 0

    def teardown(self) -> None:
        try:
            self.check_that_everything_arrives()
        finally:
            self.limits.__exit__(None, None, None)

    @initialize(greeted=st.booleans(), running=st.booleans())
    def begin(self, greeted: bool, running: bool) -> None:
        """Skip the handshake and the START in most examples: most rules need a running kernel."""
        if greeted or running:
            for role in Role:
                self.write(role, 5000)
                self.read(OTHER[role], 5000)
        if running:
            self.start()
            self.write(Role.HOST, 5000)
            self.read(Role.GUEST, 5000)

    # -- owners ----------------------------------------------------------------------------------

    @rule(role=roles, channel=channels, parts=messages)
    def send_message(self, role: Role, channel: Channel, parts: list[bytes]) -> None:
        end = self.ends[role]
        if end.state is State.RUNNING:
            end.send_message(channel, parts)
            self.sent[role, self.run_of(role), channel].append(parts)

    @precondition(lambda self: self.ends[Role.HOST].state is State.IDLE)
    @rule()
    def start(self) -> None:
        host = self.ends[Role.HOST]
        host.send(Start((host.run or 0) + 1, ("x",), (), "/", "k"))

    @precondition(lambda self: self.ends[Role.GUEST].state is State.RUNNING)
    @rule(started=st.booleans())
    def guest_reports_its_run(self, started: bool) -> None:
        event = Started(self.run_of(Role.GUEST)) if started else Exited(self.run_of(Role.GUEST), 0)
        self.ends[Role.GUEST].send(event)

    @precondition(lambda self: self.ends[Role.HOST].state is State.RUNNING)
    @rule()
    def signal(self) -> None:
        self.ends[Role.HOST].send(Signal(self.run_of(Role.HOST), 2))

    @rule(role=roles, what=st.sampled_from([Ping, Stats, Log]))
    def send_other_frame(self, role: Role, what: type) -> None:
        end = self.ends[role]
        if end.state is State.OPENING or (role is Role.HOST and what is not Ping):
            return
        self.token += 1
        event: Any
        if what is Log:
            event = Log(LogSource.STDOUT, f"{self.token} ü")
            end.send_log(event.source, event.text)
        else:
            event = Ping(self.token) if what is Ping else Stats(self.token, 1, 2)
            end.send(event)
        self.expected[OTHER[role]].append(event)

    @rule(role=roles, index=st.integers(0, 5))
    def consume(self, role: Role, index: int) -> None:
        held = self.held[role]
        if index < len(held):
            self.ends[role].consumed(held[index])
            del held[index]

    def run_of(self, role: Role) -> int:
        run = self.ends[role].run
        assert run is not None
        return run

    # -- wires -----------------------------------------------------------------------------------

    @rule(role=roles, limit=st.sampled_from([1, 100, 5000, 256 * 1024]))
    def write(self, role: Role, limit: int) -> None:
        self.wires[OTHER[role]] += self.ends[role].data_to_send(limit)

    @rule(role=roles, size=st.one_of(st.integers(1, 20), st.just(700), st.just(1 << 20)))
    def read(self, role: Role, size: int) -> None:
        wire, end = self.wires[role], self.ends[role]
        end.receive_data(bytes(wire[:size]))
        del wire[:size]
        if role is Role.HOST:  # it begins the runs, once nothing of the last one can arrive
            self.run_seen[role] = end.run or 0
        for event in iter(end.next_event, None):
            if isinstance(event, Message):
                self.held[role].append(event)
                self.received[role, self.run_seen[role], event.channel].append(event.parts)
            elif isinstance(event, Start):
                self.run_seen[role] = event.run
            elif isinstance(event, (Ping, Stats, Log)):
                self.seen[role].append(event)
            else:
                assert isinstance(event, (Hello, Started, Exited, Signal, Pong))

    # -- invariants ------------------------------------------------------------------------------

    @invariant()
    def held_bytes_are_bounded(self) -> None:
        for role, end in self.ends.items():
            for channel in DATA_CHANNELS:
                # Messages held from an earlier run count in no window any more.
                assert end.held(channel) == sum(
                    message.size
                    for message in self.held[role]
                    if message.channel is channel and message.generation == end._flow._generation
                )
                half = partial(end, channel)
                assert end.held(channel) + half <= WINDOW + MESSAGE

    @invariant()
    def received_messages_are_a_prefix_of_the_sent_ones(self) -> None:
        for (role, run, channel), got in self.received.items():
            sent = self.sent[OTHER[role], run, channel]
            assert got == sent[: len(got)]
        for role in Role:
            assert self.seen[role] == self.expected[role][: len(self.seen[role])]

    def check_that_everything_arrives(self) -> None:
        """Consume and carry everything: nothing of a live run may stay behind."""
        while True:
            for role in Role:
                while self.held[role]:
                    self.consume(role, 0)
                self.write(role, 256 * 1024)
            if not any(self.wires.values()):
                break
            for role in Role:
                self.read(role, 1 << 20)
                self.held_bytes_are_bounded()
                self.received_messages_are_a_prefix_of_the_sent_ones()
        assert self.seen == self.expected
        host, guest = self.ends[Role.HOST], self.ends[Role.GUEST]
        assert host.state is guest.state
        assert host.queued() == guest.queued() == 0
        if host.state is State.RUNNING:
            assert host.run == guest.run
            for channel in DATA_CHANNELS:
                for role in Role:
                    sent = self.sent[OTHER[role], self.run_of(role), channel]
                    assert self.received[role, self.run_of(role), channel] == sent


Conversation.TestCase.settings = settings(
    max_examples=150 if ALL else 50,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestConversation = Conversation.TestCase


@settings(
    max_examples=80 if ALL else 30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.lists(st.tuples(roles, channels, messages), max_size=12),
    st.randoms(use_true_random=False),
)
def test_messages_arrive_however_the_bytes_are_cut(
    sent: list[tuple[Role, Channel, list[bytes]]], chance: Any
) -> None:
    """Queue everything at once, with a window that is a fraction of one message."""
    with small_limits(window=2048, step=512, cost=32, payload=256):
        ends = dict(zip((Role.HOST, Role.GUEST), connected_pair(), strict=True))
        for role, channel, parts in sent:
            ends[role].send_message(channel, parts)
        wires = {role: bytearray() for role in Role}
        held: list[tuple[Role, Message]] = []
        received: list[tuple[Role, Channel, list[bytes]]] = []
        while True:
            for role, end in ends.items():
                wires[OTHER[role]] += end.data_to_send(chance.choice([1, 300, 10_000]))
            if not any(wires.values()) and not held:
                break
            for role, end in ends.items():
                size = chance.choice([1, 7, 300, 100_000])
                end.receive_data(bytes(wires[role][:size]))
                del wires[role][:size]
                for event in iter(end.next_event, None):
                    assert isinstance(event, Message)
                    held.append((role, event))
                    received.append((OTHER[role], event.channel, event.parts))
            while held and chance.random() < 0.6:
                role, message = held.pop(chance.randrange(len(held)))
                ends[role].consumed(message)
    for role in Role:
        for channel in DATA_CHANNELS:
            assert [m for m in received if m[:2] == (role, channel)] == [
                m for m in sent if m[:2] == (role, channel)
            ]
