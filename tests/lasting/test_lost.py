"""What does not go on: each row of the second table of docs/state.md that no other test shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gvisor_kernel import Sandbox
from gvisor_kernel.errors import SnapshotError
from gvisor_kernel.runtimes.runsc.command_line import find_runsc

from ..sweeps import needs_all

READ = "/mnt/user-data/uploads/read"
OUT = "/mnt/user-data/outputs"
CONNECTIONS = """
import socket, zmq
server = socket.create_server(("127.0.0.1", 0)); address = "tcp://127.0.0.1:%d"
context, ours, theirs = zmq.Context(), [], []
for _ in range(20):
    one = context.socket(zmq.STREAM)
    one.connect(address % server.getsockname()[1])
    theirs.append(server.accept()[0]); theirs[-1].send(b"hello")
    one.recv(), one.recv(), one.recv(), one.recv()
    ours.append(one)
"""
CLOSE = "for one in ours: one.close(0)\nfreed = [bytes(n) for n in range(5000)]"


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "read").write_text("a" * 9000)
    return tmp_path / "shown"


@pytest.fixture
def sandbox(shown: Path, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(memory="1G", uploads=shown, outputs=tmp_path / "out") as sandbox:
        sandbox.run(f"x = 5; file = open({READ!r}); file.read(1)")
        yield sandbox


def test_a_folder_that_changes_while_the_kernel_sleeps(
    sandbox: Sandbox, shown: Path, tmp_path: Path
) -> None:
    """What is removed or moved keeps it asleep until it is back; what is changed is seen so."""
    (other := tmp_path / "other").mkdir()
    for taken, replacement in ((shown / "read", None), (shown, None), (shown, other)):
        sandbox.hibernate()
        taken.rename(aside := tmp_path / "aside")
        if replacement is not None:
            replacement.rename(taken)
        error = sandbox.run("x").error
        assert error is not None, (taken, replacement)
        assert "stays saved" in error.value
        assert sandbox.is_hibernated
        if replacement is not None:
            taken.rename(replacement)
        aside.rename(taken)
        assert sandbox.run("x, len(file.read(1))").text == "(5, 1)"
    sandbox.hibernate()
    (shown / "read").write_text("b" * 9000)
    assert sandbox.run("'b' in file.read()").text == "True"
    assert sandbox.run("x").text == "5"


def test_a_deleted_file_of_the_outputs_that_is_open(sandbox: Sandbox) -> None:
    """An older gVisor cannot save it, and the kernel goes on; with a later one it is there."""
    sandbox.run(f"import os; gone = open('{OUT}/gone', 'w+'); gone.write('still'); gone.flush()")
    sandbox.run(f"os.remove('{OUT}/gone')")
    try:
        sandbox.hibernate()
    except SnapshotError:
        assert not sandbox.is_hibernated
    assert sandbox.run("gone.seek(0); gone.read()").text == "'still'"
    sandbox.run("gone.close()")
    sandbox.hibernate()
    assert sandbox.run("x").text == "5"


@needs_all
def test_connections_of_zeromq_that_were_open_over_a_sleep_and_are_closed(
    sandbox: Sandbox,
) -> None:
    """With gVisor before April 2026 the kernel may end at a later wake, as the table says. Then it
    is told so, and one that is started anew works."""
    assert sandbox.run(CONNECTIONS).ok
    sandbox.hibernate()
    sandbox.run(CLOSE)
    for _ in range(3):
        sandbox.hibernate()
        error = sandbox.run("x").error
        if error is not None:
            assert error.name == "KernelDied"
            sandbox.restart()
            assert sandbox.run("1").text == "1"
            pytest.xfail(f"gVisor {find_runsc().version}: {error.value}")
