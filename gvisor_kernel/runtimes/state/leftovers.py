"""Removes ended sandboxes that could not be removed at once, in a background thread.

Before a sandbox of a Docker engine is removed its outputs are copied out. That may take long, or
fail for as long as a disk is full. One thread of the process tries it, one sandbox after the other,
at growing intervals. The caller passes the function that removes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FIRST_WAIT = 1.0
"""Seconds before the first try."""
SOON = 60.0
"""Seconds. A start has a sandbox tried at once if it waits no longer than this for its next try."""
LONGEST_WAIT = 900.0
"""Seconds between two tries at most. The wait doubles each time, and is at least twice as long
as the last try took."""
MAX_TRIES = 50
"""Afterwards ``gvisor-kernel sync`` and ``prune`` are left: after half a day if each try fails
at once."""


@dataclass
class _Leftover:
    """One sandbox to remove. ``outputs``: the host folder that its files are copied to."""

    remove: Callable[[], bool]
    outputs: str | None
    due: float
    wait: float
    tries: int = 0


class Leftovers:
    """The sandboxes that wait for their removal. Any thread.

    ``first`` and ``longest``: seconds between two tries. ``tries``: after as many it gives up.
    """

    def __init__(
        self, first: float = FIRST_WAIT, longest: float = LONGEST_WAIT, tries: int = MAX_TRIES
    ) -> None:
        self._first, self._longest, self._tries = first, longest, tries
        self._changed = threading.Condition()  # no timeout: held for a few steps that do not wait
        self._left: dict[Path, _Leftover] = {}
        self._thread: threading.Thread | None = None

    def put(self, directory: Path, outputs: str | None, remove: Callable[[], bool]) -> None:
        """Call ``remove`` again and again until it returns True, which means that nothing is left.

        Does nothing if ``directory`` waits here already.
        """
        with self._changed:
            if directory not in self._left:
                due = time.monotonic() + self._first
                self._left[directory] = _Leftover(remove, outputs, due, self._first)
                self._wake_thread()

    def directories(self) -> set[Path]:
        """Return the state directories of sandboxes that wait or are being removed."""
        with self._changed:
            return set(self._left)

    def try_soon(self, outputs: str | None, seconds: float) -> None:
        """Let the thread try what is due within SOON now.

        Waits only for sandboxes whose files go to the folder ``outputs``, which the caller is about
        to read: until each was tried once more, for at most ``seconds``.
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
            self._wake_thread()
            while any(self._is_untried(*item) for item in awaited.items()):
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return
                self._changed.wait(rest)

    def _is_untried(self, directory: Path, tries: int) -> bool:
        left = self._left.get(directory)
        return left is not None and left.tries == tries

    def _wake_thread(self) -> None:
        """Start the thread if necessary and wake it. The caller holds the lock."""
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
                found = self._wait_for_due()
                if found is None:
                    self._thread = None
                    return
            directory, left = found
            began = time.monotonic()
            try:
                removed = left.remove()
            except Exception:  # one removal must not end the thread
                removed = False
            took = time.monotonic() - began
            with self._changed:
                left.tries += 1
                if removed or left.tries >= self._tries:
                    self._left.pop(directory, None)
                else:
                    left.wait = min(self._longest, max(2 * left.wait, 2 * took))
                    left.due = time.monotonic() + left.wait
                self._changed.notify_all()

    def _wait_for_due(self) -> tuple[Path, _Leftover] | None:
        """Wait until a sandbox is due and return it, or None. The caller holds the lock."""
        while self._left:
            found = min(self._left.items(), key=lambda item: item[1].due)
            rest = found[1].due - time.monotonic()
            if rest <= 0:
                return found
            self._changed.wait(rest)
        return None


LEFTOVERS = Leftovers()
"""The leftovers of this process."""
