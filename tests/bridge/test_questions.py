"""Questions of a sandbox, whose PID 1 may send anything."""

from __future__ import annotations

import asyncio
import json

import pytest

from gvisor_kernel.bridge import service
from gvisor_kernel.bridge.service import PIECE, Questions
from gvisor_kernel.link import service_messages
from gvisor_kernel.link.service_messages import (
    FIRST_QUESTION,
    MAX_CONTENT,
    MAX_QUESTION,
    MAX_QUESTION_CONTENT,
    decode_service,
    encode_service,
)

FIRST = FIRST_QUESTION


class Guest:
    """What was asked and sent. ``waiting``: bytes that the guest has not taken."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.sent: list[bytes] = []
        self.waiting = 0
        self.reply = b"answer"
        self.may_answer = asyncio.Event()
        self.questions = Questions(self.sent.append, lambda: self.waiting)
        self.questions.answer = self.answer

    async def answer(self, question: bytes) -> bytes:
        self.asked.append(question)
        await asyncio.wait_for(self.may_answer.wait(), 60)
        return self.reply

    async def settle(self) -> None:
        while self.questions._tasks:
            await asyncio.wait(self.questions._tasks, timeout=60)


def part(number: int, data: bytes, **content: object) -> bytes:
    return encode_service(number, content, data)


def test_a_question_is_answered_in_pieces() -> None:
    async def use() -> None:
        guest = Guest()
        guest.reply = bytes(2 * PIECE + 1)
        guest.may_answer.set()
        guest.questions.take(part(FIRST, b"que"))
        guest.questions.take(part(FIRST, b"stion", done=True))
        await guest.settle()
        assert guest.asked == [b"question"]
        sent = [decode_service(one) for one in guest.sent]
        assert {one.call for one in sent} == {FIRST}
        assert [len(one.data) for one in sent] == [PIECE, PIECE, 1]
        assert [one.content for one in sent] == [{"size": 2 * PIECE + 1}, {}, {"done": True}]

    asyncio.run(use())


def test_a_sandbox_has_one_question_under_way() -> None:
    async def use() -> None:
        guest = Guest()
        for number in range(FIRST, FIRST + 50):
            guest.questions.take(part(number, b"x", done=True))
        await asyncio.sleep(0)
        guest.may_answer.set()
        await guest.settle()
        assert len(guest.asked) == len(guest.sent) == 1
        guest.questions.take(part(FIRST + 60, b"y", done=True))
        await guest.settle()
        assert guest.asked == [b"x", b"y"]

    asyncio.run(use())


def test_what_is_held_of_a_question_is_bounded() -> None:
    async def use() -> None:
        guest = Guest()
        for number in range(FIRST, FIRST + 3):
            for _ in range(100):
                guest.questions.take(part(number, bytes(100_000)))
                assert guest.questions._size <= MAX_QUESTION
        for _ in range(20_000):
            guest.questions.take(part(FIRST + 4, b""))
        assert len(guest.questions._parts) <= MAX_QUESTION // 1024
        for wrong in (b"", b"x" * 12, b"\xff" * 40):
            guest.questions.take(wrong)
        assert not guest.asked

    asyncio.run(use())


def test_what_is_said_of_a_question_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is parsed where all kernels' links are read: megabytes are dropped unread."""
    parsed: list[int] = []
    monkeypatch.setattr(
        service_messages,
        "parse_json",
        lambda data, limit: (parsed.append(len(data)), json.loads(data))[1],
    )

    async def use() -> None:
        guest = Guest()
        for size in (MAX_QUESTION_CONTENT, MAX_CONTENT - 100):
            guest.questions.take(part(FIRST, b"x", done=True, more="x" * size))
        assert guest.questions._answering is None
        guest.may_answer.set()
        guest.questions.take(part(FIRST, b"x", done=True, more="x" * 400))
        await guest.settle()
        assert guest.asked == [b"x"]

    asyncio.run(use())
    assert len(parsed) == 1
    assert parsed[0] <= MAX_QUESTION_CONTENT


def test_a_question_whose_program_has_gone_is_dropped() -> None:
    async def use() -> None:
        guest = Guest()
        guest.questions.take(part(FIRST, b"x"))
        guest.questions.take(part(FIRST, b"", gone=True, done=True))
        assert guest.questions._answering is None
        assert guest.questions._size == 0

    asyncio.run(use())


def test_an_answer_of_another_run_is_not_sent() -> None:
    async def use() -> None:
        guest = Guest()
        guest.questions.take(part(FIRST, b"x", done=True))
        await asyncio.sleep(0)
        guest.questions.fail()
        guest.may_answer.set()
        await guest.settle()
        assert not guest.sent

    asyncio.run(use())


def test_a_guest_that_does_not_read_gets_no_more() -> None:
    async def use() -> None:
        guest = Guest()
        guest.may_answer.set()
        guest.waiting = service.MAX_QUEUED + 1
        guest.questions.take(part(FIRST, b"x", done=True))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not guest.sent
        guest.waiting = 0
        await guest.settle()
        assert len(guest.sent) == 1

    asyncio.run(use())


def test_questions_have_a_rate() -> None:
    async def use() -> None:
        guest = Guest()
        guest.may_answer.set()
        guest.questions._budget, guest.questions._counted = 1.0, asyncio.get_running_loop().time()
        guest.questions.take(part(FIRST, b"x", done=True))
        await guest.settle()
        guest.questions.take(part(FIRST + 1, b"y", done=True))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(guest.sent) == 1
        await guest.settle()
        assert len(guest.sent) == 2

    asyncio.run(use())
