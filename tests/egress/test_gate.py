"""What the gate records of a request whose client goes: before the whole answer, or with it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import h11
import pytest

from gvisor_kernel.egress.audit import Entry
from gvisor_kernel.egress.gate import Gate
from gvisor_kernel.egress.heads import parse_head
from gvisor_kernel.egress.http import Reply

ASKED = b"GET /api/x HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n"


class Stream:
    """Takes what is written."""

    async def write(self, data: bytes) -> None:
        """Take it."""


def record_one(answer: bytes, length: int) -> Entry:
    """Return the record of a request whose client goes after ``answer``."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(ASKED)
    while connection.their_state is not h11.DONE:
        connection.next_event()
    entries: list[Entry] = []
    gate = Gate([], cast(Any, SimpleNamespace(record=entries.append)))

    async def answer_and_go(_request: Any, reply: Reply, _outcome: Any) -> None:
        await reply.start(200, [(b"Content-Length", b"%d" % length)])
        await reply.body(answer)
        if len(answer) == length:
            await reply.end()
        raise asyncio.CancelledError

    cast(Any, gate)._handle = answer_and_go
    request = cast(Any, SimpleNamespace(head=parse_head(ASKED)))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(gate.handle(request, Reply(cast(Any, Stream()), connection)))
    (entry,) = entries
    return entry


def test_a_client_that_goes_with_the_whole_answer_is_no_failure() -> None:
    assert record_one(b"12345", 5).reason == ""


def test_a_client_that_goes_before_is_told_in_the_record() -> None:
    assert "the client has gone" in record_one(b"12", 5).reason
