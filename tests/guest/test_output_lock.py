"""The lock that a kernel's output streams take at each ``write``."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PROGRAM = """
    import os, threading
    from gvisor_kernel.guest.ipykernel_shortcuts import STREAM_PARTS, flush_by_link

    class Stream:
        _buffer_lock = threading.RLock()

    def can_take(lock):
        taken = []
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(False)))
        thread.start()
        thread.join()
        return taken[0]

    stream = Stream()
    for part in ("flush", *STREAM_PARTS):
        setattr(stream, part, lambda: [])
    assert flush_by_link(stream, None)
    lock = stream._buffer_lock
    # RLock reads the clock even if nobody holds it (3.11 to 3.13).
    assert type(lock) is not type(threading.RLock()), lock
    with lock:
        with lock:
            pass
        assert not can_take(lock)
        child = os.fork()
        if child == 0:
            os._exit(0 if can_take(stream._buffer_lock) else 1)
        assert os.waitpid(child, 0)[1] == 0, "a child waits for a lock of its parent"
    assert can_take(lock)
"""


def test_lock_is_reentrant_and_not_a_childs(tmp_path: Path) -> None:
    """And it is none of threading's: each of those costs a system call after a restore."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run([sys.executable, program], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
