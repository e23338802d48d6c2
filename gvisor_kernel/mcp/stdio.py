"""stdin and stdout as the protocol's, and the answer to ``initialize`` before the SDK is imported.

Some clients wait 5 s for that answer, and on a busy machine the import of the SDK alone takes 10.
So nothing here needs it. Only a plain first message of a version that is known here is answered.
The SDK gets it, too, and its own answer, which is the same (``tests/mcp/test_greeting.py``), is
dropped; all else is the SDK's matter.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gvisor_kernel import __version__
from gvisor_kernel.mcp.settings import INSTRUCTIONS, ServerSettings, Wording
from gvisor_kernel.strict_json import JsonError, parse_json

NAME, TITLE = "gvisor-kernel", "gVisor sandboxes"
LEFT_MILLISECONDS = 1000
"""A client that has closed stdin, and reads nothing for so long, has left."""
VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MAX_FIRST = 64 * 1024
"""Bytes of a first message that is answered here: a plain one has some 300."""
CAPABILITIES = {
    "completions": {},
    "prompts": {"listChanged": False},
    "resources": {"listChanged": False, "subscribe": False},
    "tools": {"listChanged": False},
}


class Wire(io.RawIOBase):
    """The client's end of stdin and stdout.

    After ``stop``, reading ends and what is written is dropped: the SDK reads and writes in threads
    that nothing else could end.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._stop = os.eventfd(0)
        self._has_ended = False
        self._first = b""
        """What was read before the SDK was there."""
        self._drops = False
        """The next line that is written is dropped."""
        self._greeting: threading.Thread | None = None

    def readable(self) -> bool:
        """Return True: this is stdin."""
        return True

    def writable(self) -> bool:
        """Return True: this is stdout, too."""
        return True

    def open_texts(self) -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
        """Return stdin and stdout for the SDK."""
        reading, writing = io.BufferedReader(self), io.BufferedWriter(self)
        return (
            io.TextIOWrapper(reading, encoding="utf-8", errors="replace"),
            io.TextIOWrapper(writing, encoding="utf-8", errors="replace"),
        )

    def stop(self) -> None:
        """End what waits for the client."""
        os.eventfd_write(self._stop, 1)

    def _wait(self, fd: int, event: int) -> bool:
        """Wait until a descriptor is ready; False after ``stop``."""
        poller = select.poll()
        poller.register(fd, event)
        poller.register(self._stop, select.POLLIN)
        timeout = LEFT_MILLISECONDS if event == select.POLLOUT else None
        while not (ready := poller.poll(timeout)):
            if self._has_ended:
                self.stop()
        return self._stop not in dict(ready)

    def _receive(self, size: int) -> bytes:
        data = b""
        if self._wait(self._reading, select.POLLIN):
            with suppress(OSError):
                data = os.read(self._reading, size)  # no timeout: it is ready, or does not block
        self._has_ended = not data
        return data

    def _send(self, data: bytes) -> int:
        """Send a part of ``data``, and return its length. What nobody reads is dropped."""
        try:
            if self._wait(self._writing, select.POLLOUT):
                # This does not block: a pipe that is ready has room for PIPE_BUF.
                return os.write(self._writing, data[: select.PIPE_BUF])
        except OSError:
            pass  # the client has left; its end of stdin tells the rest
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Read what the client sends, from its first line on."""
        if self._greeting is not None:
            # no timeout: for the client of an MCP server; only its own requests wait, and a signal
            # ends it
            self._greeting.join()
            self._greeting = None
        data = self._first[: len(buffer)] or self._receive(len(buffer))
        self._first = self._first[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        """Write what the SDK answers, but for its answer to a line that was answered here.

        The SDK answers that line before it reads the next one, so its answer is the first line.
        """
        if not self._drops:
            return self._send(bytes(data))
        line, end, _ = bytes(data).partition(b"\n")
        self._drops = not end
        return len(line + end)

    def greet(self, settings: ServerSettings) -> None:
        """Begin to read the first line in a thread, and to answer it if that is possible."""
        self._greeting = threading.Thread(target=self._greet, args=(settings,), daemon=True)
        self._greeting.start()

    def _greet(self, settings: ServerSettings) -> None:
        while b"\n" not in self._first and len(self._first) < MAX_FIRST:
            data = self._receive(MAX_FIRST)
            if not data:
                return
            self._first += data
        line, end, _ = self._first.partition(b"\n")
        request = find_request(line) if end else None
        with suppress(ImportError):
            if request is not None and importlib.util.find_spec("mcp") is not None:
                answer = make_answer(request, settings)
                self._drops = True
                while answer:
                    answer = answer[self._send(answer) :]


@contextmanager
def claimed_streams() -> Iterator[Wire]:
    """Take descriptors 0 and 1 for the protocol; meanwhile 0 is empty and 1 is stderr.

    So nothing that a library prints can be taken for a message.
    """
    reading, writing = os.dup(0), os.dup(1)
    # by path: the kernel's own file systems, /proc, /sys and /dev
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    try:
        yield Wire(reading, writing)
    finally:
        os.dup2(writing, 1)
        # The duplicates stay open: a thread may still use them.


def make_answer(request: dict[str, Any], settings: ServerSettings) -> bytes:
    """Return the answer to ``initialize``, as the SDK gives it."""
    result = {
        "protocolVersion": request["params"]["protocolVersion"],
        "capabilities": CAPABILITIES,
        "serverInfo": {"name": NAME, "title": TITLE, "version": __version__},
        "instructions": Wording(settings).fill(INSTRUCTIONS),
    }
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode() + b"\n"


def find_request(line: bytes) -> dict[str, Any] | None:
    """Return the request ``initialize`` in a line; None if there is any doubt about it."""
    try:
        message = parse_json(line, MAX_FIRST)
        params, identity = message["params"], message["id"]
        client = params["clientInfo"]
        is_plain = (
            message["jsonrpc"] == "2.0"
            and message["method"] == "initialize"
            and type(identity) in (int, str)
            and params["protocolVersion"] in VERSIONS
            and type(params["capabilities"]) is dict
            and type(client["name"]) is type(client["version"]) is str
        )
    except (JsonError, KeyError, TypeError):
        return None
    return message if is_plain else None
