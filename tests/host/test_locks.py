"""Locks: a forked child does not keep its parent's, and no process is waited for for ever."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gvisor_kernel.errors import StateError
from gvisor_kernel.host import private_directories
from gvisor_kernel.host.locks import locked_file
from gvisor_kernel.host.private_directories import state_root
from gvisor_kernel.runtimes.state import records

from ..patience import scale_seconds

SECONDS = int(scale_seconds(20))

FORK = """
import os, signal, threading
{hold}
holding, go_on = threading.Event(), threading.Event()

def work():
    with held():
        holding.set()
        go_on.wait()

thread = threading.Thread(target=work)
thread.start()
holding.wait()
pid = os.fork()
if pid == 0:
    signal.alarm({seconds})
    with held():
        os._exit(0)
go_on.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
"""Forks a child while a thread of the parent holds a lock; the child takes the same lock."""


@pytest.mark.parametrize(
    "hold",
    [
        "from gvisor_kernel.runtimes.state.records import locked as held",
        "from gvisor_kernel.bridge import Bridge\nheld = lambda: Bridge._lock",
        "from gvisor_kernel.kernel import snapshot_queue\n"
        "held = lambda: snapshot_queue.SnapshotQueue._lock",
        "from gvisor_kernel.kernel.preparation import SpareKeeper\n"
        "held = lambda: SpareKeeper._lock",
        "import gvisor_kernel.runtimes as them\nheld = lambda: them._lock",
        "from gvisor_kernel.runtimes.runsc import command_line\nheld = lambda: command_line._lock",
        "from gvisor_kernel.runtimes.runsc import staging\nheld = lambda: staging._namespaces_lock",
        "from gvisor_kernel.runtimes.state import lifeline\nheld = lambda: lifeline._lock",
    ],
    ids=lambda hold: hold.split("\n")[0].rpartition(" ")[2],
)
def test_child_can_take_lock_held_at_fork(hold: str) -> None:
    code = FORK.format(hold=hold, seconds=SECONDS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0\n", done.stderr


def test_child_does_not_keep_parents_lock(tmp_path: Path) -> None:
    """The parent is killed while it holds a lock; its child, which lives on, does not hold it."""
    path = tmp_path / "lock"
    code = f"""
import fcntl, os, sys
from gvisor_kernel.host.private_directories import lock
with lock({str(path)!r}, fcntl.LOCK_EX, create=True):
    if os.fork():
        sys.stdout.write("held\\n")
        sys.stdout.flush()
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
        process.wait()
        with private_directories.lock(path, fcntl.LOCK_EX, seconds=SECONDS):
            pass


@contextmanager
def stopped_holder(path: Path) -> Iterator[int]:
    code = "import fcntl, sys; fcntl.flock(0, fcntl.LOCK_EX); print(); sys.stdout.flush(); input()"
    with (
        path.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", code.replace("input()", "import time; time.sleep(600)")],
            stdin=file,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            yield process.pid
        finally:
            process.kill()


def test_stopped_holder_is_named(tmp_path: Path) -> None:
    with stopped_holder(tmp_path / "lock") as pid:
        fd = os.open(tmp_path / "lock", os.O_RDWR)
        held = locked_file(fd, fcntl.LOCK_EX, 0.1)
        with pytest.raises(TimeoutError, match=f"the process {pid} has held its lock"), held:
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_stopped_holder_of_state_directory_is_named() -> None:
    holder = stopped_holder(state_root() / "lock")
    refused = pytest.raises(StateError, match=r"Could not lock .*: the process")
    with holder, refused, records.locked(seconds=0.1):
        pass
    with records.locked():
        pass
