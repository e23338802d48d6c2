"""Flow control: credit, windows, priorities, limits, and the memory that a receiver may need.

Tests of a bound use ``small_limits``. Tests of what an owner sees use the real limits.
"""

from __future__ import annotations

import tracemalloc

import pytest

from gvisor_kernel.link import (
    Channel,
    Connection,
    Exited,
    LocalProtocolError,
    Message,
    RemoteProtocolError,
    Started,
)
from gvisor_kernel.link.flow import CREDIT_STEP, FRAME_COST, WINDOW
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    FLAG_LAST,
    MAX_FRAME,
    MAX_PAYLOAD,
    MAX_SMALL_MESSAGE,
    SMALL_CHANNELS,
    FrameReader,
    FrameType,
    largest_message,
)
from gvisor_kernel.link.state import Role, State

from .helpers import (
    START,
    VALID,
    connected_pair,
    connection_in,
    consume_messages,
    credit,
    data,
    events,
    exchange,
    partial,
    raw,
    small_limits,
)


def headers(stream: bytes) -> list[tuple[FrameType, int, int]]:
    """Return type, channel and payload length of each frame."""
    reader = FrameReader()
    reader.receive_data(stream)
    return [
        (frame.type, frame.channel, len(frame.payload)) for frame in iter(reader.next_frame, None)
    ]


def drain(end: Connection) -> bytes:
    return b"".join(iter(end.data_to_send, b""))


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD - 6, MAX_PAYLOAD - 5, WINDOW, 5_000_000])
@pytest.mark.parametrize("channel", DATA_CHANNELS, ids=lambda channel: channel.name)
def test_message_of_any_size_arrives_in_both_directions(channel: Channel, size: int) -> None:
    """The sizes: empty, one byte, exactly one frame, two frames, the window, several windows."""
    host, guest = connected_pair()
    parts = [bytes(size)]
    host.send_message(channel, parts)
    guest.send_message(channel, parts)
    to_host, to_guest = exchange(host, guest)
    for message in (*to_host, *to_guest):
        assert (message.channel, message.parts) == (channel, parts)
        assert message.size == size + 6 + FRAME_COST
    assert len(to_host) == len(to_guest) == 1
    assert host.held(channel) == guest.held(channel) == host.queued() == guest.queued() == 0


def test_empty_parts_arrive() -> None:
    host, guest = connected_pair()
    sent = [[b""], [b"", b""], [b"", b"x", b""], [b""] * 4096]
    for parts in sent:
        guest.send_message(Channel.IOPUB, parts)
    to_host, _ = exchange(host, guest)
    assert [message.parts for message in to_host] == sent


def test_full_frame_includes_the_empty_parts_that_follow() -> None:
    host, guest = connected_pair()
    sent = [[bytes(MAX_PAYLOAD - 14), b"", b""], [bytes(3 * MAX_PAYLOAD - 14), b"", b""]]
    for parts in sent:
        guest.send_message(Channel.SHELL, parts)
    sizes = [length for _, _, length in headers(guest.data_to_send())]
    assert sizes == [MAX_PAYLOAD] * 4
    guest.send_message(Channel.SHELL, sent[0])
    to_host, _ = exchange(host, guest)
    assert to_host[-1].parts == sent[0]


def test_no_frame_exceeds_the_frame_limit() -> None:
    host, guest = connected_pair()
    for channel in DATA_CHANNELS:
        host.send_message(channel, [bytes(100_000), b"x" * 50_000])
        guest.send_message(channel, [b"y" * 7, bytes(150_000)])
    for end in (host, guest):
        assert max(length for _, _, length in headers(drain(end))) + 8 == MAX_FRAME


def test_messages_of_a_channel_arrive_in_order() -> None:
    host, guest = connected_pair()
    for number in range(600):
        channel = DATA_CHANNELS[number % len(DATA_CHANNELS)]
        guest.send_message(channel, [b"%d" % number, bytes(number * 37 % 9000)])
    to_host, _ = exchange(host, guest)
    for index, channel in enumerate(DATA_CHANNELS):
        numbers = [int(message.parts[0]) for message in to_host if message.channel is channel]
        assert numbers == list(range(index, 600, len(DATA_CHANNELS)))


def test_queued_message_is_not_copied() -> None:
    _, guest = connected_pair()
    part = bytes(50_000_000)
    tracemalloc.start()
    try:
        guest.send_message(Channel.IOPUB, [part])
        assert tracemalloc.get_traced_memory()[1] < 100_000
        guest.data_to_send()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# -- priorities ----------------------------------------------------------------------------------


def test_heartbeat_overtakes_output_of_64_mb() -> None:
    host, guest = connected_pair()
    guest.send_message(Channel.IOPUB, [bytes(64_000_000)])
    host.receive_data(guest.data_to_send())
    guest.send_message(Channel.HB, [b"beat"])
    host.receive_data(guest.data_to_send(1))
    (message,) = events(host)
    assert isinstance(message, Message)
    assert message.parts == [b"beat"]
    assert guest.queued(Channel.IOPUB) > 63_000_000


def test_heartbeat_is_sent_while_output_has_no_credit() -> None:
    host, guest = connected_pair()
    for _ in range(70):
        guest.send_message(Channel.IOPUB, [bytes(1_000_000)])
    host.receive_data(drain(guest))
    guest.receive_data(drain(host))
    assert guest.data_to_send() == b""
    assert guest.queued(Channel.IOPUB) > 64_000_000
    for channel in set(DATA_CHANNELS) - {Channel.IOPUB}:
        guest.send_message(channel, [b"beat"])
        assert headers(guest.data_to_send()) == [(FrameType.DATA, channel, 10)]


def test_waiting_frames_are_sent_in_channel_order() -> None:
    _, guest = connected_pair()
    for channel in reversed(DATA_CHANNELS):
        guest.send_message(channel, [b"x"])
    guest.send(Started(1))
    guest.receive_data(VALID[FrameType.PING])
    frames = headers(guest.data_to_send())
    assert frames[:2] == [(FrameType.STARTED, 0, 4), (FrameType.PONG, 0, 8)]
    assert [channel for _, channel, _ in frames[2:]] == list(DATA_CHANNELS)


@pytest.mark.parametrize("limit", [1, 100, MAX_FRAME, 256 * 1024])
def test_data_to_send_returns_about_the_limit(limit: int) -> None:
    _, guest = connected_pair()
    guest.send_message(Channel.IOPUB, [bytes(800_000)])
    pieces = list(iter(lambda: guest.data_to_send(limit), b""))
    assert all(len(piece) < limit + MAX_FRAME for piece in pieces)
    assert all(len(piece) >= limit for piece in pieces[:-1])
    assert headers(b"".join(pieces))[-1][:2] == (FrameType.DATA, Channel.IOPUB)


# -- credit --------------------------------------------------------------------------------------


def test_sender_stops_at_the_window_and_continues_with_credit() -> None:
    host, guest = connected_pair()
    for _ in range(20):
        guest.send_message(Channel.IOPUB, [bytes(100_000)])
    stream = drain(guest)
    spent = sum(length + FRAME_COST for _, _, length in headers(stream))
    assert WINDOW - FRAME_COST <= spent <= WINDOW
    host.receive_data(stream)
    first, *rest = events(host)
    assert host.data_to_send() == b""
    assert isinstance(first, Message)
    host.consumed(first)
    assert host.data_to_send() == b""  # too little credit for a frame
    for message in rest[:2]:
        assert isinstance(message, Message)
        host.consumed(message)
    stream = host.data_to_send()
    assert headers(stream) == [(FrameType.CREDIT, Channel.IOPUB, 4)]
    granted = int.from_bytes(stream[-4:], "big")
    assert granted >= CREDIT_STEP
    guest.receive_data(stream)
    more = sum(length + FRAME_COST for _, _, length in headers(drain(guest)))
    assert granted - FRAME_COST <= more <= granted + FRAME_COST


def test_full_channel_does_not_block_other_channels() -> None:
    host, guest = connected_pair()
    guest.send_message(Channel.IOPUB, [bytes(WINDOW * 7 // 8)])
    guest.send_message(Channel.IOPUB, [bytes(WINDOW)])
    guest.send_message(Channel.SHELL, [bytes(3 * WINDOW)])
    shell: list[Message] = []
    while stream := guest.data_to_send():
        host.receive_data(stream)
        for event in events(host):
            assert isinstance(event, Message)
            if event.channel is Channel.SHELL:
                host.consumed(event)
                shell.append(event)
        guest.receive_data(host.data_to_send())
    assert [len(message.parts[0]) for message in shell] == [3 * WINDOW]
    assert guest.queued(Channel.IOPUB) > 0
    assert host.held(Channel.IOPUB) == WINDOW * 7 // 8 + 6 + FRAME_COST


@pytest.mark.parametrize("role", Role)
def test_data_beyond_the_credit_is_refused(role: Role) -> None:
    frame = raw(FrameType.DATA, bytes(MAX_PAYLOAD), Channel.STDIN)
    fit = WINDOW // (MAX_PAYLOAD + FRAME_COST)
    end = connection_in(role, State.RUNNING)
    end.receive_data(frame * fit)
    with pytest.raises(RemoteProtocolError, match=r"on stdin costs \d+ bytes of credit"):
        end.receive_data(frame)


@pytest.mark.parametrize("role", Role)
def test_credit_beyond_the_window_is_refused(role: Role) -> None:
    end = connection_in(role, State.RUNNING)
    end.send_message(Channel.SHELL, [bytes(100_000)])
    spent = sum(length + FRAME_COST for _, _, length in headers(end.data_to_send()))
    end.receive_data(credit(Channel.SHELL, spent))
    for amount in (1, 2**32 - 1):
        other = connection_in(role, State.RUNNING)
        other.receive_data(credit(Channel.SHELL, 0))
        with pytest.raises(RemoteProtocolError, match="over the window"):
            other.receive_data(credit(Channel.SHELL, amount))
    with pytest.raises(RemoteProtocolError, match="over the window"):
        end.receive_data(credit(Channel.SHELL, 1))


def test_messages_consumed_while_idle_leave_next_runs_credit_unchanged() -> None:
    """A slow client takes its last messages after the kernel has exited."""
    host, guest = connected_pair()
    guest.send_message(Channel.IOPUB, [bytes(WINDOW // 2)])
    host.receive_data(guest.data_to_send(WINDOW))
    guest.send(Exited(1, 0))
    host.receive_data(guest.data_to_send())
    consume_messages(host)
    guest.receive_data(host.data_to_send())
    host.send(START)
    guest.receive_data(host.data_to_send())
    guest.send_message(Channel.IOPUB, [bytes(WINDOW * 9 // 10)])
    host.receive_data(drain(guest))
    assert len(consume_messages(host)) == 1


# -- the most that a hostile sender can make a receiver hold -------------------------------------


def flood(end: Connection, frame: bytes) -> int:
    """Send ``frame`` while it is accepted, and take all credit. Return the most bytes held.

    They are whole messages, of which none is consumed, and a partial one.
    """
    most = 0
    for _ in range(100_000):
        try:
            end.receive_data(frame)
        except RemoteProtocolError:
            return most
        most = max(most, end.held(Channel.IOPUB) + partial(end, Channel.IOPUB))
        end.data_to_send()
    raise AssertionError(f"no bound was reached: {most} bytes are held")


@pytest.mark.parametrize("role", Role)
def test_held_messages_are_bounded_by_the_window(role: Role) -> None:
    with small_limits(window=4096):
        for size in (0, 1, 30, 500, 2000):
            held = flood(connection_in(role, State.RUNNING), data(Channel.IOPUB, [bytes(size)]))
            assert 4096 - (size + 6 + 64) < held <= 4096


@pytest.mark.parametrize("role", Role)
def test_partial_message_is_bounded_by_the_message_limit(role: Role) -> None:
    with small_limits(window=4096, message=65536):
        for size in (1, 99, 512, 2000):
            end = connection_in(role, State.RUNNING)
            total = flood(end, raw(FrameType.DATA, bytes(size), Channel.IOPUB))
            assert 65536 - size < total <= 65536


@pytest.mark.parametrize("role", Role)
def test_held_bytes_are_bounded_by_a_window_and_a_message(role: Role) -> None:
    """Hold nearly a window, then one message of the largest size, then use the remaining credit."""
    window, step, message = 4096, 1024, 65536
    with small_limits(window=window, step=step, message=message):
        for fill in range(0, window - step, 256):
            end = connection_in(role, State.RUNNING)
            while end.held(Channel.IOPUB) < fill:
                end.receive_data(data(Channel.IOPUB, [bytes(20)]))
            head = b"\0\1" + (message - 6).to_bytes(4, "big")
            end.receive_data(raw(FrameType.DATA, head, Channel.IOPUB))
            left = message - 6
            while left > 200:
                end.receive_data(raw(FrameType.DATA, bytes(200), Channel.IOPUB))
                end.data_to_send()
                left -= 200
            end.receive_data(raw(FrameType.DATA, bytes(left), Channel.IOPUB, FLAG_LAST))
            assert end.held(Channel.IOPUB) >= fill + message
            total = flood(end, raw(FrameType.DATA, bytes(100), Channel.IOPUB))
            assert fill + message < total <= window + message


def test_sender_that_does_not_read_gets_no_credit() -> None:
    with small_limits(window=4096, message=65536):
        host = connection_in(Role.HOST, State.RUNNING)
        message = data(Channel.IOPUB, [bytes(100)])
        for _ in range(4096 // (106 + 64)):
            host.receive_data(message)
            assert len(consume_messages(host)) == 1
        with pytest.raises(RemoteProtocolError, match="bytes of credit; only"):
            host.receive_data(message)


def test_window_of_smallest_messages_needs_about_a_window_of_memory() -> None:
    host = connection_in(Role.HOST, State.RUNNING)
    message = data(Channel.IOPUB, [b"ab"])
    tracemalloc.start()
    try:
        for _ in range(WINDOW // (8 + FRAME_COST)):
            host.receive_data(message)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 1.2 * WINDOW


def test_message_over_the_limit_is_refused_before_it_is_held() -> None:
    with small_limits(message=65536):
        guest = connection_in(Role.GUEST, State.RUNNING)
        fragment = raw(FrameType.DATA, bytes(1024), Channel.SHELL)
        for _ in range(64):
            guest.receive_data(fragment)
            guest.data_to_send()
        with pytest.raises(RemoteProtocolError, match="limit of 65536"):
            guest.receive_data(raw(FrameType.DATA, b"x", Channel.SHELL, FLAG_LAST))
        assert partial(guest, Channel.SHELL) == 0


@pytest.mark.parametrize("channel", sorted(SMALL_CHANNELS), ids=lambda channel: channel.name)
def test_small_channels_have_a_lower_message_limit(channel: Channel) -> None:
    assert largest_message(channel) == MAX_SMALL_MESSAGE < largest_message(Channel.IOPUB)
    host, guest = connected_pair()
    with pytest.raises(LocalProtocolError, match=f"limit of {MAX_SMALL_MESSAGE}"):
        guest.send_message(channel, [bytes(MAX_SMALL_MESSAGE)])
    guest.send_message(channel, [bytes(MAX_SMALL_MESSAGE - 6)])
    assert len(exchange(host, guest)[0]) == 1
    fragment = raw(FrameType.DATA, bytes(MAX_PAYLOAD), channel)
    for _ in range(MAX_SMALL_MESSAGE // MAX_PAYLOAD):
        host.receive_data(fragment)
        host.data_to_send()
    with pytest.raises(RemoteProtocolError, match=f"{channel.name.lower()} is over the limit"):
        host.receive_data(fragment)
    assert partial(host, channel) == 0


def test_message_cannot_be_consumed_twice() -> None:
    host, guest = connected_pair()
    guest.send_message(Channel.IOPUB, [b"x"])
    host.receive_data(guest.data_to_send())
    (message,) = events(host)
    assert isinstance(message, Message)
    host.consumed(message)
    with pytest.raises(LocalProtocolError, match="already consumed"):
        host.consumed(message)
    assert host.held(Channel.IOPUB) == 0


# -- a new run -----------------------------------------------------------------------------------


def test_new_run_drops_partial_messages_of_the_last_run() -> None:
    """Both ends are in the middle of a message on every channel when the kernel exits."""
    host, guest = connected_pair()
    for channel in DATA_CHANNELS:
        for end in (host, guest):
            end.send_message(channel, [b"old", bytes(2 * WINDOW)])
    guest.receive_data(host.data_to_send(4 * WINDOW))
    host.receive_data(guest.data_to_send(4 * WINDOW))
    assert host.queued() > 0
    assert guest.queued() > 0
    assert events(host) == events(guest) == []
    in_flight = host.data_to_send()  # credit, followed by more of the old messages
    guest.send(Exited(1, -9))
    assert guest.queued() == 0
    guest.receive_data(in_flight)
    host.receive_data(guest.data_to_send())
    assert events(host) == [Exited(1, -9)]
    assert host.queued() == 0
    host.send(START)
    guest.receive_data(host.data_to_send())
    assert events(guest) == [START]
    for channel in DATA_CHANNELS:
        for end in (host, guest):
            end.send_message(channel, [b"new", bytes(2 * WINDOW)])
    for messages in exchange(host, guest):
        assert {message.channel for message in messages} == set(DATA_CHANNELS)
        assert all(message.parts == [b"new", bytes(2 * WINDOW)] for message in messages)


def test_hundred_runs_lose_no_credit() -> None:
    host, guest = connected_pair()
    for _ in range(100):
        for end in (host, guest):
            end.send_message(Channel.SHELL, [bytes(WINDOW + 50_000)])
        guest.receive_data(host.data_to_send(300_000))
        host.receive_data(guest.data_to_send(300_000))
        guest.send(Exited(1, 1))
        exchange(host, guest)
        host.send(START)
        exchange(host, guest)
    for end in (host, guest):
        end.send_message(Channel.SHELL, [bytes(WINDOW * 2 // 3)])
        assert sum(length for _, _, length in headers(end.data_to_send(WINDOW))) > WINDOW * 2 // 3
