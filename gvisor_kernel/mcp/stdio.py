"""The transport over stdin and stdout: one message a line, within bounds.

stdout is the protocol. So the process's own descriptor 1 becomes stderr while it is served
(``greeting``): nothing that a library prints can be taken for a message. A line that is too long is
dropped as it comes, and answered by an error. While many requests wait for their answers, no more
are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from queue import SimpleQueue

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)

from gvisor_kernel.mcp.greeting import Greeting
from gvisor_kernel.strict_json import JsonError, parse_json

MAX_LINE = 32 * 1024 * 1024
"""Bytes of one message. The largest content of a file, 16 Mi characters, fits."""
READ_SIZE = 256 * 1024
MAX_WAITING = 4
"""Pieces that were read and not looked at yet."""
MAX_UNANSWERED = 256
"""Requests of a client. More than its calls at once: further calls are refused, not waited for."""
MAX_UNANSWERED_SIZE = 128 * 1024 * 1024
"""Bytes of such requests together: eight contents of the largest size."""
SMALL = MAX_UNANSWERED_SIZE // MAX_UNANSWERED
"""Bytes of a request that is never too much beside others."""

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


class Lines:
    """Cuts bytes into lines; a line of more than ``limit`` bytes becomes None."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._drops = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the lines that ``data`` ends."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            yield None if self._drops else b"".join(self._parts)
            self._parts, self._size, self._drops = [], 0, False
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._drops = True
            self._parts = []
        elif part:
            self._parts.append(part)


class Reader:
    """Reads on after ``greeting``, in a thread of its own: it may be a pipe, file or terminal."""

    def __init__(self, greeting: Greeting) -> None:
        self._greeting = greeting
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[bytes] = deque()
        self._come = asyncio.Event()
        self._room = threading.Semaphore(MAX_WAITING)
        threading.Thread(target=self._read, name="gvisor-kernel-mcp-stdin", daemon=True).start()

    def _read(self) -> None:
        first, data = self._greeting.take(), b"-"
        while data:
            self._room.acquire()
            try:
                data = first or os.read(self._greeting.wire_in, READ_SIZE)
            except OSError:
                data = b""
            first = b""
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._put, data)

    def _put(self, data: bytes) -> None:
        self._pieces.append(data)
        self._come.set()

    async def read(self) -> bytes:
        """Return the next bytes; b"" at the end."""
        while not self._pieces:
            self._come.clear()
            await self._come.wait()
        self._room.release()
        return self._pieces.popleft()


def parse_line(line: bytes | None) -> SessionMessage | ErrorData:
    """Return the message of a line, or the error that answers it."""
    if line is None:
        return ErrorData(
            code=INVALID_REQUEST, message=f"The message has more than {MAX_LINE} bytes."
        )
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_python(parse_json(line, MAX_LINE)))
    except JsonError as error:
        return ErrorData(code=PARSE_ERROR, message=f"The message cannot be read: {error}.")
    except ValueError:
        return ErrorData(code=INVALID_REQUEST, message="The line is not a message of JSON-RPC.")


class Writer:
    """Writes to a descriptor; what does not fit at once, in a thread that nobody waits for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[bytes, asyncio.Future[bool]]] = SimpleQueue()
        self._poller = select.poll()
        self._poller.register(fd, select.POLLOUT)
        self._has_thread = False

    async def write(self, data: bytes) -> bool:
        """Write all of ``data``; False if nobody reads it any more."""
        if len(data) <= select.PIPE_BUF and self._poller.poll(0) == [(self._fd, select.POLLOUT)]:
            return self._write(data)  # it does not block: a pipe has room for PIPE_BUF then
        if not self._has_thread:
            self._has_thread = True
            threading.Thread(target=self._work, name="gvisor-kernel-mcp-out", daemon=True).start()
        done: asyncio.Future[bool] = self._loop.create_future()
        self._jobs.put((data, done))
        return await asyncio.shield(done)

    def _work(self) -> None:
        while True:
            data, done = self._jobs.get()
            is_written = self._write(data)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(_set, done, is_written)

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            return False
        return True


def _set(done: asyncio.Future[bool], value: bool) -> None:
    if not done.done():
        done.set_result(value)


class Unanswered:
    """Counts the requests that were read and not answered yet, and their bytes, so that they stay
    few. ``limit``: of requests; ``most``: of bytes."""

    def __init__(self, limit: int = MAX_UNANSWERED, most: int = MAX_UNANSWERED_SIZE) -> None:
        self._limit = limit
        self._most = most
        self._sizes: dict[object, list[int]] = {}
        self._count = 0
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()

    def note_read(self, message: JSONRPCMessage, size: int) -> ErrorData | None:
        """Note a message of the client, which came in ``size`` bytes.

        Return the error for a request that is too much beside the others. It is refused, not waited
        with, because the next message may cancel one of the others.
        """
        refusal = None
        if isinstance(message, JSONRPCRequest):
            if size > SMALL and self._size + size > self._most:
                refusal = ErrorData(
                    code=INVALID_REQUEST,
                    message=f"This request has {size} bytes, and those that are not answered yet"
                    f" have {self._size}: the limit is {self._most} together. Wait for answers.",
                )
                size = 0
            self._sizes.setdefault(message.id, []).append(size)
            self._count += 1
            self._size += size
        elif (
            isinstance(message, JSONRPCNotification)
            and message.method == "notifications/cancelled"  # the request gets no answer
        ):
            request = (message.params or {}).get("requestId")
            if isinstance(request, int | str):
                self._forget(request)
        self._note()
        return refusal

    def note_written(self, message: JSONRPCMessage) -> None:
        """Note a message to the client."""
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self._forget(message.id)
            self._note()

    def _forget(self, request: object) -> None:
        sizes = self._sizes.get(request)
        if sizes is None:
            return
        least = min(sizes)  # which of them was answered is not known, if several have one id
        sizes.remove(least)
        self._count -= 1
        self._size -= least
        if not sizes:
            del self._sizes[request]

    def _note(self) -> None:
        if self._count < self._limit:
            self._room.set()
        else:
            self._room.clear()

    async def wait_for_room(self) -> None:
        """Wait until another request may be read."""
        await self._room.wait()


@asynccontextmanager
async def stdio_streams(
    greeting: Greeting, stop: asyncio.Event
) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Serve messages over the descriptors of ``greeting``, as streams that the SDK's server takes.

    When ``stop`` is set, it is as if the client had left: the server ends in its usual way.
    """
    put_in, take_in = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    put_out, take_out = anyio.create_memory_object_stream[SessionMessage](0)
    # Errors for lines that are no message; the server closes its own end of the stream.
    put_error = put_out.clone()
    unanswered = Unanswered()
    reading = anyio.CancelScope()

    async def watch() -> None:
        await stop.wait()
        reading.cancel()

    async def take(line: bytes | None) -> None:
        """Pass the message of a line on, or answer it with an error."""
        found = parse_line(line)
        request: int | str | None = None
        if isinstance(found, SessionMessage):
            await unanswered.wait_for_room()
            message = found.message
            refusal = unanswered.note_read(message, len(line or b""))
            if refusal is None:
                await put_in.send(found)
                return
            request = message.id if isinstance(message, JSONRPCRequest) else None
            found = refusal
        error = JSONRPCError(jsonrpc="2.0", id=request, error=found)
        await put_error.send(SessionMessage(error))

    async def read() -> None:
        reader, lines = Reader(greeting), Lines()
        with reading, contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async with put_in, put_error:
                while data := await reader.read():
                    for line in lines.feed(data):
                        if line is None or line.strip():
                            await take(line)

    async def write() -> None:
        writer = Writer(greeting.wire_out)
        async with take_out:
            async for item in take_out:
                answer = item.message
                if isinstance(answer, JSONRPCResponse | JSONRPCError) and greeting.is_answer(
                    answer.id
                ):
                    unanswered.note_written(answer)
                    continue
                text = answer.model_dump_json(by_alias=True, exclude_unset=True)
                if not await writer.write(text.encode() + b"\n"):
                    return  # the client has left; its end of stdin tells the rest
                unanswered.note_written(answer)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        group.start_soon(read)
        group.start_soon(write)
        yield take_in, put_out
        group.cancel_scope.cancel()
