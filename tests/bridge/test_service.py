"""Calls to a service process, and questions of a sandbox: what comes may be anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from gvisor_kernel.bridge import service
from gvisor_kernel.bridge.service import BURST, MAX_CALLS, MAX_HELD, PIECE, Questions, ServiceCalls
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.kernel.sandbox_call import SandboxCall
from gvisor_kernel.link import LocalProtocolError, service_messages
from gvisor_kernel.link.service_messages import (
    FIRST_QUESTION,
    MAX_ANSWER,
    MAX_CONTENT,
    MAX_QUESTION,
    MAX_QUESTION_CONTENT,
    PROCESS,
    decode_service,
    encode_service,
)

T = TypeVar("T")


class Guest:
    """What was sent to a sandbox."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.runs = True

    def take(self, part: bytes) -> None:
        if not self.runs:
            raise LocalProtocolError("no kernel runs in it.")
        self.sent.append(part)


@pytest.fixture
def guest() -> Iterator[Guest]:
    return Guest()


def test_answers_come_to_their_call(guest: Guest) -> None:
    async def use() -> None:
        calls = ServiceCalls(guest.take)
        first, second = calls.begin({"do": "list"}), calls.begin({"do": "read"})
        for part in (b"", b"x" * 11, encode_service(77, {}), encode_service(second, {"a": 2})):
            calls.take(part)
        calls.take(encode_service(first, {"a": 1}))
        assert decode_service(await calls.receive(second)).content == {"a": 2}
        assert decode_service(await calls.receive(first)).content == {"a": 1}

    asyncio.run(use())


def test_a_call_holds_a_bounded_number_of_bytes(guest: Guest) -> None:
    async def use() -> None:
        calls = ServiceCalls(guest.take)
        call = calls.begin({"do": "run"})
        part = encode_service(call, {}, bytes(1_000_000))
        for _ in range(100):
            calls.take(part)
        for _ in range(MAX_HELD // len(part)):
            await calls.receive(call)
        with pytest.raises(SandboxError, match="more than it was asked"):
            await calls.receive(call)

    asyncio.run(use())


def test_the_end_of_the_process_fails_all_calls(guest: Guest) -> None:
    async def use() -> None:
        calls = ServiceCalls(guest.take)
        receiving = [asyncio.ensure_future(calls.receive(calls.begin({"do": "x"})))] * 2
        await asyncio.sleep(0)
        calls.take(encode_service(PROCESS, {"ended": True}))
        for failed in await asyncio.gather(*receiving, return_exceptions=True):
            assert isinstance(failed, SandboxError)

    asyncio.run(use())


def test_an_answer_that_is_too_long_fails_its_call(guest: Guest) -> None:
    async def use() -> None:
        calls = ServiceCalls(guest.take)
        call = calls.begin({"do": "changes"})
        calls.take(encode_service(call, {"a": "x" * MAX_ANSWER}))
        with pytest.raises(SandboxError, match="more than it was asked"):
            await calls.receive(call)

    asyncio.run(use())


class Bridge:
    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await work


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([{"entries": [1, 2]}, {"entries": [3]}, {"entries": [], "total": 3}], [1, 2, 3]),
        ([{"entries": [1, 2], "total": 2}], [1, 2]),
        ([{"error": "no"}], None),
        ([{"entries": [1]}, {"error": "no"}], None),
        ([{"entries": [1, 2]}, {"entries": [3, 4]}], "more than"),
        ([{"entries": []}, {"entries": [1]}], "as it should"),
        ([{"entries": 7}, {"entries": [1]}], "as it should"),
        ([{"stream": "x"}, {"entries": [1]}], "as it should"),
        ([{"entries": ["x" * 30_000]}] * 290, "more than"),
    ],
)
def test_a_list_comes_in_several_messages(
    guest: Guest, answers: list[dict[str, object]], expected: object
) -> None:
    """Each is short, all of them are bounded, and a list that does not grow is none."""

    async def use() -> list[object] | None:
        calls = ServiceCalls(guest.take)
        number = calls.begin({"do": "list"})
        for answer in answers[:-1]:
            calls.take(encode_service(number, answer))
        calls.take(encode_service(number, {**answers[-1], "done": True}))
        call = SandboxCall(Bridge(), calls, number)  # type: ignore[arg-type]
        limit = 1000 if len(answers) > 10 else 3
        return (await call.receive_list(limit)).content.get("entries")

    if isinstance(expected, str):
        with pytest.raises(SandboxError, match=expected):
            asyncio.run(use())
    else:
        assert asyncio.run(use()) == expected


def test_calls_are_counted_and_need_a_kernel(guest: Guest) -> None:
    async def use() -> None:
        calls = ServiceCalls(guest.take)
        opened = [calls.begin({"do": "x"}) for _ in range(MAX_CALLS)]
        with pytest.raises(SandboxError, match="under way"):
            calls.begin({"do": "x"})
        calls.close(opened[0])
        guest.runs = False
        with pytest.raises(SandboxError, match="no kernel runs"):
            calls.begin({"do": "x"})

    asyncio.run(use())


def test_the_process_is_ended_when_it_has_no_calls(guest: Guest) -> None:
    async def use() -> None:
        calls = ServiceCalls(guest.take, idle_seconds=0.01)
        calls.close(calls.begin({"do": "x"}))
        calls.close(calls.begin({"do": "x"}))
        while len(guest.sent) < 3:
            await asyncio.sleep(0.001)
        assert [decode_service(part).call for part in guest.sent] == [1, 2, PROCESS]

    asyncio.run(use())


def test_after_the_end_of_the_process_a_call_sends_nothing(guest: Guest) -> None:
    """A message would begin another process. One that was under way may have: it is ended."""

    async def use() -> None:
        calls = ServiceCalls(guest.take, idle_seconds=0.01)
        call = calls.begin({"do": "run"})
        calls.take(encode_service(PROCESS, {"ended": True}))
        with pytest.raises(SandboxError, match="was ended"):
            calls.send(call, {"more": 5})
        calls.close(call)
        while len(guest.sent) < 2:
            await asyncio.sleep(0.001)
        assert [decode_service(part).call for part in guest.sent] == [1, PROCESS]

    asyncio.run(use())


FIRST = FIRST_QUESTION


class Asking:
    """What was asked and sent. ``waiting``: bytes that the guest has not taken."""

    def __init__(self, burst: float = BURST) -> None:
        self.asked: list[bytes] = []
        self.sent: list[bytes] = []
        self.waiting = 0
        self.reply = b"answer"
        self.may_answer = asyncio.Event()
        self.questions = Questions(self.sent.append, lambda: self.waiting, burst)
        self.questions.answer = self.answer

    async def answer(self, question: bytes) -> bytes:
        self.asked.append(question)
        await asyncio.wait_for(self.may_answer.wait(), 60)
        return self.reply

    async def settle(self) -> None:
        """Wait until nothing is answered any more."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=60)


def part(number: int, data: bytes, **content: object) -> bytes:
    return encode_service(number, content, data)


def test_a_question_is_answered_in_pieces() -> None:
    async def use() -> None:
        guest = Asking()
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
        guest = Asking()
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
        guest = Asking()
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
        guest = Asking()
        for size in (MAX_QUESTION_CONTENT, MAX_CONTENT - 100):
            guest.questions.take(part(FIRST, b"x", done=True, more="x" * size))
        await guest.settle()
        assert not guest.asked
        guest.may_answer.set()
        guest.questions.take(part(FIRST, b"x", done=True, more="x" * 400))
        await guest.settle()
        assert guest.asked == [b"x"]

    asyncio.run(use())
    assert len(parsed) == 1
    assert parsed[0] <= MAX_QUESTION_CONTENT


def test_a_question_whose_program_has_gone_is_dropped() -> None:
    async def use() -> None:
        guest = Asking()
        guest.questions.take(part(FIRST, b"x"))
        guest.questions.take(part(FIRST, b"", gone=True, done=True))
        guest.may_answer.set()
        guest.questions.take(part(FIRST, b"y", done=True))
        await guest.settle()
        assert guest.asked == [b"y"]

    asyncio.run(use())


def test_an_answer_of_another_run_is_not_sent() -> None:
    async def use() -> None:
        guest = Asking()
        guest.questions.take(part(FIRST, b"x", done=True))
        await asyncio.sleep(0)
        guest.questions.fail()
        guest.may_answer.set()
        await guest.settle()
        assert not guest.sent

    asyncio.run(use())


def test_a_guest_that_does_not_read_gets_no_more() -> None:
    async def use() -> None:
        guest = Asking()
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
        guest = Asking(burst=1.0)
        guest.may_answer.set()
        guest.questions.take(part(FIRST, b"x", done=True))
        await guest.settle()
        guest.questions.take(part(FIRST + 1, b"y", done=True))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(guest.sent) == 1
        await guest.settle()
        assert len(guest.sent) == 2

    asyncio.run(use())
