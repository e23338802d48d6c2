"""Frames of a server, in pieces of any size, and frames that no server sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.runtimes.kubernetes.attach import (
    ERROR,
    STDERR,
    STDOUT,
    ChannelError,
    Channels,
)

PING, PONG = 9, 10


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """Return a frame as a server sends it."""
    first = bytes(((0x80 if final else 0) | opcode,))
    size = len(payload)
    if size < 126:
        return first + bytes((size,)) + payload
    if size < 1 << 16:
        return first + bytes((126,)) + size.to_bytes(2) + payload
    return first + bytes((127,)) + size.to_bytes(8) + payload


def read(channels: Channels, data: bytes, step: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(data), step):
        for channel, piece in channels.receive(data[at : at + step]):
            if found and found[-1][0] == channel:
                found[-1] = channel, found[-1][1] + bytes(piece)
            else:
                found.append((channel, bytes(piece)))
    return found


@given(
    messages=st.lists(
        st.tuples(st.sampled_from((STDOUT, STDERR, ERROR)), st.binary(min_size=1, max_size=300)),
        max_size=6,
    ),
    step=st.integers(1, 200),
    split=st.integers(1, 300),
)
def test_channels_are_told_apart_at_any_piece_size(
    messages: list[tuple[int, bytes]], step: int, split: int
) -> None:
    data = b""
    for channel, payload in messages:
        whole = bytes((channel,)) + payload
        parts = [whole[at : at + split] for at in range(0, len(whole), split)]
        for i, part in enumerate(parts):
            data += frame(2 if i == 0 else 0, part, final=i == len(parts) - 1)
            data += frame(PING, b"beside")
    channels = Channels()
    joined: dict[int, bytes] = {}
    for channel, piece in read(channels, data, step):
        joined[channel] = joined.get(channel, b"") + piece
    expected: dict[int, bytes] = {}
    for channel, payload in messages:
        expected[channel] = expected.get(channel, b"") + payload
    assert joined == expected


def test_a_long_message_is_handed_on_as_it_comes() -> None:
    channels = Channels()
    data = frame(2, bytes((STDOUT,)) + bytes(1 << 20))
    assert read(channels, data[:70_000], 70_000)[0][0] == STDOUT
    assert sum(len(piece) for _, piece in read(channels, data[70_000:], 50_000)) > 900_000


def test_a_ping_is_answered_and_the_end_is_noticed() -> None:
    channels = Channels()
    assert read(channels, frame(PING, b"x") + frame(8, b"\x03\xe8"), 3) == []
    assert channels.pongs[0][0] & 0x0F == PONG
    assert channels.closed


def test_a_frame_for_stdin_is_masked() -> None:
    made = Channels().write_stdin(b"hello" * 100)
    assert made[1] & 0x80
    mask, payload = made[4:8], made[8:]
    assert bytes(c ^ mask[i % 4] for i, c in enumerate(payload)) == b"\0" + b"hello" * 100


@pytest.mark.parametrize(
    "data",
    [
        frame(3, b"x"),
        b"\xc2\x01x",
        b"\x82\x81abcde",
        b"\x82\x7f" + (1 << 63).to_bytes(8),
        frame(1, b"a text"),
        frame(8, b"\x03\xf3failed"),
        frame(PING, bytes(126)),
        frame(PING, b"", final=False),
        frame(2, b"\x01x", final=False) + frame(2, b"\x01y"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ChannelError):
        read(Channels(), data, len(data))
