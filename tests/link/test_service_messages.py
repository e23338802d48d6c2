"""Messages on the channel SERVICE: encoded, decoded, refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.link.errors import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import Channel, largest_message
from gvisor_kernel.link.service_messages import (
    MAX_CONTENT,
    MAX_DATA,
    MAX_SERVICE_MESSAGE,
    decode_call,
    decode_service,
    encode_service,
)


@given(
    st.integers(0, 2**64 - 1), st.dictionaries(st.text(), st.text() | st.integers()), st.binary()
)
def test_a_message_comes_back(call: int, content: dict[str, object], data: bytes) -> None:
    part = encode_service(call, content, data)
    assert decode_call(part) == call
    assert decode_service(part) == (call, content, data)


@given(st.binary())
def test_any_bytes_are_a_message_or_refused(part: bytes) -> None:
    try:
        message = decode_service(part)
    except RemoteProtocolError:
        return
    assert isinstance(message.content, dict)
    assert len(message.data) <= MAX_DATA


@pytest.mark.parametrize(
    "part",
    [
        *(b"", b"x" * 11, struct.pack(">QI", 1, 3) + b"{}", struct.pack(">QI", 1, 2) + b"[]"),
        struct.pack(">QI", 1, 2) + b"{x",
        struct.pack(">QI", 1, 2) + b"{}" + bytes(MAX_DATA + 1),
        struct.pack(">QI", 1, 202) + b"[" * 101 + b"]" * 101,
        struct.pack(">QI", 1, MAX_CONTENT + 1) + bytes(MAX_CONTENT + 1),
    ],
    ids=["empty", "short", "cut", "list", "no JSON", "data", "nested", "content"],
)
def test_a_malformed_message_is_refused(part: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_service(part)


def test_a_message_over_a_limit_is_not_sent() -> None:
    for content, data in (({"a": "x" * MAX_CONTENT}, b""), ({}, bytes(MAX_DATA + 1))):
        with pytest.raises(LocalProtocolError):
            encode_service(1, content, data)
    assert largest_message(Channel.SERVICE) > MAX_SERVICE_MESSAGE
