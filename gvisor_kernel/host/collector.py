"""Keeps Python's garbage collector out of threads that must never wait.

The collector runs in whichever thread allocates (CPython 3.11, 3.13), or is next to look whether
something is to be done (3.12), and there it calls the destructors of any object of the process. One
of them may never return: ``zmq.Context.__del__`` waits for sockets that nobody closes any more.

So in a thread that has called ``keep_out`` a collection finds no object: when it begins, a callback
of ``gc`` moves all objects out of sight (``gc.freeze``), and back when it has ended. A thread of
ours, which nobody waits for, collects later in its place. ``gc.disable`` would not do: it is one
switch for all threads of a program, which uses it itself.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from gvisor_kernel.host.per_process import PerProcess

MANY = 100
"""Collections that are left out before all of them are made up for by one."""
MAX_SECONDS = 60.0
"""The longest time until then. It is a full collection: 50 ms in a large server."""
REST = 50
"""Times as long as the last collection took, the next one waits: in a program with very many
objects it takes seconds, and no other thread runs meanwhile."""


class _Freeze:
    """``+_Freeze()`` is ``gc.freeze()``, but after an operator no other thread gets its turn, as it
    may after a call. What that one dropped would be found by the collection that begins."""

    __pos__ = staticmethod(gc.freeze)


class Collector(PerProcess):
    """The thread that collects for those that are kept out. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()
        # Its ``put`` may interrupt another one of the same thread, as a collection does.
        self._left_out: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True for each collection that was left out; False: end."""
        self._freeze = _Freeze()
        gc.callbacks.append(self._on_collection)
        threading.Thread(target=self._run, name="gvisor-kernel-collector", daemon=True).start()

    def keep_out(self) -> None:
        """Run no destructor of unreachable objects in this thread from now on."""
        self._here.is_kept_out = True

    def end(self) -> None:
        """Leave the collector as it was. Idempotent."""
        if not self.is_inherited:
            with suppress(ValueError):
                gc.callbacks.remove(self._on_collection)
            self._left_out.put(False)

    def _on_collection(self, phase: str, info: Mapping[str, int]) -> None:
        if not getattr(self._here, "is_kept_out", False):
            return
        if phase == "stop":
            gc.unfreeze()
            self._left_out.put(True)
            return
        +self._freeze  # noqa: B018 - an operator on purpose

    def _run(self) -> None:
        rest = 0.0
        while self._left_out.get():
            now = time.monotonic()
            soonest, latest, count = now + rest, now + max(rest, MAX_SECONDS), 1
            while (left := (latest if count < MANY else soonest) - now) > 0:
                with suppress(queue.Empty):
                    if not self._left_out.get(timeout=left):
                        return
                    count += 1
                now = time.monotonic()
            gc.collect()
            rest = REST * (time.monotonic() - now)
