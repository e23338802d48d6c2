"""A builder of snapshots that goes on when the program that started it has ended.

A program that runs one notebook ends before its snapshot is made, and the next one would start
cold again. So it leaves the builder to itself: the builder then ends after LEFT_SECONDS at the
latest. If it does not finish, no other program leaves one for the same snapshot for AGAIN_SECONDS.
Here is what program and builder tell each other; the program's side is ``snapshot_queue``.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.errors import StateError
from gvisor_kernel.host.private_directories import read_file, write_file
from gvisor_kernel.runtimes.state.records import state_root

# by path: below the state directory, whose parents only this user can change; and the null device

FINISH = b"finish\n"
"""Sent after the order: the program ends, and its builder goes on."""
LEFT_SECONDS = 120.0
"""Seconds that a builder may go on without its program. It takes some five seconds of CPU time, at
the lowest priority."""
AGAIN_SECONDS = 3600.0
GIVE_UP_SECONDS = 10.0
"""Seconds that a builder that must end may take to remove what it has begun."""
MAX_ORDER = 1024 * 1024
"""Bytes of an order, which is a plan and a newline."""
FILE = "left-snapshot"


def read_order(fd: int) -> tuple[bytes, bytes]:
    """Return the order, which is the first line from ``fd``, and what has come after it. Blocks.

    Reads no further than it must: ``end_with`` reads the rest.
    """
    content = b""
    while b"\n" not in content and len(content) < MAX_ORDER:
        # no timeout: the order is there, or its program has ended; the rest is read after a poll
        more = os.read(fd, 65536)
        if not more:
            break
        content += more
    order, _, rest = content.partition(b"\n")
    return order, rest


def end_with(fd: int, order: bytes = b"", said: bytes = b"") -> None:
    """Let this process end, and remove what it has begun, when ``fd`` ends: then its program has.

    After FINISH it goes on for LEFT_SECONDS. ``said``: what was read from ``fd`` already.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        if _hear_finish(fd, said):
            note_left(order)
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)  # nobody reads it any more
            time.sleep(LEFT_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GIVE_UP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _hear_finish(fd: int, heard: bytes) -> bool:
    """Wait for FINISH, or for the end of ``fd``; return whether it was FINISH.

    Does not wait for the end after FINISH: a child of the program may have a copy of the pipe.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    with suppress(OSError):
        # no timeout: a thread of its own, which waits for work until it is told to end
        while len(heard) < len(FINISH) and poller.poll():
            with suppress(BlockingIOError):
                # no timeout: the order is there, or its program has ended; the rest is read after a
                # poll
                more = os.read(fd, 65536)
                if not more:
                    break
                heard += more
    return heard.startswith(FINISH)


# -- the note about the last one, for all programs of this user ------------------------------------


def was_left(order: bytes) -> bool:
    """Return whether the snapshot of ``order`` was left lately, and not finished since."""
    with suppress(OSError, StateError):
        path = state_root() / FILE
        if 0 <= time.time() - path.stat().st_mtime < AGAIN_SECONDS:
            return read_file(path, len(_name(order))).decode(errors="replace") == _name(order)
    return False


def note_left(order: bytes) -> None:
    """Note that the snapshot of ``order`` was left. Never raises: then it may be begun again."""
    with suppress(OSError, StateError), tempfile.TemporaryDirectory(dir=state_root()) as folder:
        draft = Path(folder, FILE)
        write_file(draft, _name(order))
        draft.replace(state_root() / FILE)


def note_finished(order: bytes) -> None:
    """Forget that the snapshot of ``order`` was left. Never raises."""
    if was_left(order):
        with suppress(OSError, StateError):
            (state_root() / FILE).unlink()


def _name(order: bytes) -> str:
    return hashlib.sha256(order.strip()).hexdigest()
