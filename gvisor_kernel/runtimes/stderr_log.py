"""What a sandbox's processes write to stderr: drained, bounded, made printable, remembered."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

TAIL_BYTES = 4096
FILE_BYTES = 1024 * 1024
"""No more than this goes into the file: a kernel that prints for ever fills no disk."""
LONGEST_LINE = 4096


class StderrLog:
    """Reads a pipe to its end in a thread of its own, which nothing has to stop.

    The thread takes over ``fd``. Text is appended to ``path``, each line with a time and with
    ``sandbox:``, as a kernel can write here what it likes: others' lines are in the same file.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._tail = b""
        self._line = b""
        self._room = FILE_BYTES
        self._lock = threading.Lock()
        with suppress(OSError):  # a full disk: there is no log then, only a tail
            path.touch(0o600)
        self._thread = threading.Thread(
            target=self._drain, name="gvisor-kernel-stderr", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until the last writer is gone, or ``seconds`` have passed."""
        self._thread.join(seconds)

    def tail(self) -> str:
        """The last lines, at most TAIL_BYTES, without anything but printable text."""
        with self._lock:
            content = self._tail
        text = content[-TAIL_BYTES:].decode(errors="replace")
        if len(content) > TAIL_BYTES and "\n" in text:
            text = text.partition("\n")[2]
        return "".join(c for c in text if c.isprintable() or c in "\n\t")

    def _drain(self) -> None:
        with os.fdopen(self._fd, "rb", buffering=0) as stream:
            while True:
                try:
                    content = stream.read(65536)
                except OSError:
                    return
                if not content:
                    self._write_lines(b"\n")
                    return
                with self._lock:
                    self._tail = (self._tail + content)[-TAIL_BYTES - 1 :]
                if self._room > 0:
                    self._write_lines(content)

    def _write_lines(self, content: bytes) -> None:
        """Write the lines that ``content`` completes."""
        *lines, self._line = (self._line + content).split(b"\n")
        if len(self._line) > LONGEST_LINE:
            lines, self._line = [*lines, self._line], b""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        out = []
        for line in lines:
            if line and self._room > 0:
                out.append(f"{now} sandbox: {_escape(line.decode(errors='replace'))}\n".encode())
                self._room -= len(out[-1])
        self._append(b"".join(out))

    def _append(self, content: bytes) -> None:
        with suppress(OSError):  # the directory is being removed, or the disk is full
            # Not made anew: the last words come while the directory is being emptied.
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(fd, content)
            finally:
                os.close(fd)


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
