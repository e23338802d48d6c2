"""The transport over stdio, without a sandbox: lines, errors, and how many requests wait."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

from gvisor_kernel.mcp.stdio import MAX_UNANSWERED_SIZE, SMALL, Lines, Unanswered, parse_line

pytestmark = pytest.mark.once


@given(st.lists(st.binary(max_size=12)), st.integers(1, 7))
def test_lines_are_the_same_however_they_come(lines: list[bytes], size: int) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    cutter = Lines(limit=8)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found = [line for piece in pieces for line in cutter.feed(piece)]
    assert found == [line if len(line) <= 8 else None for line in lines]


def test_a_long_line_is_not_kept() -> None:
    lines = Lines(limit=10)
    for _ in range(100):
        assert not list(lines.feed(b"x" * 9))
        assert sum(map(len, lines._parts)) <= 10
    assert list(lines.feed(b"\nnext\n")) == [None, b"next"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (None, INVALID_REQUEST),
        (b"\xff\xfe", PARSE_ERROR),
        (b"[" * 100_000, PARSE_ERROR),
        (b"{}", INVALID_REQUEST),
        (b"[]", INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": {}, "method": 3}', INVALID_REQUEST),
    ],
)
def test_what_is_no_message_is_an_error(line: bytes | None, code: int) -> None:
    found = parse_line(line)
    assert isinstance(found, ErrorData)
    assert found.code == code


def test_a_message_is_parsed() -> None:
    found = parse_line(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}')
    assert isinstance(found, SessionMessage)
    assert isinstance(found.message, JSONRPCRequest)


def test_requests_wait_until_earlier_ones_are_answered() -> None:
    async def scenario() -> None:
        unanswered = Unanswered(limit=3)
        for _ in range(3):  # one id, three times: each is answered
            unanswered.note_read(JSONRPCRequest(jsonrpc="2.0", id=1, method="ping"), 9)
        waiting = asyncio.ensure_future(unanswered.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        unanswered.note_written(JSONRPCResponse(jsonrpc="2.0", id=1, result={}))
        await waiting
        unanswered.note_read(JSONRPCRequest(jsonrpc="2.0", id="a", method="ping"), 9)
        waiting = asyncio.ensure_future(unanswered.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        cancelled = {"requestId": "a"}
        unanswered.note_read(
            JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=cancelled),
            9,
        )
        await waiting

    asyncio.run(scenario())


def test_large_requests_are_refused_while_others_have_no_answer() -> None:
    async def scenario() -> None:
        unanswered = Unanswered()
        large = MAX_UNANSWERED_SIZE // 4
        request = JSONRPCRequest(jsonrpc="2.0", id=1, method="ping")
        for _ in range(4):
            assert unanswered.note_read(request, large) is None
        for _ in range(3):  # that a refusal is written makes no room, though the id is the same
            refusal = unanswered.note_read(request, large)
            assert refusal is not None
            assert "Wait for answers" in refusal.message
            unanswered.note_written(JSONRPCError(jsonrpc="2.0", id=1, error=refusal))
        assert unanswered.note_read(request, SMALL) is None
        for _ in range(2):
            unanswered.note_written(JSONRPCResponse(jsonrpc="2.0", id=1, result={}))
        assert unanswered.note_read(request, large - SMALL) is None

    asyncio.run(scenario())
