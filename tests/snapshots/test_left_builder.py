"""What a builder of snapshots does when its program ends, and what the next programs know of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.kernel import snapshot_queue
from gvisor_kernel.kernel.snapshot_queue import (
    AGAIN_SECONDS,
    FINISH,
    SnapshotQueue,
    Wanted,
    note_finished,
    note_left,
    was_left,
)
from gvisor_kernel.runtimes.base import Builder

from ..jupyter.helpers import wait_until

BUILDER = """
import sys, threading
from gvisor_kernel.kernel import snapshot_queue
snapshot_queue.LEFT_SECONDS = float(sys.argv[1])
order, said = snapshot_queue.read_order(0)
try:
    print(order.decode(), flush=True)
    snapshot_queue.end_with(0, order, said)
    threading.Event().wait()
except KeyboardInterrupt:
    sys.exit(7)
"""
"""A builder whose work does not end by itself."""
ORDER = b'{"plan": 1}'


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def start_builder(left_seconds: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-c", BUILDER, str(left_seconds)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


@pytest.mark.parametrize(
    ("said", "is_left"),
    [(b"", False), (FINISH[:-1], False), (FINISH, True), (b"x" + FINISH, False)],
)
def test_builder_ends_with_its_program_or_when_it_was_left_too_long(
    said: bytes, is_left: bool
) -> None:
    with start_builder(0) as process:
        assert process.communicate(ORDER + b"\n" + said, timeout=60) == (ORDER + b"\n", None)
    assert process.returncode == 7
    assert was_left(ORDER) is is_left


def test_builder_that_was_left_goes_on() -> None:
    with start_builder(600) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(ORDER + b"\n")
            assert process.stdout.readline() == ORDER + b"\n"
            for byte in FINISH:  # however it arrives, and though the pipe stays open
                process.stdin.write(bytes([byte]))
            wait_until(lambda: was_left(ORDER), "the note", 20)
            assert process.poll() is None
        finally:
            process.kill()


def test_note_holds_for_one_order_and_for_some_time() -> None:
    assert not was_left(ORDER)
    note_left(ORDER + b"\n")
    assert was_left(ORDER)
    assert not was_left(b"another")
    path = state_root() / snapshot_queue.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    now = path.stat().st_mtime
    for jump in (-AGAIN_SECONDS - 60, AGAIN_SECONDS):  # the clock was set back: never for good
        os.utime(path, (now + jump, now + jump))
        assert not was_left(ORDER)
    note_left(ORDER)
    note_finished(b"another")
    assert was_left(ORDER)
    note_finished(ORDER)
    assert not path.exists()
    path.write_bytes(b"x" * 1000)
    assert not was_left(ORDER)


@pytest.mark.parametrize("why_not", ["", "place", "unwanted", "left before", "stopped"])
def test_program_leaves_a_snapshot_that_waits(
    why_not: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = snapshot_queue._start

    def note(builder: Builder, stderr: int) -> subprocess.Popen[bytes]:
        started.append(start(builder, stderr))
        return started[0]

    monkeypatch.setattr(snapshot_queue, "_start", note)
    heard = tmp_path / "heard"
    argv = ("/bin/sh", "-c", f"cat > {heard}")
    builder = Builder(argv, os.environ, ORDER + b"\n", "n1" if why_not == "place" else "")
    queue = SnapshotQueue()
    queue._wanted.append(Wanted("plan", builder, lambda: why_not != "unwanted", lambda: None))
    if why_not == "left before":
        note_left(ORDER)
    if why_not == "stopped":
        queue.stop()
    assert queue.leave() is not bool(why_not)
    queue.end()
    assert len(started) == (not why_not)
    for process in started:
        os.waitpid(process.pid, 0)  # this process does not end, so it gets the status
        assert heard.read_bytes() == ORDER + b"\n" + FINISH


@pytest.mark.parametrize("left_before", [False, True])
def test_builder_that_runs_is_left_once(left_before: bool, tmp_path: Path) -> None:
    """Otherwise each program would leave one of a snapshot that cannot be made."""
    heard = tmp_path / "heard"
    builder = Builder(("/bin/sh", "-c", f"cat > {heard}"), os.environ, ORDER + b"\n", "")
    queue = SnapshotQueue()
    queue._builder = builder
    process = queue._process = snapshot_queue._start(builder, subprocess.DEVNULL)
    if left_before:
        note_left(ORDER)
    assert queue.leave() is not left_before
    queue.end()
    if not left_before:
        os.waitpid(process.pid, 0)  # this process does not end, so it gets the status
    assert heard.read_bytes() == (b"" if left_before else FINISH)


def test_builder_that_has_no_order_yet_is_not_left() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        queue = SnapshotQueue()
        queue._process = process
        assert not queue.leave()
        assert process.communicate() == (b"", None)
