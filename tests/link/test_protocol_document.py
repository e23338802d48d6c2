"""docs/protocol.md describes the code: its tables are read and compared in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gvisor_kernel.bridge import link_streams, sleep
from gvisor_kernel.guest import host_link
from gvisor_kernel.link import (
    Channel,
    LogSource,
    backlog,
    connection,
    events,
    flow,
    frames,
    service_messages,
    streams,
)
from gvisor_kernel.link.frames import (
    DATA_CHANNELS,
    FrameType,
    encode_bytes,
    encode_grant,
    encode_short,
    pack_message,
)
from gvisor_kernel.link.state import ALWAYS, LATE, SENDERS, STALE, TRANSITIONS, Role, State

from ..world import PROJECT
from .helpers import VALID, data

MODULES = (frames, flow, connection, backlog, streams, service_messages)
"""The modules whose limits the page lists."""
TEXT = (PROJECT / "docs" / "protocol.md").read_text(encoding="utf-8")


def read_table(first: str, second: str) -> Iterator[list[str]]:
    """Yield the rows of the table whose header begins with these two cells."""
    head = re.search(rf"^\| {first} \| {second} \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert head is not None, f"there is no table of {first} and {second}"
    for line in head[1].splitlines():
        yield [cell.strip() for cell in line.strip("|").split("|")]


def parse_number(text: str) -> int:
    return int(text.replace(",", ""))


def test_document_lists_number_and_senders_of_each_frame() -> None:
    documented = {row[1]: (int(row[0]), row[2]) for row in read_table("type", "name")}
    roles = {"host": {Role.HOST}, "guest": {Role.GUEST}, "both": set(Role)}
    assert documented == {
        kind.name: (
            int(kind),
            next(
                name
                for name, senders in roles.items()
                if senders == {role for role in Role if kind in SENDERS[role]}
            ),
        )
        for kind in FrameType
    }


def test_document_states_payload_sizes() -> None:
    for row in read_table("type", "name"):
        kind, payload = FrameType[row[1]], row[3]
        size = len(VALID[kind]) - frames.HEADER.size
        if payload == "JSON":
            assert VALID[kind][frames.HEADER.size :].startswith(b"{")
        elif "to" in payload:
            assert payload.endswith(f" to {frames.MAX_PAYLOAD:,} bytes")
            if kind in frames.STREAM_SIZES:
                least, most = frames.STREAM_SIZES[kind]
                assert payload == f"{least} to {most:,} bytes"
        else:
            assert payload == (f"{size} bytes" if size else "none")
    for names, sizes, _ in read_table("frame", "bytes"):
        for name in names.split(", "):
            size = len(VALID[FrameType[name]]) - frames.HEADER.size
            assert sum(map(int, sizes.split(", "))) == size, name


def test_document_lists_all_transitions() -> None:
    documented = [
        (State(before), FrameType[name], State(after))
        for before, name, after in read_table("state", "frame")
    ]
    assert len(documented) == len(set(documented))
    assert {(before, kind): after for before, kind, after in documented} == TRANSITIONS


def test_document_lists_frames_outside_the_transitions() -> None:
    (calm,) = re.findall(r"([A-Z, ]+ and PONG) change no state", TEXT)
    assert {FrameType[name] for name in re.findall(r"[A-Z]+", calm)} == ALWAYS
    (late,) = re.findall(r"\*\*([A-Z_, ]+ and [A-Z_]+) at an idle guest, after a run", TEXT)
    assert {FrameType[name] for name in re.findall(r"[A-Z_]+", late)} == LATE
    (stale,) = re.findall(r"\*\*([A-Z_, ]+ and [A-Z_]+) at a resuming host", TEXT)
    assert {FrameType[name] for name in re.findall(r"[A-Z_]+", stale)} == STALE
    for name in State:
        assert f"*{name.value}*" in TEXT


def test_document_lists_all_limits() -> None:
    documented = {row[0].strip("`"): parse_number(row[1]) for row in read_table("name", "value")}
    for name, value in documented.items():
        module = next(m for m in MODULES if hasattr(m, name))
        assert getattr(module, name) == value, name
    limits = {name for module in MODULES for name in vars(module) if name.startswith("MAX_")}
    assert set(documented) == limits | {
        *("WINDOW", "FRAME_COST", "FRAME_PRICE", "CREDIT_STEP", "PONGS_KEPT", "FIRST_QUESTION"),
        *("STREAM_WINDOW", "DOWN_WINDOW", "GRANT_STEP", "STREAM_BACKLOG", "BACKLOG_STEP"),
    }


def test_document_lists_channels_and_log_sources() -> None:
    documented = {row[1]: int(row[0]) for row in read_table("byte", "channel")}
    assert documented == {channel.name.lower(): int(channel) for channel in Channel if channel}
    assert "CREDIT, then " + ", ".join(channel.name.lower() for channel in DATA_CHANNELS) in TEXT
    assert [source.name for source in LogSource] == ["GUEST", "STDOUT", "STDERR", "REFUSED"]
    assert "0 the guest, 1 the kernel's stdout, 2 its stderr" in TEXT


def test_document_example_is_a_valid_frame() -> None:
    (example,) = re.findall(r"^    ((?:[0-9a-f]{2} +){17}[0-9a-f]{2})$", TEXT, re.MULTILINE)
    assert bytes.fromhex(example) == data(Channel.HB, [b"beat"])


def test_document_shows_one_stream_byte_by_byte() -> None:
    rows = re.findall(r"^    ((?:[0-9a-f]{2} +)*[0-9a-f]{2})$", TEXT, re.MULTILINE)
    shown = [bytes.fromhex(row) for row in rows if row.startswith("1")]
    assert shown == [
        encode_short(FrameType.OPEN, 1),
        encode_bytes(1, b"hi"),
        encode_grant(1, streams.GRANT_STEP),
        encode_short(FrameType.FINISH, 1),
    ]
    assert f"grants {streams.GRANT_STEP:,} bytes" in TEXT


def test_document_states_the_rules_of_streams() -> None:
    assert f"port {streams.EGRESS_PORT} of the sandbox's loopback" in TEXT
    assert f"1 to {frames.MAX_STREAM_DATA:,} bytes of it" in TEXT
    assert f"fewer than {link_streams.STREAMS_AHEAD:,} bytes of the pipe are unread" in TEXT
    assert frames.ALL_STREAMS == 0
    assert "Number 0 stands for all streams" in TEXT


def test_document_describes_the_packing() -> None:
    assert "count u16 | length of part 1 u32" in TEXT
    assert b"".join(pack_message([b"a", b""])) == b"\0\2\0\0\0\1\0\0\0\0a"


def test_document_states_version_and_protocol() -> None:
    assert f"`version` in HELLO is {events.VERSION}." in TEXT
    assert f'`protocol` is `"{events.PROTOCOL}"`' in TEXT


def test_document_states_the_silence_limits() -> None:
    assert f"a PING every {sleep.PING_SECONDS:g} s" in TEXT
    assert sleep.WAIT_SECONDS * 1000 == host_link.WAIT_MS == 10_000
    assert "waits of 10 s" in TEXT
    assert sleep.MISSED_WAITS == host_link.MISSED_WAITS == 6
    assert "After six in a row" in TEXT
