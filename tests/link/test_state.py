"""Who may send what, and when: each frame in each state, received and sent, by both roles.

The tables here are written out, not taken from ``state.py``, so that a change there is noticed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gvisor_kernel.link import (
    Channel,
    Connection,
    Exited,
    Hello,
    IdleQuery,
    IdleReply,
    LocalProtocolError,
    LogSource,
    Ping,
    Pong,
    RemoteProtocolError,
    Resumed,
    Signal,
    Started,
    Stats,
    Trim,
)
from gvisor_kernel.link.frames import FLAG_LAST, FrameType, encode_frame
from gvisor_kernel.link.state import Role, State

from .helpers import OTHER, START, VALID, connected_pair, connection_in, events, exchange, raw

F = FrameType
SITUATIONS = {
    "opening": (State.OPENING, False),
    "idle": (State.IDLE, False),
    "idle after a run": (State.IDLE, True),
    "running": (State.RUNNING, False),
    "resuming": (State.RESUMING, False),
    "closed": (State.CLOSED, False),
}
DROPPED = "dropped"
OF_STREAMS = {F.STREAM, F.GRANT, F.FINISH, F.RESET}
"""Frames of both sides about a stream. Only a guest sends OPEN."""
ALWAYS_ALLOWED = {F.PING, F.PONG}
"""Frames of both sides that change no state, allowed while idle, running and resuming."""

RECEIVED_BY_HOST: dict[str, dict[FrameType, State | str]] = {
    "opening": {F.HELLO: State.IDLE},
    "idle": dict.fromkeys(ALWAYS_ALLOWED | {F.STATS, F.LOG}, State.IDLE),
    "idle after a run": dict.fromkeys(ALWAYS_ALLOWED | {F.STATS, F.LOG}, State.IDLE),
    "running": {
        **dict.fromkeys(
            ALWAYS_ALLOWED | {F.STATS, F.LOG, F.STARTED, F.DATA, F.CREDIT, F.IDLE_REPLY},
            State.RUNNING,
        ),
        **dict.fromkeys(OF_STREAMS | {F.OPEN}, State.RUNNING),
        F.EXIT: State.IDLE,
    },
    "resuming": {
        **dict.fromkeys(ALWAYS_ALLOWED | {F.STATS, F.LOG}, State.RESUMING),
        **dict.fromkeys({F.DATA, F.CREDIT, F.IDLE_REPLY, F.OPEN} | OF_STREAMS, DROPPED),
        F.RESUMED: State.RUNNING,
        F.EXIT: State.IDLE,
    },
    "closed": {},
}
RECEIVED_BY_GUEST: dict[str, dict[FrameType, State | str]] = {
    "opening": {F.HELLO: State.IDLE},
    "idle": {
        **dict.fromkeys(ALWAYS_ALLOWED, State.IDLE),
        F.START: State.RUNNING,
    },
    "idle after a run": {
        **dict.fromkeys(ALWAYS_ALLOWED, State.IDLE),
        **dict.fromkeys({F.DATA, F.CREDIT, F.SIGNAL, F.IDLE_QUERY, F.TRIM} | OF_STREAMS, DROPPED),
        F.START: State.RUNNING,
    },
    "running": {
        **dict.fromkeys(ALWAYS_ALLOWED | {F.DATA, F.CREDIT, F.SIGNAL, F.IDLE_QUERY}, State.RUNNING),
        **dict.fromkeys({F.TRIM} | OF_STREAMS, State.RUNNING),
        F.RESUME: State.RESUMING,
    },
    "resuming": {
        **dict.fromkeys(ALWAYS_ALLOWED | {F.DATA, F.CREDIT, F.SIGNAL}, State.RESUMING),
    },
    "closed": {},
}
RECEIVED = {Role.HOST: RECEIVED_BY_HOST, Role.GUEST: RECEIVED_BY_GUEST}
SILENT = {F.CREDIT}
"""Frames that cause no event."""


@pytest.mark.parametrize("kind", FrameType, ids=lambda kind: kind.name)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_receiving_each_frame_in_each_state(role: Role, situation: str, kind: FrameType) -> None:
    before, after_run = SITUATIONS[situation]
    end = connection_in(role, before, after_run)
    expected = RECEIVED[role][situation].get(kind)
    if expected is None:
        with pytest.raises(RemoteProtocolError):
            end.receive_data(VALID[kind])
        assert end.state is State.CLOSED
        assert events(end) == []
    elif expected is DROPPED:
        end.receive_data(VALID[kind])
        assert end.state is before
        assert events(end) == []
    else:
        end.receive_data(VALID[kind])
        assert end.state is expected
        assert len(events(end)) == (kind not in SILENT)


def restart(end: Connection) -> None:
    end.send(START)


SEND: dict[FrameType, Callable[[Connection], None]] = {
    F.START: restart,
    F.STARTED: lambda end: end.send(Started(1)),
    F.DATA: lambda end: end.send_message(Channel.SHELL, [b"x"]),
    F.SIGNAL: lambda end: end.send(Signal(1, 2)),
    F.EXIT: lambda end: end.send(Exited(1, 0)),
    F.STATS: lambda end: end.send(Stats(1, 2, 3)),
    F.LOG: lambda end: end.send_log(LogSource.STDERR, "text"),
    F.PING: lambda end: end.send(Ping(7)),
    F.RESUMED: lambda end: end.send(Resumed(1, True)),
    F.IDLE_QUERY: lambda end: end.send(IdleQuery(1)),
    F.IDLE_REPLY: lambda end: end.send(IdleReply(1, True)),
    F.TRIM: lambda end: end.send(Trim(1)),
    F.STREAM: lambda end: end.divert_stream(VALID[F.STREAM]),
}
"""How an owner sends each frame. The connection itself sends HELLO, RESUME, CREDIT and PONG.

All frames of streams are sent as STREAM is."""

SENT_BY_HOST: dict[str, dict[FrameType, State]] = {
    "opening": {},
    "idle": {F.START: State.RUNNING, F.PING: State.IDLE},
    "idle after a run": {F.START: State.RUNNING, F.PING: State.IDLE},
    "running": {
        **dict.fromkeys({F.DATA, F.SIGNAL, F.PING, F.IDLE_QUERY, F.STREAM}, State.RUNNING),
        F.TRIM: State.RUNNING,
    },
    "resuming": {
        **dict.fromkeys({F.DATA, F.SIGNAL, F.PING}, State.RESUMING),
    },
    "closed": {},
}
SENT_BY_GUEST: dict[str, dict[FrameType, State]] = {
    "opening": {F.LOG: State.OPENING},
    "idle": dict.fromkeys({F.STATS, F.LOG, F.PING}, State.IDLE),
    "idle after a run": dict.fromkeys({F.STATS, F.LOG, F.PING}, State.IDLE),
    "running": {
        **dict.fromkeys({F.STARTED, F.DATA, F.STATS, F.LOG, F.PING, F.IDLE_REPLY}, State.RUNNING),
        F.STREAM: State.RUNNING,
        F.EXIT: State.IDLE,
    },
    "resuming": {
        **dict.fromkeys({F.DATA, F.STATS, F.LOG, F.PING}, State.RESUMING),
        F.RESUMED: State.RUNNING,
        F.EXIT: State.IDLE,
    },
    "closed": {F.LOG: State.CLOSED},
}
SENT = {Role.HOST: SENT_BY_HOST, Role.GUEST: SENT_BY_GUEST}


@pytest.mark.parametrize("kind", SEND, ids=lambda kind: kind.name)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_sending_each_frame_in_each_state(role: Role, situation: str, kind: FrameType) -> None:
    before, after_run = SITUATIONS[situation]
    end = connection_in(role, before, after_run)
    expected = SENT[role][situation].get(kind)
    if expected is not None:
        SEND[kind](end)
        assert end.state is expected
        waits = kind is F.DATA and role is Role.GUEST and before is State.RESUMING
        assert end.data_to_send() == (b"" if waits else VALID[kind])
        return
    with pytest.raises(LocalProtocolError):
        SEND[kind](end)
    assert end.state is before
    assert end.data_to_send() == b""


@pytest.mark.parametrize("role", Role)
def test_hello_is_sent_first_without_waiting(role: Role) -> None:
    end = Connection(role, Hello(facts=(("a", "b"),)))
    other = Connection(OTHER[role], Hello())
    other.receive_data(end.data_to_send())
    assert events(other) == [Hello(facts=(("a", "b"),))]
    assert (end.state, other.state) == (State.OPENING, State.IDLE)


def test_no_state_accepts_frames_of_the_wrong_sender() -> None:
    """The tables above must agree with the lists of who may send which frame in any state."""

    def accepted(role: Role) -> set[FrameType]:
        rows = RECEIVED[role].values()
        return {kind for row in rows for kind, after in row.items() if after != DROPPED}

    assert accepted(Role.HOST) == set(FrameType) - {
        F.START,
        F.SIGNAL,
        F.RESUME,
        F.IDLE_QUERY,
        F.TRIM,
    }
    guests = {F.STARTED, F.EXIT, F.STATS, F.LOG, F.RESUMED, F.IDLE_REPLY, F.OPEN}
    assert accepted(Role.GUEST) == set(FrameType) - guests


@pytest.mark.parametrize("kind", [F.STARTED, F.EXIT, F.IDLE_REPLY])
def test_host_refuses_frames_of_another_run(kind: FrameType) -> None:
    host = connection_in(Role.HOST, State.RUNNING)
    payload = {F.STARTED: Started(2), F.EXIT: Exited(2, 0), F.IDLE_REPLY: IdleReply(2, True)}[
        kind
    ].encode()
    with pytest.raises(RemoteProtocolError, match=r"run 2; the current run is 1"):
        host.receive_data(raw(kind, payload))


@pytest.mark.parametrize("kind", [F.SIGNAL, F.IDLE_QUERY, F.TRIM])
@pytest.mark.parametrize("after_run", [False, True])
def test_guest_refuses_frames_of_another_run(after_run: bool, kind: FrameType) -> None:
    guest = connection_in(Role.GUEST, State.IDLE if after_run else State.RUNNING, after_run)
    payload = {F.SIGNAL: Signal(2, 15), F.IDLE_QUERY: IdleQuery(2), F.TRIM: Trim(2)}[kind].encode()
    with pytest.raises(RemoteProtocolError):
        guest.receive_data(raw(kind, payload))


def test_late_frames_are_checked_before_they_are_dropped() -> None:
    for stream in (
        raw(F.SIGNAL, b"\0\0\0\1\0"),
        raw(F.IDLE_QUERY, b"\0\0\0"),
        raw(F.DATA, b"", Channel.SHELL, FLAG_LAST),
    ):
        with pytest.raises(RemoteProtocolError):
            connection_in(Role.GUEST, State.IDLE, after_run=True).receive_data(stream)


def test_frames_that_cross_an_exit_are_dropped_without_credit() -> None:
    host, guest = connected_pair()
    host.send_message(Channel.SHELL, [bytes(100_000)])
    host.send(Signal(1, 2))
    guest.send(Exited(1, -15))
    guest.receive_data(host.data_to_send())
    assert events(guest) == []
    host.receive_data(guest.data_to_send())
    assert events(host) == [Exited(1, -15)]
    host.send(START)
    for size in (900_000, 5_000_000):  # both need the whole window
        host.send_message(Channel.SHELL, [bytes(size)])
    _, to_guest = exchange(host, guest)
    assert [len(message.parts[0]) for message in to_guest] == [900_000, 5_000_000]


@pytest.mark.parametrize("role", Role)
def test_protocol_error_is_raised_again_by_each_call(role: Role) -> None:
    end = connection_in(role, State.RUNNING)
    end.receive_data(VALID[F.PING])
    with pytest.raises(RemoteProtocolError) as first:
        end.receive_data(VALID[F.PONG] + b"\xff" * 8)
    assert end.state is State.CLOSED
    assert events(end) == [Ping(7), Pong(7)]  # valid frames before the violation are still there
    for stream in (b"", VALID[F.PING], b"\xff"):
        with pytest.raises(RemoteProtocolError) as again:
            end.receive_data(stream)
        assert again.value is first.value
    assert events(end) == []
    with pytest.raises(LocalProtocolError):
        end.send_message(Channel.SHELL, [b"x"])
    with pytest.raises(LocalProtocolError):
        end.send(Ping(1))


def test_guest_can_log_after_a_protocol_error() -> None:
    guest = connection_in(Role.GUEST, State.RUNNING)
    guest.send_message(Channel.IOPUB, [b"x"])
    with pytest.raises(RemoteProtocolError):
        guest.receive_data(b"\xff" * 8)
    guest.send_log(LogSource.GUEST, "why")
    assert guest.data_to_send() == raw(F.LOG, b"why")


def test_pings_are_answered_with_their_token() -> None:
    host, guest = connected_pair()
    host.send(Ping(2**64 - 1))
    guest.send(Ping(0))
    guest.receive_data(host.data_to_send())
    host.receive_data(guest.data_to_send())
    guest.receive_data(host.data_to_send())
    assert events(guest) == [Ping(2**64 - 1), Pong(0)]
    assert events(host) == [Ping(0), Pong(2**64 - 1)]


def test_flood_of_pings_is_answered_in_part() -> None:
    host = connection_in(Role.HOST, State.IDLE)
    host.receive_data(b"".join(encode_frame(F.PING, Ping(n).encode()) for n in range(10_000)))
    answer = host.data_to_send()
    assert len(answer) == 64 * 16
    assert answer.endswith(encode_frame(F.PONG, Pong(9_999).encode()))
