"""What of ended sandboxes could not be removed at once: tried again, by nobody who is waited for.

A sandbox of an engine has outputs to be copied out first, which may take long, or fail for as long
as a disk is full: one thread of the process does that, one sandbox after the other, ever more
seldom. What it removes, and how, is told when it is put here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FIRST_WAIT = 1.0
SOON = 60.0
"""A start may have what waits no longer than this for its next try tried at once."""
LONGEST_WAIT = 900.0
"""Seconds between two tries: twice as long as between those before, and as the last one took."""
MAX_TRIES = 50
"""Then it is left to ``gvisor-kernel sync`` and ``prune``: half a day, if each fails at once."""


@dataclass
class _Leftover:
    """``outputs``: the folder of the host that its files are to go to."""

    remove: Callable[[], bool]
    outputs: str | None
    due: float
    wait: float
    tries: int = 0


class Leftovers:
    """From any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: dict[Path, _Leftover] = {}
        self._thread: threading.Thread | None = None

    def put(self, directory: Path, outputs: str | None, remove: Callable[[], bool]) -> None:
        """Call ``remove`` until it returns True, which means that nothing is left.

        What is here already stays as it is.
        """
        with self._changed:
            if directory not in self._left:
                due = time.monotonic() + FIRST_WAIT
                self._left[directory] = _Leftover(remove, outputs, due, FIRST_WAIT)
                self._go_on()

    def directories(self) -> set[Path]:
        """What is waiting, or being removed."""
        with self._changed:
            return set(self._left)

    def try_soon(self, outputs: str | None, seconds: float) -> None:
        """Try what is not too soon to be tried again, and return.

        Only what goes to the folder ``outputs``, which the caller is about to read, is waited for:
        until it was tried once more, and for at most ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            now = time.monotonic()
            awaited: dict[Path, int] = {}
            for directory, left in self._left.items():
                if left.wait <= SOON:
                    left.due = min(left.due, now)
                if outputs is not None and left.outputs == outputs and left.due <= now:
                    awaited[directory] = left.tries
            self._go_on()
            while any(self._is_untried(*item) for item in awaited.items()):
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return
                self._changed.wait(rest)

    def _is_untried(self, directory: Path, tries: int) -> bool:
        left = self._left.get(directory)
        return left is not None and left.tries == tries

    def _go_on(self) -> None:
        """With the lock: see that the thread runs, and looks."""
        if not self._left:
            return
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="gvisor-kernel-leftovers", daemon=True
            )
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                found = self._next()
                if found is None:
                    self._thread = None
                    return
            directory, left = found
            began = time.monotonic()
            try:
                removed = left.remove()
            except Exception:  # it must not take the thread along
                removed = False
            took = time.monotonic() - began
            with self._changed:
                left.tries += 1
                if removed or left.tries >= MAX_TRIES:
                    self._left.pop(directory, None)
                else:
                    left.wait = min(LONGEST_WAIT, max(2 * left.wait, 2 * took))
                    left.due = time.monotonic() + left.wait
                self._changed.notify_all()

    def _next(self) -> tuple[Path, _Leftover] | None:
        """With the lock: what is due first, once it is; None where nothing is left."""
        while self._left:
            found = min(self._left.items(), key=lambda item: item[1].due)
            rest = found[1].due - time.monotonic()
            if rest <= 0:
                return found
            self._changed.wait(rest)
        return None


LEFTOVERS = Leftovers()
"""This process's."""
