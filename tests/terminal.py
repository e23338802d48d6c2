"""A program at a terminal, and what a person reads and types there."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from .patience import scale_seconds

SECONDS = scale_seconds(90)


class Terminal:
    """The person's side. ``text``: all that the program has printed."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes]) -> None:
        self._fd = fd
        self._process = process
        self.text = ""

    def expect(self, words: str) -> None:
        """Wait until the program has printed ``words``, after what was expected before."""
        begin = len(self.text)
        deadline = time.monotonic() + SECONDS
        while words not in self.text[max(begin - len(words), 0) :]:
            assert self._read(deadline), f"it ended before {words!r}:\n{self.text}"

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait(self) -> int:
        """Read to the end, and return the exit status."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"nothing more was printed:\n{self.text}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # no program has the terminal open
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextmanager
def terminal(argv: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a program at a terminal of its own, where Ctrl-C is a signal and Ctrl-D the end."""
    fd, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
            env=dict(environment),
            start_new_session=True,
        ) as process:
            os.close(theirs)
            try:
                yield Terminal(fd, process)
            finally:
                process.kill()
    finally:
        os.close(fd)
