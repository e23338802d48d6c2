"""Streams at both ends: order, windows, half-close, reset, fairness, limits, and violations."""

from __future__ import annotations

import pytest

from gvisor_kernel.link import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import (
    GRANT_SIZE,
    LAST_STREAM,
    MAX_FRAME,
    MAX_STREAM_DATA,
    FrameReader,
    FrameType,
    encode_bytes,
    encode_grant,
    encode_short,
)
from gvisor_kernel.link.state import Role
from gvisor_kernel.link.streams import (
    DOWN_BYTES,
    DOWN_WINDOW,
    GRANT_STEP,
    MAX_STREAMS,
    STREAM_WINDOW,
    Finished,
    Granted,
    Opened,
    Received,
    Reset,
    StreamEvent,
    Streams,
)

from .helpers import byte_by_byte, raw

F = FrameType


def pair() -> tuple[Streams, Streams]:
    """Return host and guest."""
    return Streams(Role.HOST), Streams(Role.GUEST)


def opened(count: int = 1) -> tuple[Streams, Streams]:
    """Return host and guest with streams 1 to ``count``."""
    host, guest = pair()
    for _ in range(count):
        guest.open()
    move(guest, host)
    return host, guest


def move(sender: Streams, receiver: Streams, limit: int = 256 * 1024) -> list[StreamEvent]:
    """Move all that ``sender`` may send; what ``receiver`` got. Nothing is consumed."""
    events: list[StreamEvent] = []
    for data in iter(lambda: sender.data_to_send(limit), b""):
        assert len(data) <= limit
        events += receiver.receive_data(data)
    return events


def kinds(data: bytes) -> list[str]:
    reader = FrameReader()
    reader.receive_data(data)
    frames = list(iter(reader.next_frame, None))
    assert not reader.pending
    return [frame.type.name for frame in frames]


def join(events: list[StreamEvent], stream: int = 1) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, Received) and e.stream == stream)


def test_guest_numbers_streams_from_one_and_never_again() -> None:
    host, guest = pair()
    assert [guest.open(), guest.open()] == [1, 2]
    assert move(guest, host) == [Opened(1), Opened(2)]
    guest.reset(1)
    assert guest.open() == 3
    assert move(guest, host) == [Reset(1), Opened(3)]
    assert host.open_count == guest.open_count == 2


def test_host_opens_no_stream() -> None:
    with pytest.raises(LocalProtocolError, match="host may not open"):
        Streams(Role.HOST).open()


def test_bytes_arrive_in_order_in_both_directions() -> None:
    host, guest = opened()
    guest.send(1, b"question")
    guest.send(1, memoryview(b" of the guest"))
    host.send(1, b"x" * 100_000)
    assert move(guest, host) == [Received(1, b"question of the guest")]
    answer = move(host, guest)
    assert [len(e.data) for e in answer if isinstance(e, Received)] == [
        *[MAX_STREAM_DATA] * 3,
        100_000 - 3 * MAX_STREAM_DATA,
    ]
    assert join(answer) == b"x" * 100_000


def test_input_may_be_cut_anywhere() -> None:
    guest = Streams(Role.GUEST)
    guest.open()
    guest.send(1, b"abc")
    guest.finish(1)
    stream = guest.data_to_send()
    host = Streams(Role.HOST)
    events: list[StreamEvent] = []
    byte_by_byte(lambda piece: events.extend(host.receive_data(piece)), stream)
    assert events == [Opened(1), Received(1, b"abc"), Finished(1)]


def test_sender_stops_at_the_window_and_goes_on_with_a_grant() -> None:
    host, guest = opened()
    assert host.sendable(1) == STREAM_WINDOW
    host.send(1, bytes(STREAM_WINDOW))
    assert host.sendable(1) == 0
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        host.send(1, b"x")
    assert len(join(move(host, guest))) == STREAM_WINDOW
    guest.consumed(1, GRANT_STEP - 1)
    assert guest.data_to_send() == b""  # not worth a frame
    guest.consumed(1, 1)
    more = DOWN_WINDOW - STREAM_WINDOW + GRANT_STEP
    assert guest.data_to_send() == encode_grant(1, more)
    host.receive_data(encode_grant(1, more))
    assert host.sendable(1) == more


def test_window_of_a_guest_does_not_grow() -> None:
    host, guest = opened()
    guest.send(1, bytes(STREAM_WINDOW))
    move(guest, host)
    host.consumed(1, STREAM_WINDOW)
    assert move(host, guest) == [Granted(1)]
    assert guest.sendable(1) == STREAM_WINDOW
    with pytest.raises(RemoteProtocolError, match=f"over the window of {STREAM_WINDOW}"):
        guest.receive_data(encode_grant(1, 1))


def test_window_of_a_host_grows_less_with_many_streams() -> None:
    host, guest = opened(MAX_STREAMS)
    for number in range(1, MAX_STREAMS + 1):
        host.send(number, bytes(STREAM_WINDOW))
    move(host, guest)
    for number in range(1, MAX_STREAMS + 1):
        guest.consumed(number, STREAM_WINDOW)
        move(guest, host)
        assert host.sendable(number) == max(STREAM_WINDOW, DOWN_BYTES // MAX_STREAMS)
    for number in range(2, MAX_STREAMS + 1):
        guest.reset(number)
    move(guest, host)
    host.send(1, bytes(host.sendable(1)))
    move(host, guest)
    guest.consumed(1, STREAM_WINDOW)
    move(guest, host)
    assert host.sendable(1) == DOWN_WINDOW


def test_grant_is_reported() -> None:
    host, guest = opened()
    host.send(1, bytes(STREAM_WINDOW))
    move(host, guest)
    guest.consumed(1, STREAM_WINDOW)
    assert move(guest, host) == [Granted(1)]
    assert host.sendable(1) == DOWN_WINDOW


def test_half_close_keeps_the_other_direction() -> None:
    host, guest = opened()
    guest.send(1, b"all")
    guest.finish(1)
    guest.finish(1)
    assert move(guest, host) == [Received(1, b"all"), Finished(1)]
    assert guest.sendable(1) == 0
    host.consumed(1, 3)
    host.send(1, b"answer")
    assert move(host, guest) == [Received(1, b"answer")]
    assert guest.open_count == 1
    host.finish(1)
    assert host.open_count == 1  # its FINISH is not sent yet
    assert move(host, guest) == [Finished(1)]
    assert host.open_count == guest.open_count == 0


def test_finish_waits_for_the_queued_bytes() -> None:
    _, guest = opened()
    guest.send(1, bytes(50_000))
    guest.finish(1)
    assert kinds(guest.data_to_send()) == ["STREAM", "STREAM", "FINISH"]


def test_reset_drops_what_is_queued_and_held() -> None:
    host, guest = opened()
    guest.send(1, bytes(50_000))
    guest.reset(1)
    guest.reset(1)
    assert guest.data_to_send() == encode_short(F.RESET, 1)
    host.send(1, b"x")
    host.receive_data(encode_short(F.RESET, 1))
    assert host.data_to_send() == b""
    assert host.open_count == 0
    assert not host.has_data_to_send


def test_what_crosses_a_reset_is_dropped() -> None:
    host, guest = opened()
    host.send(1, b"late")
    host.finish(1)
    guest.reset(1)
    guest.open()
    assert move(host, guest) == []
    assert move(guest, host) == [Reset(1), Opened(2)]
    for frame in (
        encode_bytes(1, b"late"),
        encode_grant(1, 2**31),
        encode_short(F.FINISH, 1),
        encode_short(F.RESET, 1),
    ):
        assert guest.receive_data(frame) == []


def test_calls_for_a_stream_that_is_over_do_nothing() -> None:
    host, guest = opened()
    guest.reset(1)
    move(guest, host)
    host.finish(1)
    host.reset(1)
    host.consumed(1, 5)
    host.send(1, b"")
    assert host.sendable(1) == 0
    assert host.data_to_send() == b""
    with pytest.raises(LocalProtocolError):
        host.send(1, b"x")


@pytest.mark.parametrize("number", [0, 2])
def test_calls_for_a_stream_that_never_was_are_errors(number: int) -> None:
    host, _ = opened()
    for call in (host.finish, host.reset, host.sendable):
        with pytest.raises(LocalProtocolError, match="no stream"):
            call(number)


def test_consumed_bytes_must_be_held() -> None:
    host, guest = opened()
    guest.send(1, b"abc")
    move(guest, host)
    with pytest.raises(LocalProtocolError, match="3 are held"):
        host.consumed(1, 4)


def test_streams_take_turns() -> None:
    host, guest = opened(3)
    for number in (1, 2, 3):
        host.send(number, bytes(STREAM_WINDOW))
    order = []
    for _ in range(9):
        (event,) = guest.receive_data(host.data_to_send(MAX_FRAME))
        order.append(event.stream)
    assert order == [1, 2, 3] * 3


def test_new_stream_does_not_wait_for_the_others() -> None:
    host, guest = opened(200)
    for number in range(1, 200):
        host.send(number, bytes(STREAM_WINDOW))
    for _ in range(50):
        host.data_to_send(MAX_FRAME)
    host.send(200, b"small")
    got = [guest.receive_data(host.data_to_send(MAX_FRAME))[0] for _ in range(200)]
    assert got[-1] == Received(200, b"small")  # after one frame of each other stream


def test_control_frames_precede_bytes() -> None:
    host, guest = opened()
    host.send(1, bytes(STREAM_WINDOW))
    move(host, guest)
    guest.send(1, b"x")
    guest.consumed(1, STREAM_WINDOW)
    guest.open()
    assert kinds(guest.data_to_send()) == ["OPEN", "GRANT", "STREAM"]


@pytest.mark.parametrize("limit", [13, 16, 100])
def test_small_limits_make_small_frames(limit: int) -> None:
    host, guest = opened()
    host.send(1, b"0123456789" * 9)
    host.finish(1)
    events = move(host, guest, limit)
    assert join(events) == b"0123456789" * 9
    assert events[-1] == Finished(1)
    guest.open()
    if limit >= GRANT_SIZE:
        assert move(guest, host, limit) == [Opened(2)]


def test_nothing_fits_into_too_small_a_limit() -> None:
    host, guest = opened()
    host.send(1, b"abc")
    guest.open()
    assert host.data_to_send(12) == b""
    assert guest.data_to_send(11) == b""
    assert guest.has_data_to_send
    assert guest.queued == 12


def test_bytes_of_a_peer_without_credit_are_bounded() -> None:
    host, guest = opened(MAX_STREAMS)
    for number in range(1, MAX_STREAMS + 1):
        guest.send(number, bytes(STREAM_WINDOW))
    assert guest.queued == MAX_STREAMS * STREAM_WINDOW
    events = move(guest, host)
    assert sum(len(e.data) for e in events if isinstance(e, Received)) == 256 * 128 * 1024


def test_no_more_streams_than_allowed_are_open() -> None:
    host, guest = opened(MAX_STREAMS)
    assert not guest.can_open
    with pytest.raises(LocalProtocolError, match="256"):
        guest.open()
    guest.reset(7)
    guest.open()
    assert move(guest, host) == [Reset(7), Opened(257)]
    with pytest.raises(RemoteProtocolError, match="More than 256"):
        host.receive_data(encode_short(F.OPEN, 258))


def test_numbers_of_streams_end() -> None:
    guest = Streams(Role.GUEST)
    guest._highest = LAST_STREAM
    assert not guest.can_open
    with pytest.raises(LocalProtocolError, match=str(LAST_STREAM)):
        guest.open()


VIOLATIONS = {
    "another number than the next": encode_short(F.OPEN, 3),
    "a number that is open": encode_short(F.OPEN, 1),
    "number zero": encode_short(F.OPEN, 0),
    "bytes of a stream never opened": encode_bytes(2, b"x"),
    "bytes of stream zero": encode_bytes(0, b"x"),
    "a grant for stream zero": encode_grant(0, 1),
    "the end of stream zero": encode_short(F.RESET, 0),
    "a grant over the window": encode_grant(1, DOWN_WINDOW - STREAM_WINDOW + 1),
    "a grant of nothing": encode_grant(1, 0),
    "no bytes": raw(F.STREAM, b"\0\0\0\1"),
    "a short number": raw(F.FINISH, b"\0\0\1"),
    "a long grant": raw(F.GRANT, bytes(9)),
    "a finish twice": encode_short(F.FINISH, 1) * 2,
    "bytes after a finish": encode_short(F.FINISH, 1) + encode_bytes(1, b"x"),
    "a frame of no stream": raw(F.PING, bytes(8)),
    "an unknown frame": raw(99),
    "more than the window": encode_bytes(1, bytes(MAX_STREAM_DATA)) * 5,
}


@pytest.mark.parametrize("stream", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violations_are_refused_for_good(stream: bytes) -> None:
    host, _ = opened()
    with pytest.raises(RemoteProtocolError) as first:
        host.receive_data(stream)
    with pytest.raises(RemoteProtocolError) as again:
        host.receive_data(encode_short(F.RESET, 1))
    assert again.value is first.value


def test_one_byte_more_than_granted_is_refused() -> None:
    host, _ = opened()
    for _ in range(4):
        host.receive_data(encode_bytes(1, bytes(MAX_STREAM_DATA)))
    rest = STREAM_WINDOW - 4 * MAX_STREAM_DATA
    host.receive_data(encode_bytes(1, bytes(rest - 1)))
    with pytest.raises(RemoteProtocolError, match="only 1 were granted"):
        host.receive_data(encode_bytes(1, b"xy"))


def test_host_may_not_open_at_a_guest() -> None:
    with pytest.raises(RemoteProtocolError, match="host may not send OPEN"):
        Streams(Role.GUEST).receive_data(encode_short(F.OPEN, 1))


def test_finished_stream_gets_no_grant() -> None:
    host, guest = opened()
    host.send(1, bytes(STREAM_WINDOW))
    host.finish(1)
    move(host, guest)
    guest.consumed(1, STREAM_WINDOW)
    assert guest.data_to_send() == b""
