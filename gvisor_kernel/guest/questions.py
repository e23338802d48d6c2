"""Questions of programs in the sandbox to the host: PID 1 accepts, and carries bytes only.

What pages keep lies on the host. A program connects to ADDRESS, sends one question, and gets one
answer. PID 1 serves one connection at a time, and gives no meaning to its bytes; the others wait in
the queue of the socket. So neither end holds more than one question of a sandbox. Nothing is sent
to the host before a program connects.

On the connection, a question and an answer are each preceded by their length, u32, big endian.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress

from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.link import Channel, Connection, LocalProtocolError, Message, RemoteProtocolError
from gvisor_kernel.link.service_messages import (
    FIRST_QUESTION,
    LENGTH,
    MAX_QUESTION,
    decode_service,
    encode_service,
)

ADDRESS = "\0gvisor-kernel-questions"
"""An abstract Unix socket: no file, which a kernel could replace or a snapshot would keep."""
READ_SIZE = 64 * 1024
TURN_BYTES = 256 * 1024
"""Bytes that one turn of PID 1's loop reads. Messages wait for no more."""
QUEUE_BYTES = 1024 * 1024
"""Bytes that wait for the host above which nothing is read from programs."""
LISTEN_BACKLOG = 128
STALLED_SECONDS = 10.0
"""Seconds in which a program may neither send nor take a byte: others wait meanwhile."""


class Questions:
    """The socket and the connection that is served, from ``begin`` to ``stop`` of each run."""

    def __init__(self, connection: Connection, log: GuestLog) -> None:
        self._connection = connection
        self._log = log
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None
        self._number = FIRST_QUESTION
        """That of the question of ``_client``, or of the next one."""
        self._head = b""
        """The bytes of the length that have arrived."""
        self._left = 0
        """Bytes of the question that are to come."""
        self._is_begun = False
        """True once the host has been sent a part of the question."""
        self._out = bytearray()
        """Bytes of the answer that the program has not taken."""
        self._is_answered = False
        """True once ``_out`` has all of the answer."""
        self._since = 0.0

    def begin(self) -> None:
        """Listen, before the kernel of a run gets anything to do."""
        self.stop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(ADDRESS)
            listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            listener.close()
            self._log.write_limited(f"What pages keep cannot be reached in this run: {error}.\n")
            return
        listener.setblocking(False)
        self._listener = listener

    def stop(self) -> None:
        """Close everything: the run is over. Idempotent."""
        self._close_client()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # -- waiting ---------------------------------------------------------------------------------

    @property
    def polled(self) -> list[tuple[int, int]]:
        """The descriptors to poll, each with its events."""
        if self._client is None:
            if self._listener is None:
                return []
            return [(self._listener.fileno(), select.POLLIN)]
        if self._out:
            return [(self._client.fileno(), select.POLLOUT)]
        if self._is_reading and self._connection.queued(Channel.SERVICE) < QUEUE_BYTES:
            return [(self._client.fileno(), select.POLLIN)]
        return []  # a program that has gone would keep PID 1 busy: the answer shows it

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds until ``turn`` must be called without an event; None: never."""
        if self._client is None or not (self._is_reading or self._out):
            return None
        return max(0, int((self._since + STALLED_SECONDS - time.monotonic()) * 1000) + 1)

    @property
    def _is_reading(self) -> bool:
        return not self._is_begun or self._left > 0

    # -- from the program --------------------------------------------------------------------------

    def turn(self, ready: dict[int, int]) -> None:
        """Move bytes of what is ready."""
        if self._client is None:
            if self._listener is not None and self._listener.fileno() in ready:
                self._accept()
            return
        if self._client.fileno() in ready:
            if self._out:
                self._write()
            elif self._is_reading:
                self._read()
        if self.wait_ms == 0:
            self._lose()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            self._client, _ = self._listener.accept()
        except OSError:  # none waits any more
            return
        self._client.setblocking(False)
        self._since = time.monotonic()

    def _read(self) -> None:
        budget = TURN_BYTES
        while budget > 0 and self._client is not None and self._is_reading:
            size = self._left if self._is_begun else LENGTH.size - len(self._head)
            try:
                data = self._client.recv(min(size, READ_SIZE))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            self._since = time.monotonic()
            budget -= len(data)
            if self._is_begun:
                self._left -= len(data)
                self._send({} if self._left else {"done": True}, data)
            else:
                self._take_head(data)

    def _take_head(self, data: bytes) -> None:
        self._head += data
        if len(self._head) < LENGTH.size:
            return
        (self._left,) = LENGTH.unpack(self._head)
        self._is_begun = True
        if not 0 < self._left <= MAX_QUESTION:
            self._is_begun = False  # the host knows nothing of it
            self._close_client()

    def _send(self, content: dict[str, object], data: bytes) -> None:
        with suppress(LocalProtocolError):  # the run has ended
            part = encode_service(self._number, content, data)
            self._connection.send_message(Channel.SERVICE, [part])

    # -- from the host -----------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a part of an answer.

        :raises RemoteProtocolError: when it is malformed
        """
        answer = decode_service(bytes(message.parts[0]))
        self._connection.consumed(message)
        if answer.call != self._number or self._client is None:
            return  # the program has gone
        size = answer.content.get("size")
        if isinstance(size, int):
            if not 0 <= size < 2**32:
                raise RemoteProtocolError(f"An answer has {size} bytes.")
            self._out += LENGTH.pack(size)
            self._since = time.monotonic()
        self._out += answer.data
        self._is_answered = answer.content.get("done") is True
        self._left = 0  # what is still to come of a question that is refused is not read
        self._write()

    def _write(self) -> None:
        assert self._client is not None
        try:
            written = self._client.send(self._out) if self._out else 0
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        if written:
            self._since = time.monotonic()
        del self._out[:written]
        if self._is_answered and not self._out:
            self._close_client()

    # -- ends --------------------------------------------------------------------------------------

    def _lose(self) -> None:
        """Handle the loss of the program, or its silence."""
        if self._is_begun and not self._is_answered:
            self._send({"gone": True, "done": True}, b"")
        self._close_client()

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._number += 1
        self._head, self._left, self._is_begun = b"", 0, False
        self._out, self._is_answered = bytearray(), False
