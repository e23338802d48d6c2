"""Images made in the background: one process at a time, of low priority, that ends with this one.

Here is only when one is wanted and who makes it; how it is made stands in ``imaging``, which that
process runs.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter, deque
from contextlib import suppress

from gvisor_kernel.host.locks import ThreadLock
from gvisor_kernel.kernel.plan import KernelPlan, write_plan
from gvisor_kernel.snapshots.build import MAX_BUILD_SECONDS

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
"""After a cold start, before anything is done: its user has begun to work, and may want more."""
END_SECONDS = 15.0
BUILD = ("-P", "-m", "gvisor_kernel", "snapshot", "build", "--plan")
"""``-P``: nothing is imported from the working directory, which may be a folder of notebooks."""
TRIES = 2
"""Of making one image, in this process's life."""


class SnapshotBuilder:
    """Of one process. Use ``SnapshotBuilder.instance()``; any thread."""

    _instance: SnapshotBuilder | None = None
    _lock = ThreadLock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._wanted: deque[str] = deque()
        self._current = ""
        self._failed: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def instance(cls) -> SnapshotBuilder:
        with cls._lock:
            if cls._instance is None or cls._instance._pid != os.getpid():
                cls._instance = cls()
                atexit.register(cls._instance.end)
            return cls._instance

    def want(self, plan: KernelPlan) -> None:
        """Make an image for kernels like ``plan``'s, sometime, if nobody has made it by then."""
        text = json.dumps(write_plan(plan), sort_keys=True)
        with self._changed:
            if self._ended or text in (self._current, *self._wanted):
                return
            if self._failed[text] >= TRIES:
                return
            self._wanted.append(text)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="gvisor-kernel-images", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or bool(self._wanted))
                if self._ended or self._changed.wait_for(lambda: self._ended, WAIT_SECONDS):
                    return
                text = self._current = self._wanted.popleft()
                try:
                    process = self._process = subprocess.Popen(
                        [sys.executable, *BUILD],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        bufsize=0,
                        start_new_session=True,
                    )
                except OSError as error:
                    log.info("No image of a kernel can be made: %s", error)
                    continue
            self._wait(process, text)
            with self._changed:
                self._current = ""

    def _wait(self, process: subprocess.Popen[bytes], text: str) -> None:
        """The builder ends with its stdin, which this process keeps open as long as it lives."""
        assert process.stdin is not None
        assert process.stderr is not None
        words = b""
        late = threading.Timer(MAX_BUILD_SECONDS, process.kill)
        late.daemon = True
        late.start()
        with suppress(OSError, ValueError):
            process.stdin.write(text.encode() + b"\n")
            words = process.stderr.read()[-2000:]
        with suppress(OSError):
            process.stdin.close()
        status = process.wait()
        late.cancel()
        if status and not self._ended:
            self._failed[text] += 1
            log.warning("No image of a kernel was made: %s", words.decode(errors="replace").strip())
        process.stderr.close()

    def end(self) -> None:
        """Give up what is not done. Called when the process exits; quiet in a forked child."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._ended = True
            process = self._process
            self._changed.notify_all()
        if process is None or process.poll() is not None:
            return
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _in_child() -> None:
    """A forked child has no builder: its parent's ends with its parent."""
    instance = SnapshotBuilder._instance
    process = instance._process if instance is not None else None
    if process is not None and process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
        process.returncode = 0  # not this process's child


os.register_at_fork(after_in_child=_in_child)
