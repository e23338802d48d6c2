"""PID 1's end of the service process: starts it when the host asks something, and passes bytes.

The service process works with files and runs commands for the host, as the kernel's user, whatever
the kernel's language is and whatever it does. PID 1 only carries its messages: code of the sandbox
may have taken the process over. The host checks all answers.

Between PID 1 and the process each message is preceded by its length, u32, big endian.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections import deque
from contextlib import suppress

from gvisor_kernel.guest import identity, process, workspace
from gvisor_kernel.guest.guest_log import GuestLog
from gvisor_kernel.guest.process import LINK_FD, KernelProcess, StartError
from gvisor_kernel.link import Channel, Connection, LocalProtocolError, Message
from gvisor_kernel.link.service_messages import (
    LENGTH,
    MAX_SERVICE_MESSAGE,
    PROCESS,
    RELEASED,
    decode_call,
    decode_service,
    encode_service,
)

READ_SIZE = 256 * 1024
MAX_LEFT, LEFT_SECONDS = 200, 0.2
"""Files that are named at the end of a run, and how long they are looked for. The host leaves out
those that were applied."""
MAX_LEFT_TEXT, LEFT_HASHED = 24 * 1024, 4 * 1024 * 1024
"""Bytes of their names, and of their contents that are read to tell them from what was applied."""
HELD_SECONDS = 60.0
"""Seconds that the host has to read files at the end of a run, where it wants to."""
MAX_QUEUED = 1024 * 1024
"""Bytes of answers that may wait for the host. Above it nothing is read from the process."""


class Service:
    """At most one service process, from the host's first message to ``stop`` or its end."""

    def __init__(self, connection: Connection, log: GuestLog) -> None:
        self._connection = connection
        self._log = log
        self._environment: dict[str, str] = {}
        self._cwd = "/"
        self.held_until = 0.0
        """The end of the time in which the host reads files of a run whose kernel has ended."""
        self._process: KernelProcess | None = None
        self._socket: socket.socket | None = None
        self._waiting: deque[tuple[memoryview, Message | None]] = deque()
        """Bytes for the process; with the last ones of a message, the message."""
        self._partial = bytearray()

    def begin(self, environment: dict[str, str], cwd: str) -> None:
        """Begin a run. The process of this run gets what its kernel gets."""
        self.stop()
        self._environment, self._cwd = dict(environment), cwd

    def resume(self, environment: dict[str, str], cwd: str) -> None:
        """Continue the run of a snapshot with what its kernel gets."""
        self.begin({**self._environment, **environment}, cwd)

    def tell_left(self) -> None:
        """Tell the host which files of /workspace there are at the end of a run."""
        from gvisor_kernel.guest.service_changes import find_changes

        with suppress(OSError):
            with identity.as_kernel():
                found = find_changes(MAX_LEFT, LEFT_SECONDS, True, True, hashed=LEFT_HASHED)
            size, left = 0, []
            for entry in found["entries"]:
                size += len(json.dumps(entry[0]))
                if size > MAX_LEFT_TEXT:
                    found["more"] = True
                    break
                left.append(entry)
            self._send(encode_service(PROCESS, {**found, "entries": left, "ended": True}))
            if workspace.HOLDS in self._environment.get(workspace.VARIABLE, "").split():
                self.held_until = time.monotonic() + HELD_SECONDS

    def stop(self) -> None:
        """End the process. What waits for it is dropped."""
        for _, message in self._waiting:
            if message is not None:
                self._connection.consumed(message)
        self._waiting.clear()
        self._partial.clear()
        if self._socket is not None:
            self._socket.close()  # the process ends itself and its commands when it sees that
            self._socket = None
        if self._process is not None:
            for fd in tuple(self._process.output):
                self._process.close_output(fd)
            self._process = None

    # -- waiting ---------------------------------------------------------------------------------

    @property
    def polled(self) -> list[tuple[int, int]]:
        """The descriptors to poll, each with its events."""
        if self._socket is None or self._process is None:
            return []
        events = select.POLLOUT if self._waiting else 0
        if self._connection.queued(Channel.SERVICE) < MAX_QUEUED:
            events |= select.POLLIN
        polled = [(fd, int(select.POLLIN)) for fd in self._process.output]
        return [(self._socket.fileno(), events), *polled] if events else polled

    def turn(self, ready: dict[int, int]) -> None:
        """Move bytes of what is ready."""
        if self._process is None or self._socket is None:
            return
        for fd, source in tuple(self._process.output.items()):
            if fd in ready:
                with suppress(BlockingIOError):
                    data = os.read(fd, 16 * 1024)
                    if data:
                        self._log.forward_output(source, data)
                    else:
                        self._process.close_output(fd)
        events = ready.get(self._socket.fileno(), 0)
        if events & select.POLLOUT:
            self._write()
        if events & ~select.POLLOUT:
            self._read()

    # -- to the process --------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Pass a message of the host on; start the process for it if there is none.

        :raises RemoteProtocolError: when it is too short
        """
        part = bytes(message.parts[0])
        call = decode_call(part)
        if call == PROCESS:
            self._connection.consumed(message)
            if RELEASED in decode_service(part).content:
                self.held_until = 0.0
            self.stop()
            return
        if self._process is None:
            failure = self._start()
            if failure:
                self._connection.consumed(message)
                self._send(encode_service(call, {"error": failure, "done": True}))
                return
        self._waiting.append((memoryview(LENGTH.pack(len(part)) + part), message))
        self._write()

    def _start(self) -> str:
        """Start the process; return why that fails."""
        own_end, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = process.start_fork(
                "The service process", self._environment, self._cwd, other_end.fileno(), self._serve
            )
        except (OSError, StartError) as error:
            own_end.close()
            return f"A process for it cannot be started in the sandbox: {error}"
        finally:
            other_end.close()
        own_end.setblocking(False)
        self._socket = own_end
        return ""

    def _serve(self) -> None:
        """Run in the process."""
        signal.set_wakeup_fd(-1)
        os.environ.clear()
        os.environ.update(self._environment)
        # Not in PID 1, where it would delay each start.
        from gvisor_kernel.guest.service_process import serve

        serve(LINK_FD)

    def _write(self) -> None:
        while self._waiting and self._socket is not None:
            data, message = self._waiting[0]
            try:
                written = self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._lose()
                return
            if written < len(data):
                self._waiting[0] = data[written:], message
                continue
            self._waiting.popleft()
            if message is not None:
                self._connection.consumed(message)

    # -- from the process ------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._partial += data
        while len(self._partial) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._partial)
            if length > MAX_SERVICE_MESSAGE:
                self._lose()
                return
            end = LENGTH.size + length
            if len(self._partial) < end:
                return
            part = bytes(self._partial[LENGTH.size : end])
            del self._partial[:end]
            self._send(part)

    def _send(self, part: bytes) -> None:
        with suppress(LocalProtocolError):  # the run has ended, or the process sends nonsense
            self._connection.send_message(Channel.SERVICE, [part])

    def _lose(self) -> None:
        """Tell the host that the process has ended, or does not follow the protocol."""
        if self._process is not None:
            self._process.signal_group(signal.SIGKILL)
        self.stop()
        self._send(encode_service(PROCESS, {"ended": True}))
