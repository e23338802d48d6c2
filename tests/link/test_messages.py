"""Messages of several parts: packing, unpacking, their limits, and inconsistent lengths."""

from __future__ import annotations

import struct

import pytest

from gvisor_kernel.link import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import (
    MAX_MESSAGE,
    MAX_PARTS,
    VIEW_ABOVE,
    pack_message,
    unpack_message,
)

MESSAGES = {
    "one empty part": [b""],
    "many empty parts": [b""] * 300,
    "empty parts around one": [b"", b"x", b"", b""],
    "bytes of each kind": [bytes(range(256)), b"\0" * 9, b"<IDS|MSG>"],
    "as many parts as allowed": [b"ab"] * MAX_PARTS,
    "a large part": [b"head", bytes(3_000_000)],
}


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("parts", MESSAGES.values(), ids=MESSAGES.keys())
def test_unpacked_parts_equal_the_packed_ones(
    parts: list[bytes], kind: type[bytes] | type[bytearray]
) -> None:
    unpacked = unpack_message(kind(b"".join(pack_message(parts))))
    assert unpacked == parts
    assert all(type(part) is bytes for part in unpacked)


def test_packed_layout_is_fixed() -> None:
    packed = b"".join(pack_message([b"ab", b"", b"c"]))
    assert packed == bytes.fromhex("0003 00000002 00000000 00000001") + b"abc"


def test_packing_copies_no_part() -> None:
    part = bytes(1_000_000)
    assert pack_message([b"x", part])[2] is part


@pytest.mark.parametrize("count", [0, MAX_PARTS + 1])
def test_number_of_parts_is_limited(count: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"has {count} parts"):
        pack_message([b""] * count)
    with pytest.raises(RemoteProtocolError, match=f"announces {count} parts"):
        unpack_message(struct.pack(">H", count) + bytes(4 * count))


def test_size_of_a_message_is_limited() -> None:
    largest = bytes(MAX_MESSAGE - 6)  # less the count and one length; cheap, since never touched
    assert len(pack_message([largest])) == 2
    with pytest.raises(LocalProtocolError, match=str(MAX_MESSAGE + 4)):
        pack_message([largest, b""])


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\0",
        b"\0\1",
        b"\0\1\0\0\0",
        b"\0\1\0\0\0\1",
        b"\0\1\0\0\0\0x",
        b"\0\2\0\0\0\1\0\0\0\1x",
        b"\0\1\xff\xff\xff\xff",
        b"\x10\0" + b"\xff" * 4 * 4096,
    ],
    ids=lambda packed: packed[:12].hex() or "nothing",
)
def test_inconsistent_lengths_are_refused(packed: bytes) -> None:
    for kind in (bytes, bytearray):
        with pytest.raises(RemoteProtocolError):
            unpack_message(kind(packed))


def test_large_part_can_be_a_view() -> None:
    packed = bytearray(
        b"".join(pack_message([b"head", bytes(VIEW_ABOVE), b"x" * (VIEW_ABOVE + 1)]))
    )
    small, whole, large = unpack_message(packed, views=True)
    assert (type(small), type(whole), type(large)) == (bytes, bytes, memoryview)
    assert large.obj is packed
    assert large == b"x" * (VIEW_ABOVE + 1)
