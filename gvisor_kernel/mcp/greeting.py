"""The answer to ``initialize`` over stdio, before the SDK and the sandboxes' modules are imported.

Some clients wait 5 s for it, and on a busy machine that import alone takes 10. Only a plain first
message of a version that is known here is answered. The SDK gets it, too, and its own answer, which
is the same (``tests/mcp/test_greeting.py``), is dropped; all else is the SDK's matter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gvisor_kernel import __version__
from gvisor_kernel.mcp.limits import ServerSettings
from gvisor_kernel.mcp.situation import INSTRUCTIONS, Situation
from gvisor_kernel.strict_json import JsonError, parse_json

NAME, TITLE = "gvisor-kernel", "gVisor sandboxes"
VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MAX_FIRST = 64 * 1024
"""Bytes of a first message that is answered here."""
CAPABILITIES = {
    "completions": {},
    "prompts": {"listChanged": False},
    "resources": {"listChanged": False, "subscribe": False},
    "tools": {"listChanged": False},
}


@contextmanager
def claimed_streams() -> Iterator[tuple[int, int]]:
    """Take descriptors 0 and 1 for the protocol; meanwhile 0 is empty and 1 is stderr."""
    wire_in, wire_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    try:
        yield wire_in, wire_out
    finally:
        os.dup2(wire_out, 1)
        # wire_in stays open: a thread may still read it.
        os.close(wire_out)


class Greeting:
    """Reads the first line of ``wire_in`` in a thread, and answers it if it can."""

    def __init__(self, wire_in: int, wire_out: int, settings: ServerSettings) -> None:
        self.wire_in, self.wire_out = wire_in, wire_out
        self._settings = settings
        self._read = b""
        self._answered: int | str | None = None
        self._thread = threading.Thread(target=self._greet, daemon=True)
        self._thread.start()

    def take(self) -> bytes:
        """Return what was read, which the SDK gets as well. Blocks until there is a line, or the
        end."""
        self._thread.join()
        return self._read

    def is_answer(self, request: int | str | None) -> bool:
        """Return whether an answer to ``request`` was sent here; True once."""
        if self._answered is None or request != self._answered:
            return False
        self._answered = None
        return True

    def _greet(self) -> None:
        with suppress(OSError, ImportError):
            while b"\n" not in self._read and len(self._read) < MAX_FIRST:
                data = os.read(self.wire_in, MAX_FIRST)
                if not data:
                    return
                self._read += data
            line, end, _ = self._read.partition(b"\n")
            request = find_request(line) if end else None
            if request is None or importlib.util.find_spec("mcp") is None:
                return
            answer = memoryview(self._make_answer(request))
            self._answered = request["id"]
            while answer:
                answer = answer[os.write(self.wire_out, answer) :]

    def _make_answer(self, request: dict[str, Any]) -> bytes:
        result = {
            "protocolVersion": request["params"]["protocolVersion"],
            "capabilities": CAPABILITIES,
            "serverInfo": {"name": NAME, "title": TITLE, "version": __version__},
            "instructions": Situation(self._settings).fill(INSTRUCTIONS),
        }
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": result}
        return json.dumps(answer).encode() + b"\n"


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
