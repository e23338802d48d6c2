"""Frames of streams in a connection: which runs have them, their order, and the host's backlog."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gvisor_kernel.link import (
    Channel,
    Connection,
    Exited,
    Hello,
    LocalProtocolError,
    Ping,
    RemoteProtocolError,
    Resumed,
    StreamFrames,
    StreamsEnded,
)
from gvisor_kernel.link.backlog import BACKLOG_STEP, STREAM_BACKLOG
from gvisor_kernel.link.frames import (
    MAX_STREAM_DATA,
    FrameType,
    encode_bytes,
    encode_frame,
    encode_grant,
    encode_short,
)
from gvisor_kernel.link.state import Role, State

from .helpers import RESUME, START, VALID, connected_pair, connection_in, events, raw

F = FrameType
BLOCK = encode_bytes(1, bytes(MAX_STREAM_DATA))
"""The largest frame of a stream: 32 KiB."""


@pytest.mark.parametrize("role", Role)
def test_frames_pass_undecoded(role: Role) -> None:
    end = connection_in(role, State.RUNNING)
    nonsense = [encode_bytes(77, b"x"), encode_grant(9, 2**32 - 1), encode_short(F.FINISH, 5)]
    end.receive_data(b"".join(nonsense))
    assert events(end) == [StreamFrames(frame) for frame in nonsense]
    end.divert_stream(b"".join(nonsense))
    assert end.queued_streams == len(b"".join(nonsense))
    assert end.queued() == 0
    assert end.data_to_send() == b"".join(nonsense)
    assert end.queued_streams == 0


SIZES = {
    F.OPEN: (3, 5),
    F.STREAM: (0, 4),
    F.GRANT: (4, 7, 9),
    F.FINISH: (3, 5),
    F.RESET: (0, 3, 5),
}


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.name)
def test_wrong_size_is_refused(kind: FrameType) -> None:
    for size in SIZES[kind]:
        with pytest.raises(RemoteProtocolError, match=f"{kind.name} payload has {size} bytes"):
            connection_in(Role.HOST, State.RUNNING).receive_data(raw(kind, bytes(size)))


def test_late_frame_of_wrong_size_is_refused() -> None:
    guest = connection_in(Role.GUEST, State.IDLE, after_run=True)
    with pytest.raises(RemoteProtocolError):
        guest.receive_data(raw(F.RESET, b""))


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("role", Role)
def test_run_without_egress_has_no_streams(role: Role, kind: FrameType) -> None:
    end = connection_in(role, State.IDLE)
    start = replace(START, egress=False)
    if role is Role.HOST:
        end.send(start)
    else:
        end.receive_data(encode_frame(F.START, start.encode()))
    assert end.stream_room == 0
    with pytest.raises(LocalProtocolError, match="no egress"):
        end.divert_stream(VALID[kind])
    end.end_streams()
    with pytest.raises(RemoteProtocolError, match=r"without egress|may not send OPEN"):
        end.receive_data(VALID[kind])


def test_messages_overtake_streams() -> None:
    host, guest = connected_pair()
    guest.divert_stream(BLOCK)
    guest.send_message(Channel.IOPUB, [bytes(100_000)])
    guest.send(Ping(1))
    host.receive_data(guest.data_to_send())
    kinds = [type(event).__name__ for event in events(host)]
    assert kinds == ["Ping", "Message", "StreamFrames"]


def test_streams_have_a_limit_of_their_own() -> None:
    host, _ = connected_pair()
    for _ in range(4):
        host.divert_stream(BLOCK)
    host.send(Ping(1))
    assert host.data_to_send(stream_limit=0) == VALID[F.PING][:8] + Ping(1).encode()
    assert host.data_to_send(stream_limit=1) == BLOCK
    assert host.data_to_send(stream_limit=len(BLOCK) + 1) == 2 * BLOCK
    assert host.queued_streams == len(BLOCK)


def test_guest_stops_at_the_backlog() -> None:
    _, guest = connected_pair()
    assert guest.stream_room == STREAM_BACKLOG
    for _ in range(STREAM_BACKLOG // len(BLOCK)):
        guest.divert_stream(BLOCK)
    assert guest.stream_room == 0
    with pytest.raises(LocalProtocolError, match="backlog"):
        guest.divert_stream(VALID[F.OPEN])
    guest.receive_data(encode_grant(0, BACKLOG_STEP))
    assert guest.stream_room == BACKLOG_STEP
    assert events(guest) == []


def test_host_grants_what_it_has_passed_on() -> None:
    host = connection_in(Role.HOST, State.RUNNING)
    host.receive_data(BLOCK * 8)
    assert len(events(host)) == 8
    host.passed_on(BACKLOG_STEP - 1)
    assert host.data_to_send() == b""
    host.passed_on(1)
    assert host.data_to_send(stream_limit=0) == encode_grant(0, BACKLOG_STEP)
    host.receive_data(BLOCK + encode_bytes(1, bytes(MAX_STREAM_DATA - 11)))
    with pytest.raises(RemoteProtocolError, match="only 11 are left of the backlog"):
        host.receive_data(VALID[F.OPEN])


def test_grant_over_the_backlog_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="the backlog is"):
        connection_in(Role.GUEST, State.RUNNING).receive_data(encode_grant(0, 1))


@pytest.mark.parametrize(
    "frame",
    [
        encode_short(F.OPEN, 0),
        encode_bytes(0, b"x"),
        encode_grant(0, 1),
        encode_short(F.FINISH, 0),
        encode_short(F.RESET, 0),
    ],
    ids=["OPEN", "STREAM", "GRANT", "FINISH", "RESET"],
)
def test_guest_may_not_name_stream_zero(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="names stream 0"):
        connection_in(Role.HOST, State.RUNNING).receive_data(frame)


def test_host_may_not_send_bytes_on_stream_zero() -> None:
    for frame in (encode_bytes(0, b"x"), encode_short(F.FINISH, 0)):
        with pytest.raises(RemoteProtocolError, match="names stream 0"):
            connection_in(Role.GUEST, State.RUNNING).receive_data(frame)


def test_end_of_all_streams_drops_later_frames_on_both_sides() -> None:
    host, guest = connected_pair()
    host.divert_stream(BLOCK)
    guest.divert_stream(BLOCK)
    late = guest.data_to_send()
    host.end_streams()
    host.end_streams()
    assert host.data_to_send() == encode_short(F.RESET, 0)
    for _ in range(20):  # far more than the backlog
        host.receive_data(BLOCK)
    host.receive_data(late)
    assert events(host) == []
    host.divert_stream(BLOCK)
    assert host.stream_room == 0
    guest.receive_data(encode_short(F.RESET, 0))
    assert events(guest) == [StreamsEnded()]
    assert host.data_to_send() == b""
    assert (host.state, guest.state) == (State.RUNNING, State.RUNNING)


def test_streams_begin_again_after_the_answer_to_their_end() -> None:
    host, guest = connected_pair()
    for _ in range(STREAM_BACKLOG // len(BLOCK)):
        guest.divert_stream(BLOCK)
    host.receive_data(guest.data_to_send(stream_limit=1))
    host.end_streams()
    guest.receive_data(host.data_to_send())
    assert len(events(guest)) == len(events(host)) == 1
    guest.renew_streams()
    guest.divert_stream(BLOCK)
    assert guest.stream_room == STREAM_BACKLOG - len(BLOCK)
    host.receive_data(guest.data_to_send())
    assert events(host) == [StreamsEnded(), StreamFrames(BLOCK)]
    host.divert_stream(BLOCK)
    assert host.data_to_send() == BLOCK
    host.passed_on(len(BLOCK))
    assert host.stream_room == STREAM_BACKLOG


def test_guest_ends_all_streams_only_as_an_answer() -> None:
    host, _ = connected_pair()
    with pytest.raises(RemoteProtocolError, match="names stream 0"):
        host.receive_data(encode_short(F.RESET, 0))


def test_next_run_has_streams_again() -> None:
    host, guest = connected_pair()
    guest.divert_stream(BLOCK)
    host.receive_data(BLOCK * 3)
    host.end_streams()
    events(host)
    guest.send(Exited(1, 0))
    assert guest.queued_streams == 0
    host.receive_data(guest.data_to_send())
    host.send(replace(START, run=2))
    guest.receive_data(host.data_to_send())
    assert guest.stream_room == host.stream_room == STREAM_BACKLOG
    host.receive_data(BLOCK * 8)
    host.passed_on(8 * len(BLOCK))
    assert host.data_to_send() == encode_grant(0, STREAM_BACKLOG)


def test_restored_guest_has_the_egress_of_its_resume() -> None:
    guest = connection_in(Role.GUEST, State.RUNNING)
    guest.divert_stream(BLOCK)
    host = Connection(Role.HOST, Hello(), RESUME)
    guest.receive_data(host.data_to_send())
    assert guest.stream_room == guest.queued_streams == 0
    with pytest.raises(LocalProtocolError):
        guest.divert_stream(BLOCK)
    host.receive_data(BLOCK)  # stale
    guest.send(Resumed(1, True))
    guest.divert_stream(VALID[F.OPEN])
    host.receive_data(guest.data_to_send())
    assert events(host) == [Resumed(1, True), StreamFrames(VALID[F.OPEN])]


def test_streams_can_be_ended_before_a_guest_is_resumed() -> None:
    host = Connection(Role.HOST, Hello(), RESUME)
    host.data_to_send()
    host.end_streams()
    assert host.data_to_send() == b""
    host.receive_data(VALID[F.RESUMED])
    assert host.data_to_send() == encode_short(F.RESET, 0)


def test_repr_of_frames_contains_no_bytes() -> None:
    assert repr(StreamFrames(b"secret")) == "<StreamFrames 6 bytes>"
