"""``jupyter console`` on a pseudo-terminal, with typed input.

While a cell runs, jupyter_console answers ``input()`` and prints only until the status "idle" of
any request of its own: an older request's ends that, too, if "busy" of the cell comes more than
50 ms after the cell was sent. So nothing here leaves such a status unread. The console does not ask
the kernel whether a cell is complete: two empty lines end each.
"""

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
        [
            *("-m", "jupyter_console", "--kernel", SOONEST),
            "--ZMQTerminalInteractiveShell.banner=",
            "--ZMQTerminalInteractiveShell.use_kernel_is_complete=False",
        ],
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"},
        dimensions=(40, 120),
        encoding="utf-8",
        cwd=tmp_path,
        timeout=SECONDS,
    )
    try:
        expect_prompt(child, 1)
        run(child, " ")  # reads the statuses of the requests of its start
        expect_prompt(child, 1)
        yield child
    finally:
        child.close(force=True)


def run(child: pexpect.spawn, cell: str) -> None:
    """Type a cell, and wait until the console has taken it."""
    child.send(f"{cell}\r\r\r")
    child.expect_exact(END_OF_TYPING)


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
    run(console, "print(6 * 7)")
    assert "42" in expect_prompt(console, 2)

    run(console, "name = input('who? ')")  # the typed line contains the question, too
    console.expect(r"who\? ")
    console.send("Ada\r")
    expect_prompt(console, 3)
    run(console, "'hello ' + name")
    assert "hello Ada" in expect_prompt(console, 4)

    run(console, f"import time; open({inside!r}, 'w').close(); time.sleep(600)")
    wait_until(started.exists, "the cell to run")
    console.sendintr()
    assert "KeyboardInterrupt" in expect_prompt(console, 5)

    run(console, "exit()")
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
