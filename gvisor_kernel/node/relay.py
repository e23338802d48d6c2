"""Moves the bytes of a link between the helper's stdio and the pipes of a sandbox, without a copy.

Two directions, each with one pipe at least, so ``splice`` moves pages in the kernel. A reader that
stops stalls its writer, and nothing is kept here.
"""

from __future__ import annotations

import os
import select

PIECE = 256 * 1024
"""Bytes that are moved at once."""


class Lane:
    """One direction: from the descriptor ``source`` to ``target``. One of both is a pipe.

    ``waits_for``: the descriptor and the event of ``select.poll`` that it waits for now.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.open = True
        self._full = False
        for fd in (source, target):
            os.set_blocking(fd, False)

    @property
    def waits_for(self) -> tuple[int, int]:
        return (self.target, select.POLLOUT) if self._full else (self.source, select.POLLIN)

    def move(self) -> None:
        """Move what there is. Called when the awaited event has come; then ``open`` is False if
        either end was closed."""
        try:
            moved = os.splice(
                self.source, self.target, PIECE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            # One of both is not ready. The other one was: that is what was waited for.
            self._full = not self._full
            return
        except OSError:
            self.open = False
            return
        self._full = False
        self.open = moved > 0

    def end_target(self) -> None:
        """Let the target's reader see the end. The descriptor stays its owner's to close."""
        self.open = False
        # by path: the kernel's own file systems, /proc, /sys and /dev
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.dup2(null, self.target, inheritable=False)
        finally:
            os.close(null)
