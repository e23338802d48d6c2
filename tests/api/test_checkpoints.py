"""Checkpoints: what rolls back, what does not, and that nothing is lost on the way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel import Sandbox

BEGIN = """
import os, queue, subprocess, threading
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
asked, answers = queue.Queue(), queue.Queue()
def work(total=0):
    while True:
        total += asked.get()
        answers.put(total)
threading.Thread(target=work, daemon=True).start()
n = 0
"""
STEP = """
n += 1
asked.put(1)
child.stdin.write(b"%d\\n" % n); child.stdin.flush()
for path in ("/workspace/file", "/tmp/file"):
    with open(path, "a") as file: file.write(str(n))
n, answers.get(timeout=20), child.stdout.readline(), open("/workspace/file").read(), open("/tmp/file").read()
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(outputs=tmp_path / "out", memory="1G") as sandbox:
        yield sandbox


def step(sandbox: Sandbox) -> tuple[object, ...]:
    execution = sandbox.run(STEP)
    assert execution.error is None
    return (execution.execution_count, *ast.literal_eval(execution.text or ""))


def test_all_of_the_kernel_goes_back_and_comes_again(sandbox: Sandbox) -> None:
    assert sandbox.run(BEGIN).ok
    first = step(sandbox)
    assert sandbox.checkpoint("one") == "one"
    second, third = step(sandbox), step(sandbox)
    for _ in range(2):
        assert sandbox.rewind("one").changed == ()
        assert step(sandbox) == second
    sandbox.rewind("before-rewind")  # after `second`, as the last rewind has left it
    assert step(sandbox) == third
    assert first[1:3] == (1, 1)
    listed = {one.name: one for one in sandbox.checkpoints()}
    assert listed.keys() == {"one", "before-rewind"}
    assert (listed["one"].kind, listed["one"].cell) == ("named", first[0])
    assert listed["before-rewind"].kind == "before-rewind"
