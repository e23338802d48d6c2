"""Questions of programs in a sandbox, which PID 1 passes on: collected, answered one at a time.

All that arrives is hostile. So a sandbox has one question under way, of MAX_QUESTION bytes at most;
the next one is answered when the answer before it has nearly left this process; and questions have
a rate. What a question means is decided by ``answer``. Everything runs on the bridge's loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gvisor_kernel.link import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.service_messages import (
    MAX_QUESTION,
    MAX_QUESTION_CONTENT,
    decode_service,
    encode_service,
)

RATE, BURST = 100.0, 300.0
"""Questions of a sandbox in a second, and at once after a rest. More of them wait."""
PIECE = 256 * 1024
MAX_QUEUED = 1024 * 1024
"""Bytes that may wait for the guest before a further piece of an answer is sent."""
ROOM_SECONDS, GIVEN_UP_SECONDS = 0.02, 30.0
"""Seconds between two looks at a guest that does not read, and until it is given up."""

log = logging.getLogger(__name__)


class Questions:
    """The questions of one kernel, over all its sandboxes.

    ``send`` sends one part to the guest; it raises LocalProtocolError if no kernel runs. ``queued``
    returns the bytes that wait for the guest.
    """

    def __init__(self, send: Callable[[bytes], None], queued: Callable[[], int]) -> None:
        self._send = send
        self._queued = queued
        self.answer: Callable[[bytes], Awaitable[bytes]] | None = None
        """Returns the answer to a question, and raises nothing. None: there are no answers."""
        self._number = 0
        """The question that is collected or answered; 0: none."""
        self._parts: list[bytes] = []
        self._size = 0
        self._answering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """``_answering``, and those of ended runs that have not ended yet."""
        self._run = 0
        self._budget, self._counted = BURST, 0.0

    def take(self, part: Part) -> None:
        """Take a part of a question. One that is malformed, or not in its turn, is dropped."""
        try:
            message = decode_service(part, MAX_QUESTION_CONTENT)
        except RemoteProtocolError:
            return
        number, is_over = message.call, message.content.get("done") is True
        if message.content.get("gone") is True:
            if number == self._number and self._answering is None:
                self._forget()
            return
        if self._answering is not None:
            return  # an honest PID 1 sends the next one after the answer
        if number != self._number:
            self._forget()
            self._number = number
        self._parts.append(message.data)
        self._size += len(message.data)
        if self._size > MAX_QUESTION or len(self._parts) > MAX_QUESTION // 1024:
            self._forget()
        elif is_over:
            question = b"".join(self._parts)
            self._forget()
            loop = asyncio.get_running_loop()
            self._answering = loop.create_task(self._answer(number, question, self._run))
            self._tasks.add(self._answering)
            self._answering.add_done_callback(self._note_answered)

    def fail(self) -> None:
        """Drop what is under way: the kernel or the sandbox has ended. Idempotent."""
        self._forget()
        self._run += 1
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None

    def _forget(self) -> None:
        self._number, self._parts, self._size = 0, [], 0

    def _note_answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._answering is task:
            self._answering = None
        if not task.cancelled() and task.exception() is not None:
            log.error("A question of a sandbox could not be answered", exc_info=task.exception())

    async def _answer(self, number: int, question: bytes, run: int) -> None:
        await self._wait_for_turn()
        answer = b"" if self.answer is None else await self.answer(question)
        pieces = [answer[at : at + PIECE] for at in range(0, len(answer), PIECE)] or [b""]
        for at, piece in enumerate(pieces):
            if not await self._wait_for_room() or run != self._run:
                return
            content: dict[str, object] = {"size": len(answer)} if at == 0 else {}
            if at == len(pieces) - 1:
                content["done"] = True
            with suppress(LocalProtocolError):  # no kernel runs any more
                self._send(encode_service(number, content, piece))

    async def _wait_for_turn(self) -> None:
        now = asyncio.get_running_loop().time()
        self._budget = min(BURST, self._budget + (now - self._counted) * RATE) - 1
        self._counted = now
        if self._budget < 0:
            await asyncio.sleep(-self._budget / RATE)

    async def _wait_for_room(self) -> bool:
        """Wait until the guest reads; False if it does not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GIVEN_UP_SECONDS
        while self._queued() > MAX_QUEUED:
            if loop.time() > deadline:
                return False
            await asyncio.sleep(ROOM_SECONDS)
        return True
