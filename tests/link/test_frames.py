"""Frames as bytes: fed whole, byte by byte and with trailing data, and all malformed headers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gvisor_kernel.link import Channel, LocalProtocolError, LogSource, RemoteProtocolError
from gvisor_kernel.link.frames import (
    FLAG_LAST,
    HEADER,
    MAX_FRAME,
    MAX_PAYLOAD,
    Frame,
    FrameReader,
    FrameType,
    encode_frame,
)

from .helpers import VALID, byte_by_byte, raw, whole

Feed = Callable[[Callable[[bytes], object], bytes], None]
parametrize_feed = pytest.mark.parametrize("feed", [whole, byte_by_byte])


def read_frames(stream: bytes, feed: Feed = whole) -> tuple[list[Frame], FrameReader]:
    reader = FrameReader()
    found: list[Frame] = []

    def take(piece: bytes) -> None:
        reader.receive_data(piece)
        found.extend(iter(reader.next_frame, None))

    feed(take, stream)
    return found, reader


@parametrize_feed
@pytest.mark.parametrize("kind", FrameType, ids=lambda kind: kind.name)
def test_frame_decodes_to_the_encoded_frame(kind: FrameType, feed: Feed) -> None:
    (frame,), reader = read_frames(VALID[kind], feed)
    assert encode_frame(frame.type, frame.payload, frame.channel, frame.flags) == VALID[kind]
    assert frame.type is kind
    assert reader.pending == 0


@parametrize_feed
def test_consecutive_frames_are_all_read(feed: Feed) -> None:
    found, reader = read_frames(b"".join(VALID.values()) * 3, feed)
    assert [frame.type for frame in found] == list(FrameType) * 3
    assert reader.pending == 0


@parametrize_feed
@pytest.mark.parametrize("cut", range(1, 12))
def test_incomplete_frame_stays_pending(cut: int, feed: Feed) -> None:
    second = VALID[FrameType.PING]
    found, reader = read_frames(VALID[FrameType.STATS] + second[:cut], feed)
    assert [frame.type for frame in found] == [FrameType.STATS]
    assert reader.pending == cut
    reader.receive_data(second[cut:])
    frame = reader.next_frame()
    assert frame is not None
    assert encode_frame(frame.type, frame.payload) == second
    assert reader.next_frame() is None


@parametrize_feed
def test_largest_frame_is_read(feed: Feed) -> None:
    payload = bytes(range(256)) * (MAX_PAYLOAD // 256) + b"tail"
    payload = payload[:MAX_PAYLOAD].ljust(MAX_PAYLOAD, b".")
    stream = encode_frame(FrameType.DATA, payload, Channel.HB, FLAG_LAST)
    assert len(stream) == MAX_FRAME == 32 * 1024
    (frame,), _ = read_frames(stream, feed)
    assert frame.payload == payload


def test_frame_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError, match="32761"):
        encode_frame(FrameType.LOG, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(RemoteProtocolError, match="announces 32761"):
        read_frames(HEADER.pack(FrameType.LOG, 0, 0, 0, MAX_PAYLOAD + 1))


MALFORMED = {
    "type 0": raw(0),
    "type 12, which was STOP": raw(12),
    "type 23": raw(23),
    "type 255": raw(255),
    "last byte of header": raw(FrameType.PING, bytes(8), zero=1),
    "unknown flag": raw(FrameType.DATA, b"x", 1, flags=2),
    "all flags": raw(FrameType.DATA, b"x", 1, flags=255),
    "last flag on another frame": raw(FrameType.PING, bytes(8), flags=FLAG_LAST),
    "data without channel": raw(FrameType.DATA, b"x", 0),
    "data on channel 7": raw(FrameType.DATA, b"x", 7),
    "credit without channel": raw(FrameType.CREDIT, bytes(4), 0),
    "credit on channel 255": raw(FrameType.CREDIT, bytes(4), 255),
    "ping on a channel": raw(FrameType.PING, bytes(8), 1),
    "hello on a channel": raw(FrameType.HELLO, b"{}", 5),
    "log from source 4": raw(FrameType.LOG, b"x", 4),
    "length of 4 GiB": HEADER.pack(FrameType.DATA, 1, 0, 0, 2**32 - 1),
}


@parametrize_feed
@pytest.mark.parametrize("stream", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_header_is_refused_without_its_payload(stream: bytes, feed: Feed) -> None:
    """The payload is not waited for, and the frame before is still read."""
    reader = FrameReader()
    feed(reader.receive_data, VALID[FrameType.STATS] + stream[: HEADER.size])
    assert reader.next_frame() is not None
    with pytest.raises(RemoteProtocolError):
        reader.next_frame()


def test_reader_keeps_no_data_of_read_frames() -> None:
    reader = FrameReader()
    reader.receive_data(VALID[FrameType.DATA] * 20_000 + b"\4")
    while reader.next_frame() is not None:
        pass
    reader.receive_data(b"")
    assert reader.pending == 1
    assert len(reader._buffer) == 1


def test_repr_of_frames_contains_no_payload() -> None:
    def shown(stream: bytes) -> str:
        (frame,), _ = read_frames(stream)
        assert repr(frame) == str(frame)
        return str(frame)

    assert shown(raw(FrameType.DATA, b"12345", Channel.IOPUB, FLAG_LAST)) == (
        "<DATA iopub last 5 bytes>"
    )
    assert shown(raw(FrameType.DATA, b"1", Channel.HB)) == "<DATA hb 1 bytes>"
    assert shown(raw(FrameType.LOG, b"text", LogSource.STDOUT)) == "<LOG stdout 4 bytes>"
    assert "secret" not in shown(VALID[FrameType.START])
