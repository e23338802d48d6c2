"""Packs images of kernels in the background, by a process of the lowest priority, one at a time.

That process may be killed at any step (``pages``). It ends with this one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

from gvisor_kernel.host.locks import PerProcess
from gvisor_kernel.runtimes.state.pages import pack_all

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
"""The wait after a checkpoint: perhaps its kernel has something to do, or another one is made."""
KILLED_SECONDS = 10.0


class Packer(PerProcess):
    """Packs the images in folders. One per process: use ``instance()``. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: dict[Path, None] = {}
        self._paused: Counter[Path] = Counter()
        self._current: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # no timeout: held for a few steps that do not wait
        self._ended = False

    def pause(self, folder: Path) -> None:
        """Work on ``folder`` no more until ``resume``. Blocks for milliseconds."""
        with self._changed:
            self._paused[folder] += 1
            self._stop(folder)

    def resume(self, folder: Path) -> None:
        """End a ``pause``, and pack what there is in ``folder``. Returns at once."""
        with self._changed:
            self._paused[folder] -= 1
            self._wanted[folder] = None
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(
                    target=self._run, name="gvisor-kernel-packer", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def leave(self, folder: Path) -> None:
        """Work on ``folder`` no more: it is removed. Blocks for milliseconds."""
        with self._changed:
            self._wanted.pop(folder, None)
            self._stop(folder)

    def _stop(self, folder: Path) -> None:
        if self._current == folder:
            if self._process is not None:
                self._process.kill()
            self._changed.wait_for(lambda: self._current != folder, KILLED_SECONDS)

    def _find_next(self) -> Path | None:
        return next((one for one in self._wanted if not self._paused[one]), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                # no timeout: a thread of its own, which waits for work until it is told to end
                self._changed.wait_for(lambda: self._ended or self._find_next() is not None)
                if self._ended or self._changed.wait_for(lambda: self._ended, WAIT_SECONDS):
                    return
                folder = self._find_next()
                if folder is None:
                    continue
                del self._wanted[folder]
                with suppress(OSError):
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", __name__, str(folder)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        start_new_session=True,
                    )
                    self._current = folder
            if (process := self._process) is not None:
                assert process.stdin is not None
                assert process.stderr is not None
                # no timeout: a thread of its own; whoever needs the folder kills the process
                told = process.stderr.read().decode(errors="replace").strip()
                process.wait()  # no timeout: it has closed its standard error
                if told:
                    log.warning("%s", told)
                process.stdin.close()
                process.stderr.close()
            with self._changed:
                self._current = self._process = None
                self._changed.notify_all()

    def end(self) -> None:
        """End the process. Called at exit."""
        if self.is_inherited:
            return
        with self._changed:
            self._ended = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()


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
