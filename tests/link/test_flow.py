"""Credit, windows, priorities, limits: what flows, what waits, and what a receiver must hold.

Tests of a bound use ``small_limits``; tests of an owner's experience use the real ones.
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
    brought_to,
    carried,
    credit,
    data,
    events,
    joined,
    raw,
    small_limits,
    taken,
)


def written(stream: bytes) -> list[tuple[FrameType, int, int]]:
    """Type, channel and payload length of each frame."""
    reader = FrameReader()
    reader.receive_data(stream)
    return [
        (frame.type, frame.channel, len(frame.payload)) for frame in iter(reader.next_frame, None)
    ]


def all_to_send(end: Connection) -> bytes:
    return b"".join(iter(end.data_to_send, b""))


# -- what flows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD - 6, MAX_PAYLOAD - 5, WINDOW, 5_000_000])
@pytest.mark.parametrize("channel", DATA_CHANNELS, ids=lambda channel: channel.name)
def test_a_message_of_any_size_flows_both_ways(channel: Channel, size: int) -> None:
    """The sizes: empty, one byte, just one frame, just two, the window, several windows."""
    host, guest = joined()
    parts = [bytes(size)]
    host.send_message(channel, parts)
    guest.send_message(channel, parts)
    to_host, to_guest = carried(host, guest)
    for message in (*to_host, *to_guest):
        assert (message.channel, message.parts) == (channel, parts)
        assert message.size == size + 6 + FRAME_COST
    assert len(to_host) == len(to_guest) == 1
    assert host.held(channel) == guest.held(channel) == host.queued() == guest.queued() == 0


def test_messages_of_empty_parts_flow() -> None:
    host, guest = joined()
    sent = [[b""], [b"", b""], [b"", b"x", b""], [b""] * 4096]
    for parts in sent:
        guest.send_message(Channel.IOPUB, parts)
    to_host, _ = carried(host, guest)
    assert [message.parts for message in to_host] == sent


def test_a_frame_that_is_full_to_the_byte_takes_the_empty_parts_after_it() -> None:
    host, guest = joined()
    sent = [[bytes(MAX_PAYLOAD - 14), b"", b""], [bytes(3 * MAX_PAYLOAD - 14), b"", b""]]
    for parts in sent:
        guest.send_message(Channel.SHELL, parts)
    sizes = [length for _, _, length in written(guest.data_to_send())]
    assert sizes == [MAX_PAYLOAD] * 4
    guest.send_message(Channel.SHELL, sent[0])
    to_host, _ = carried(host, guest)
    assert to_host[-1].parts == sent[0]


def test_no_frame_is_longer_than_a_frame() -> None:
    host, guest = joined()
    for channel in DATA_CHANNELS:
        host.send_message(channel, [bytes(100_000), b"x" * 50_000])
        guest.send_message(channel, [b"y" * 7, bytes(150_000)])
    for end in (host, guest):
        assert max(length for _, _, length in written(all_to_send(end))) + 8 == MAX_FRAME


def test_each_channel_is_in_order() -> None:
    host, guest = joined()
    for number in range(600):
        guest.send_message(DATA_CHANNELS[number % 5], [b"%d" % number, bytes(number * 37 % 9000)])
    to_host, _ = carried(host, guest)
    for index, channel in enumerate(DATA_CHANNELS):
        numbers = [int(message.parts[0]) for message in to_host if message.channel is channel]
        assert numbers == list(range(index, 600, 5))


def test_a_message_is_not_copied_until_it_is_written() -> None:
    _, guest = joined()
    part = bytes(50_000_000)
    tracemalloc.start()
    try:
        guest.send_message(Channel.IOPUB, [part])
        assert tracemalloc.get_traced_memory()[1] < 100_000
        guest.data_to_send()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# -- what overtakes ------------------------------------------------------------------------------


def test_a_heartbeat_passes_an_output_of_64_mb() -> None:
    host, guest = joined()
    guest.send_message(Channel.IOPUB, [bytes(64_000_000)])
    host.receive_data(guest.data_to_send())
    guest.send_message(Channel.HB, [b"beat"])
    host.receive_data(guest.data_to_send(1))
    (message,) = events(host)
    assert isinstance(message, Message)
    assert message.parts == [b"beat"]
    assert guest.queued(Channel.IOPUB) > 63_000_000


def test_a_heartbeat_passes_an_output_that_no_client_takes() -> None:
    host, guest = joined()
    for _ in range(70):
        guest.send_message(Channel.IOPUB, [bytes(1_000_000)])
    host.receive_data(all_to_send(guest))
    guest.receive_data(all_to_send(host))
    assert guest.data_to_send() == b""
    assert guest.queued(Channel.IOPUB) > 64_000_000
    for channel in DATA_CHANNELS[:-1]:
        guest.send_message(channel, [b"beat"])
        assert written(guest.data_to_send()) == [(FrameType.DATA, channel, 10)]


def test_waiting_frames_leave_in_the_order_of_the_channels() -> None:
    _, guest = joined()
    for channel in reversed(DATA_CHANNELS):
        guest.send_message(channel, [b"x"])
    guest.send(Started(1))
    guest.receive_data(VALID[FrameType.PING])
    frames = written(guest.data_to_send())
    assert frames[:2] == [(FrameType.STARTED, 0, 4), (FrameType.PONG, 0, 8)]
    assert [channel for _, channel, _ in frames[2:]] == list(DATA_CHANNELS)


@pytest.mark.parametrize("limit", [1, 100, MAX_FRAME, 256 * 1024])
def test_data_to_send_gives_about_what_was_asked_for(limit: int) -> None:
    _, guest = joined()
    guest.send_message(Channel.IOPUB, [bytes(800_000)])
    pieces = list(iter(lambda: guest.data_to_send(limit), b""))
    assert all(len(piece) < limit + MAX_FRAME for piece in pieces)
    assert all(len(piece) >= limit for piece in pieces[:-1])
    assert written(b"".join(pieces))[-1][:2] == (FrameType.DATA, Channel.IOPUB)


# -- credit --------------------------------------------------------------------------------------


def test_a_sender_stops_at_the_window_and_goes_on_with_credit() -> None:
    host, guest = joined()
    for _ in range(20):
        guest.send_message(Channel.IOPUB, [bytes(100_000)])
    stream = all_to_send(guest)
    spent = sum(length + FRAME_COST for _, _, length in written(stream))
    assert WINDOW - FRAME_COST <= spent <= WINDOW
    host.receive_data(stream)
    first, *rest = events(host)
    assert host.data_to_send() == b""
    assert isinstance(first, Message)
    host.consumed(first)
    assert host.data_to_send() == b""  # not worth a frame
    for message in rest[:2]:
        assert isinstance(message, Message)
        host.consumed(message)
    stream = host.data_to_send()
    assert written(stream) == [(FrameType.CREDIT, Channel.IOPUB, 4)]
    granted = int.from_bytes(stream[-4:], "big")
    assert granted >= CREDIT_STEP
    guest.receive_data(stream)
    more = sum(length + FRAME_COST for _, _, length in written(all_to_send(guest)))
    assert granted - FRAME_COST <= more <= granted + FRAME_COST


def test_a_full_channel_holds_up_no_other() -> None:
    host, guest = joined()
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
def test_more_than_the_credit_breaks_the_rules(role: Role) -> None:
    frame = raw(FrameType.DATA, bytes(MAX_PAYLOAD), Channel.STDIN)
    fit = WINDOW // (MAX_PAYLOAD + FRAME_COST)
    end = brought_to(role, State.RUNNING)
    end.receive_data(frame * fit)
    with pytest.raises(RemoteProtocolError, match=r"on stdin costs \d+ bytes of credit"):
        end.receive_data(frame)


@pytest.mark.parametrize("role", Role)
def test_credit_over_the_window_breaks_the_rules(role: Role) -> None:
    end = brought_to(role, State.RUNNING)
    end.send_message(Channel.SHELL, [bytes(100_000)])
    spent = sum(length + FRAME_COST for _, _, length in written(end.data_to_send()))
    end.receive_data(credit(Channel.SHELL, spent))
    for amount in (1, 2**32 - 1):
        other = brought_to(role, State.RUNNING)
        other.receive_data(credit(Channel.SHELL, 0))
        with pytest.raises(RemoteProtocolError, match="over the window"):
            other.receive_data(credit(Channel.SHELL, amount))
    with pytest.raises(RemoteProtocolError, match="over the window"):
        end.receive_data(credit(Channel.SHELL, 1))


def test_credit_comes_back_while_nothing_runs() -> None:
    """A client that was slow takes its last messages after the kernel's exit."""
    host, guest = joined()
    guest.send_message(Channel.IOPUB, [bytes(WINDOW // 2)])
    host.receive_data(guest.data_to_send(WINDOW))
    guest.send(Exited(1, 0))
    host.receive_data(guest.data_to_send())
    taken(host)
    guest.receive_data(host.data_to_send())
    host.send(START)
    guest.receive_data(host.data_to_send())
    guest.send_message(Channel.IOPUB, [bytes(WINDOW * 9 // 10)])
    host.receive_data(all_to_send(guest))
    assert len(taken(host)) == 1


# -- what a hostile sender can make a receiver hold ----------------------------------------------


def flood(end: Connection, frame: bytes) -> int:
    """Send ``frame`` for as long as the rules allow, and take all credit: the most that was kept.

    That is whole messages, none consumed, and half a message.
    """
    most = 0
    for _ in range(100_000):
        try:
            end.receive_data(frame)
        except RemoteProtocolError:
            return most
        most = max(most, end.held(Channel.IOPUB) + end._flow.partial(Channel.IOPUB))
        end.data_to_send()
    raise AssertionError(f"there is no bound: {most} bytes are held")


@pytest.mark.parametrize("role", Role)
def test_whole_messages_are_held_up_to_the_window(role: Role) -> None:
    with small_limits(window=4096):
        for size in (0, 1, 30, 500, 2000):
            held = flood(brought_to(role, State.RUNNING), data(Channel.IOPUB, [bytes(size)]))
            assert 4096 - (size + 6 + 64) < held <= 4096


@pytest.mark.parametrize("role", Role)
def test_half_a_message_is_held_up_to_the_limit_of_a_message(role: Role) -> None:
    with small_limits(window=4096, message=65536):
        for size in (1, 99, 512, 2000):
            end = brought_to(role, State.RUNNING)
            total = flood(end, raw(FrameType.DATA, bytes(size), Channel.IOPUB))
            assert 65536 - size < total <= 65536


@pytest.mark.parametrize("role", Role)
def test_the_worst_of_both_is_a_window_and_a_message(role: Role) -> None:
    """Nearly a window held, then one message as large as may be, then what credit is left."""
    window, step, message = 4096, 1024, 65536
    with small_limits(window=window, step=step, message=message):
        for fill in range(0, window - step, 256):
            end = brought_to(role, State.RUNNING)
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


def test_a_sender_that_does_not_read_gets_no_credit() -> None:
    with small_limits(window=4096, message=65536):
        host = brought_to(Role.HOST, State.RUNNING)
        message = data(Channel.IOPUB, [bytes(100)])
        for _ in range(4096 // (106 + 64)):
            host.receive_data(message)
            assert len(taken(host)) == 1
        with pytest.raises(RemoteProtocolError, match="bytes of credit; only"):
            host.receive_data(message)


def test_a_window_of_the_smallest_messages_takes_about_a_window_of_memory() -> None:
    host = brought_to(Role.HOST, State.RUNNING)
    message = data(Channel.IOPUB, [b"ab"])
    tracemalloc.start()
    try:
        for _ in range(WINDOW // (8 + FRAME_COST)):
            host.receive_data(message)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 1.2 * WINDOW


def test_a_message_over_the_limit_breaks_the_rules_before_it_is_held() -> None:
    with small_limits(message=65536):
        guest = brought_to(Role.GUEST, State.RUNNING)
        fragment = raw(FrameType.DATA, bytes(1024), Channel.SHELL)
        for _ in range(64):
            guest.receive_data(fragment)
            guest.data_to_send()
        with pytest.raises(RemoteProtocolError, match="limit of 65536"):
            guest.receive_data(raw(FrameType.DATA, b"x", Channel.SHELL, FLAG_LAST))
        assert guest._flow.partial(Channel.SHELL) == 0


@pytest.mark.parametrize("channel", sorted(SMALL_CHANNELS), ids=lambda channel: channel.name)
def test_where_no_message_is_large_half_of_one_is_not_either(channel: Channel) -> None:
    assert largest_message(channel) == MAX_SMALL_MESSAGE < largest_message(Channel.IOPUB)
    host, guest = joined()
    with pytest.raises(LocalProtocolError, match=f"limit of {MAX_SMALL_MESSAGE}"):
        guest.send_message(channel, [bytes(MAX_SMALL_MESSAGE)])
    guest.send_message(channel, [bytes(MAX_SMALL_MESSAGE - 6)])
    assert len(carried(host, guest)[0]) == 1
    fragment = raw(FrameType.DATA, bytes(MAX_PAYLOAD), channel)
    for _ in range(MAX_SMALL_MESSAGE // MAX_PAYLOAD):
        host.receive_data(fragment)
        host.data_to_send()
    with pytest.raises(RemoteProtocolError, match=f"{channel.name.lower()} is over the limit"):
        host.receive_data(fragment)
    assert host._flow.partial(channel) == 0


def test_a_message_may_be_consumed_once() -> None:
    host, guest = joined()
    guest.send_message(Channel.IOPUB, [b"x"])
    host.receive_data(guest.data_to_send())
    (message,) = events(host)
    assert isinstance(message, Message)
    host.consumed(message)
    with pytest.raises(LocalProtocolError, match="already consumed"):
        host.consumed(message)
    assert host.held(Channel.IOPUB) == 0


# -- a new run -----------------------------------------------------------------------------------


def test_a_new_run_begins_with_whole_messages_both_ways() -> None:
    """Both ends were in the middle of a message on every channel when the kernel died."""
    host, guest = joined()
    for channel in DATA_CHANNELS:
        for end in (host, guest):
            end.send_message(channel, [b"old", bytes(2 * WINDOW)])
    guest.receive_data(host.data_to_send(4 * WINDOW))
    host.receive_data(guest.data_to_send(4 * WINDOW))
    assert host.queued() > 0
    assert guest.queued() > 0
    assert events(host) == events(guest) == []
    in_flight = host.data_to_send()  # credit, and then more of the old messages
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
    for messages in carried(host, guest):
        assert {message.channel for message in messages} == set(DATA_CHANNELS)
        assert all(message.parts == [b"new", bytes(2 * WINDOW)] for message in messages)


def test_a_hundred_runs_lose_no_credit() -> None:
    host, guest = joined()
    for _ in range(100):
        for end in (host, guest):
            end.send_message(Channel.SHELL, [bytes(WINDOW + 50_000)])
        guest.receive_data(host.data_to_send(300_000))
        host.receive_data(guest.data_to_send(300_000))
        guest.send(Exited(1, 1))
        carried(host, guest)
        host.send(START)
        carried(host, guest)
    for end in (host, guest):
        end.send_message(Channel.SHELL, [bytes(WINDOW * 2 // 3)])
        assert sum(length for _, _, length in written(end.data_to_send(WINDOW))) > WINDOW * 2 // 3
