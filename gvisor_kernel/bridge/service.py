"""Calls to a sandbox's service process, and questions of programs in it. On the bridge's loop.

What comes is hostile: it is bounded here, and not believed. A sandbox has one question under way,
of MAX_QUESTION bytes at most; the next one is answered when the answer before it has nearly left
this process; and questions have a rate. What a question means is decided by ``answer``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from gvisor_kernel.errors import SandboxError
from gvisor_kernel.link import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.service_messages import (
    FIRST_QUESTION,
    MAX_ANSWER,
    MAX_QUESTION,
    MAX_QUESTION_CONTENT,
    PROCESS,
    RELEASED,
    decode_call,
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

    def __init__(
        self, send: Callable[[bytes], None], queued: Callable[[], int], burst: float = BURST
    ) -> None:
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
        self._burst = self._budget = burst
        self._counted = 0.0

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
        self._budget = min(self._burst, self._budget + (now - self._counted) * RATE) - 1
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


MAX_CALLS = 64
"""Calls of one sandbox at once: the service process has a thread for each."""
MAX_HELD = 8 * 1024 * 1024 + MAX_ANSWER
"""Bytes of answers to one call that its caller has not taken. A process that follows the rules has
at most one long list under way, or a window of a command's output."""
MAX_LEFT = 64 * 1024
"""Bytes of a message about the process itself."""
LEFT = b'"entries"'
"""Key that only the message about the files that are left has. Its reader decodes it."""
IDLE_SECONDS = 5.0
"""Seconds that the process is kept without a call: it keeps its sandbox from being idle."""


class _Call:
    def __init__(self) -> None:
        self.answers: deque[bytes] = deque()
        self.held = 0
        self.failure = ""
        self.changed = asyncio.Event()


class ServiceCalls:
    """The calls of one kernel, over all its sandboxes.

    ``send`` sends one part to the guest; it raises LocalProtocolError if no kernel runs. ``queued``
    returns the bytes that wait for the guest. ``questions``: those of the sandbox.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        queued: Callable[[], int] = lambda: 0,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._send = send
        self._idle_seconds = idle_seconds
        self.questions = Questions(send, queued)
        self._calls: dict[int, _Call] = {}
        self._last = PROCESS
        self._left = b""
        self.on_left: Callable[[], None] = lambda: None
        """Called when that message comes; PID 1 may wait then (``release``)."""
        self._is_used = False
        """True while there may be a process."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_used(self) -> bool:
        """Return whether a call is under way."""
        return bool(self._calls)

    # -- for callers -----------------------------------------------------------------------------

    def begin(self, content: Mapping[str, object], data: bytes = b"") -> int:
        """Begin a call; return its number. ``close`` ends it.

        :raises SandboxError: when no kernel runs, or too many calls are under way
        """
        if len(self._calls) >= MAX_CALLS:
            raise SandboxError(
                f"{MAX_CALLS} operations on files and commands are under way in this sandbox.",
                "wait for one of them to end.",
            )
        call = self._last + 1
        self.send(call, content, data)
        self._last, self._is_used = call, True
        self._calls[call] = _Call()
        if self._timer is not None:
            self._timer.cancel()
        return call

    def send(self, call: int, content: Mapping[str, object], data: bytes = b"") -> None:
        """Send a further message for a call.

        :raises SandboxError: when no kernel runs
        """
        state = self._calls.get(call)
        if state is not None and state.failure:  # it would begin another process
            raise SandboxError(state.failure)
        try:
            self._send(encode_service(call, content, data))
        except LocalProtocolError as error:
            raise SandboxError(f"The sandbox cannot be asked: {error}") from error

    async def receive(self, call: int) -> bytes:
        """Return the next answer to a call, for ``decode_service``.

        :raises SandboxError: when there is none, as the process or the kernel has ended
        """
        state = self._calls[call]
        while not state.answers:
            if state.failure:
                raise SandboxError(state.failure)
            state.changed.clear()
            # no timeout: until an answer, or the end of the run; callers have limits
            await state.changed.wait()
        part = state.answers.popleft()
        state.held -= len(part)
        return part

    def close(self, call: int) -> None:
        """Forget a call. Later answers to it are dropped. Idempotent."""
        if self._calls.pop(call, None) is not None:
            self._schedule_end()

    def _schedule_end(self) -> None:
        """End the process in ``idle_seconds``, if it has no calls then."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_process)

    def take_left(self) -> bytes:
        """Return the last message about the process, for ``decode_service``, once; b"" if none."""
        left, self._left = self._left, b""
        return left

    def release(self) -> None:
        """Tell PID 1 not to wait for further calls at the end of a run."""
        with suppress(LocalProtocolError):  # it has not waited
            self._send(encode_service(PROCESS, {RELEASED: True}))

    def _end_process(self) -> None:
        if self._is_used and not self._calls:
            self._is_used = False
            with suppress(LocalProtocolError):  # no kernel runs any more
                self._send(encode_service(PROCESS, {}))

    # -- from the sandbox ------------------------------------------------------------------------

    def take(self, part: Part) -> None:
        """Take a message of the guest. One that is malformed, or that nobody awaits, is dropped."""
        try:
            call = decode_call(part)
        except RemoteProtocolError:
            return
        if call >= FIRST_QUESTION:
            self.questions.take(part)
            return
        if call == PROCESS:
            if len(part) <= MAX_LEFT and LEFT in bytes(part):
                self._left = bytes(part)
                self.fail("The kernel of the sandbox has ended.")
                self.on_left()
                return
            self.fail("The process for files and commands in the sandbox was ended.")
            return
        state = self._calls.get(call)
        if state is None or state.failure:
            return
        if len(part) > MAX_ANSWER or state.held + len(part) > MAX_HELD:
            self._fail(state, "The sandbox answered with more than it was asked for.")
            return
        state.held += len(part)
        state.answers.append(bytes(part))
        state.changed.set()

    def end_run(self, reason: str) -> None:
        """Fail all calls, and drop questions: the kernel or the sandbox has ended."""
        self.questions.fail()
        self.fail(reason)

    def fail(self, reason: str) -> None:
        """Fail all calls: the process, the kernel or the sandbox has ended.

        A message that was under way may have begun another process, which is ended later.
        """
        for state in self._calls.values():
            self._fail(state, reason)
        self._schedule_end()

    @staticmethod
    def _fail(state: _Call, reason: str) -> None:
        state.failure = state.failure or reason
        state.changed.set()
