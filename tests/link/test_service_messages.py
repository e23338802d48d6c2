"""Messages on the channel SERVICE: encoded, decoded, refused."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvisor_kernel.link import service_messages
from gvisor_kernel.link.frames import (
    Channel,
    LocalProtocolError,
    RemoteProtocolError,
    largest_message,
)
from gvisor_kernel.link.service_messages import (
    MAX_ANSWER_CONTENT,
    MAX_CONTENT,
    MAX_DATA,
    MAX_QUESTION_CONTENT,
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


def test_a_content_over_the_limit_of_its_reader_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What takes time with megabytes of a guest has to come after the comparison of sizes."""
    parsed: list[int] = []

    def parse(data: bytes, limit: int) -> object:
        parsed.append(len(data))
        return json.loads(data)

    monkeypatch.setattr(service_messages, "parse_json", parse)
    for limit in (MAX_QUESTION_CONTENT, MAX_ANSWER_CONTENT):
        longest = json.dumps({"a": "x" * (limit - 9)}).encode()
        part = struct.pack(">QI", 1, limit) + longest
        assert len(decode_service(part + b"data", limit).content["a"]) == limit - 9
        for wrong in (
            struct.pack(">QI", 1, limit + 1) + longest + b" ",
            part + bytes(MAX_DATA + 1),
        ):
            with pytest.raises(RemoteProtocolError):
                decode_service(memoryview(wrong), limit)
    assert parsed == [MAX_QUESTION_CONTENT, MAX_ANSWER_CONTENT]
    with pytest.raises(LocalProtocolError):
        encode_service(1, {"a": "x" * MAX_ANSWER_CONTENT}, limit=MAX_ANSWER_CONTENT)


def test_a_message_over_a_limit_is_not_sent() -> None:
    for content, data in (({"a": "x" * MAX_CONTENT}, b""), ({}, bytes(MAX_DATA + 1))):
        with pytest.raises(LocalProtocolError):
            encode_service(1, content, data)
    assert largest_message(Channel.SERVICE) > MAX_SERVICE_MESSAGE
