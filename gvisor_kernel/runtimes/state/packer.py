"""Packs images of kernels in the background, by processes of the lowest priority, one at a time.

Such a process may be killed at any step (``pages``). It ends with this one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.host.locks import PerProcess, ThreadLock
from gvisor_kernel.runtimes.state.pages import pack_all

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
"""The wait after a checkpoint: perhaps its kernel has something to do, or another one is made."""
KILLED_SECONDS = 10.0


class Packer(PerProcess):
    """Packs the images in folders. One per process: use ``instance()``. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[Path, _Job] = {}
        self._turn = threading.Lock()  # no timeout: of threads of their own, for which nobody waits

    def leave(self, folder: Path) -> None:
        """Work on ``folder`` no more, until ``begin``. Blocks for milliseconds."""
        job = self._jobs.pop(folder, None)
        if job is not None:
            job.stop()

    def begin(self, folder: Path) -> None:
        """Pack what there is in ``folder``, in a second. Returns at once. One caller at a time."""
        self.leave(folder)
        job = self._jobs[folder] = _Job(folder, self._turn)
        job.start()

    def end(self) -> None:
        """End the processes. Called at exit."""
        if not self.is_inherited:
            for folder in list(self._jobs):
                self.leave(folder)


class _Job(threading.Thread):
    def __init__(self, folder: Path, turn: threading.Lock) -> None:
        super().__init__(name="gvisor-kernel-packer", daemon=True)
        self._folder = folder
        self._turn = turn
        self._stopped = threading.Event()
        self._beginning = ThreadLock()
        self._process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        with self._beginning:
            self._stopped.set()
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(KILLED_SECONDS)

    def run(self) -> None:
        if self._stopped.wait(WAIT_SECONDS):
            return
        with self._turn, suppress(OSError):
            with self._beginning:
                if self._stopped.is_set():
                    return
                process = self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__, str(self._folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            assert process.stderr is not None
            with process:
                # no timeout: a thread of its own; whoever needs the folder kills the process
                told = process.stderr.read().decode(errors="replace").strip()
            if told:
                log.warning("%s", told)


def _end_with_owner() -> None:
    with suppress(OSError):
        os.read(0, 1)  # no timeout: until the owner ends, or kills this process
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Pack the folder that the command line names."""
    threading.Thread(target=_end_with_owner, daemon=True).start()
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError):  # it is tried again after the next checkpoint
        pack_all(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
