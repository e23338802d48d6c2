"""Calls to a sandbox's service process: files and commands. Everything runs on the bridge's loop.

What comes back is hostile: it is bounded here, and not believed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

from gvisor_kernel.bridge.questions import Questions
from gvisor_kernel.errors import SandboxError
from gvisor_kernel.link import LocalProtocolError, RemoteProtocolError
from gvisor_kernel.link.frames import Part
from gvisor_kernel.link.service_messages import (
    FIRST_QUESTION,
    MAX_ANSWER,
    PROCESS,
    decode_call,
    encode_service,
)

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
        self, send: Callable[[bytes], None], queued: Callable[[], int] = lambda: 0
    ) -> None:
        self._send = send
        self.questions = Questions(send, queued)
        self._calls: dict[int, _Call] = {}
        self._last = PROCESS
        self._left = b""
        self._is_used = False
        """True while there may be a process."""
        self._timer: asyncio.TimerHandle | None = None

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
        """End the process in IDLE_SECONDS, if it has no calls then."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_process)

    def take_left(self) -> bytes:
        """Return the last message about the process, for ``decode_service``, once; b"" if none."""
        left, self._left = self._left, b""
        return left

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
                self._left = bytes(part)  # the kernel has ended, which fails the calls
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
