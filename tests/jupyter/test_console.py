"""``jupyter console`` on a pseudo-terminal, with typed input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import pexpect
import pytest

from .helpers import KERNEL, SECONDS

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()].|[=>])")

END_OF_TYPING = "\x1b[?2004l"
"""The terminal code that ends bracketed paste: the line is complete."""


@pytest.fixture
def console() -> Iterator[pexpect.spawn]:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "jupyter_console", "--kernel", KERNEL, "--ZMQTerminalInteractiveShell.banner="],
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"},
        dimensions=(40, 120),
        encoding="utf-8",
        timeout=SECONDS,
    )
    try:
        expect_prompt(child, 1)
        yield child
    finally:
        child.close(force=True)


def expect_prompt(child: pexpect.spawn, number: int) -> str:
    """Wait for the prompt; return the text before it, without terminal escapes."""
    child.expect(rf"In \[.{{0,12}}{number}.{{0,12}}\]:")
    return ESCAPES.sub("", child.before)


def test_console_session(console: pexpect.spawn) -> None:
    """Run code, answer input(), interrupt, continue, exit."""
    console.send("print(6 * 7)\r")
    assert "42" in expect_prompt(console, 2)

    console.send("name = input('who? ')\r")
    console.expect_exact(END_OF_TYPING)  # the typed line contains the question, too
    console.expect(r"who\? ")
    console.send("Ada\r")
    expect_prompt(console, 3)
    console.send("'hello ' + name\r")
    assert "hello Ada" in expect_prompt(console, 4)

    console.send("import time; print('go' * 3); time.sleep(600)\r")
    console.expect("gogogo")
    console.sendintr()
    assert "KeyboardInterrupt" in expect_prompt(console, 5)

    console.send("exit\r")
    console.expect(pexpect.EOF)
    console.wait()
    assert console.exitstatus == 0


def test_end_of_file_ends_console(console: pexpect.spawn) -> None:
    console.sendeof()
    console.expect("exit")
    console.send("y\r")
    console.expect(pexpect.EOF)
    console.wait()
    assert console.exitstatus == 0
