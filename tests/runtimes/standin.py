"""A program that answers questions as PID 1, and its client: tests look from inside a sandbox.

A question is a line with a Python expression; an answer is a line of JSON. The program ends with
its stdin, unless a question keeps it busy.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

from gvisor_kernel.runtimes.base import Sandbox

from ..patience import scale_seconds

ANSWER_SECONDS = scale_seconds(20)

PROGRAM = """
import json, os, sys, time
known = {"os": os, "sys": sys, "time": time}
def run(code):
    exec(code, known)
def read(path):
    with open(path) as file:
        return file.read()
known.update(run=run, read=read)
for line in sys.stdin:
    try:
        answer = [True, eval(line, known)]
    except Exception as error:
        answer = [False, repr(error)]
    print(json.dumps(answer), flush=True)
"""


def standin_argv(python: str) -> list[str]:
    return [python, "-I", "-c", PROGRAM]


class Failed(Exception):
    """The expression raised this inside."""


class Conversation:
    """The client of one sandbox's stand-in."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._unread = b""

    def tell(self, expression: str) -> None:
        """Send a question whose answer is not read."""
        assert "\n" not in expression
        os.write(self.sandbox.link_in, expression.encode() + b"\n")

    def ask(self, expression: str) -> Any:
        """Return the value of ``expression`` inside.

        :raises Failed: when the expression raises
        """
        self.tell(expression)
        works, value = json.loads(self._read_line())
        if not works:
            raise Failed(value)
        return value

    def _read_line(self) -> bytes:
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._unread:
            ready, _, _ = select.select(
                [self.sandbox.link_out], [], [], max(deadline - time.monotonic(), 0)
            )
            content = os.read(self.sandbox.link_out, 65536) if ready else b""
            assert content, f"no answer from inside; its stderr: {self.sandbox.stderr_tail()!r}"
            self._unread += content
        line, _, self._unread = self._unread.partition(b"\n")
        return line
