"""``jupyter console`` on a pseudo-terminal, with typed input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from .helpers import SANDBOXED, SECONDS, SOONEST, wait_until

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()].|[=>])")

END_OF_TYPING = "\x1b[?2004l"
"""The terminal code that ends bracketed paste: the line is complete."""


@pytest.fixture
def console(tmp_path: Path) -> Iterator[pexpect.spawn]:
    (tmp_path / "outputs").mkdir()
    child = pexpect.spawn(
        sys.executable,
        ["-m", "jupyter_console", "--kernel", SOONEST, "--ZMQTerminalInteractiveShell.banner="],
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"},
        dimensions=(40, 120),
        encoding="utf-8",
        cwd=tmp_path,
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


def test_console_runs_cells_answers_input_and_is_interrupted(
    console: pexpect.spawn, tmp_path: Path
) -> None:
    """Run code, answer input(), interrupt, continue, exit."""
    started = tmp_path / "outputs" / "started"
    inside = f"/mnt/user-data/outputs/{started.name}" if SANDBOXED else str(started)
    console.send("print(6 * 7)\r")
    assert "42" in expect_prompt(console, 2)

    console.send("name = input('who? ')\r")
    console.expect_exact(END_OF_TYPING)  # the typed line contains the question, too
    console.expect(r"who\? ")
    console.send("Ada\r")
    expect_prompt(console, 3)
    console.send("'hello ' + name\r")
    assert "hello Ada" in expect_prompt(console, 4)

    # Not by what is printed: jupyter_console stops printing a cell's output when the status "idle"
    # of its own is_complete_request comes after the cell was sent.
    console.send(f"import time; open({inside!r}, 'w').close(); time.sleep(600)\r")
    wait_until(started.exists, "the cell to run")
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
