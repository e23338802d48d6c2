"""Reads what a sandbox's processes write to stderr, and keeps it: bounded, printable, in a file."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from gvisor_kernel.host.log_files import MAX_STDERR, Allowance, RotatedFile, log_line

TAIL_BYTES = 4096
LONGEST_LINE = 4096
BURST = 256 * 1024
PER_SECOND = 32 * 1024
"""Bytes that are written to the file at once (BURST), and per second in the long run: a kernel can
write as much as it likes here."""
PAUSE_SECONDS = 0.01
"""Pause before a read whose content is dropped: this thread shares the interpreter with all
kernels."""


class StderrLog:
    """Reads a pipe to its end, in a thread of its own that ends by itself.

    Takes over ``fd``. Each line is appended to ``path`` with a time and the mark ``sandbox:``, as a
    kernel can write any text here. The beginning and the end of the file are kept. Where a flood is
    dropped, a line says how many bytes were left out.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._file = RotatedFile(path, MAX_STDERR, files=2, keeps_first=True)
        self._allowance = Allowance(BURST, PER_SECOND)
        self._left_out = 0
        self._tail = b""
        self._line = b""
        self._lock = threading.Lock()
        self._file.open()  # not later: the last lines come while the directory is being removed
        self._thread = threading.Thread(
            target=self._drain, name="gvisor-kernel-stderr", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the last writer has closed the pipe, for at most ``seconds``."""
        self._thread.join(seconds)

    def tail(self) -> str:
        """Return the last lines: at most TAIL_BYTES of printable text."""
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
                    self._write_end()
                    return
                with self._lock:
                    self._tail = (self._tail + content)[-TAIL_BYTES - 1 :]
                if self._allowance.room():
                    self._write_lines(content)
                else:
                    self._left_out += len(self._line) + len(content)
                    self._line = b""
                    time.sleep(PAUSE_SECONDS)

    def _write_end(self) -> None:
        """Write the last lines even where those before them were dropped."""
        last = self.tail().encode(errors="replace") if self._left_out else b""
        self._write_lines(last + b"\n")
        self._file.close()

    def _write_lines(self, content: bytes) -> None:
        """Write the lines that ``content`` completes; first, how many bytes were left out."""
        *lines, self._line = (self._line + content).split(b"\n")
        if len(self._line) > LONGEST_LINE:
            lines, self._line = [*lines, self._line], b""
        out = []
        if self._left_out:
            out.append(log_line("sandbox", f"({self._left_out} bytes were left out)"))
            self._left_out = 0
        out += [
            log_line("sandbox", _escape(line.decode(errors="replace"))) for line in lines if line
        ]
        written = b"".join(out)
        self._allowance.spend(len(written))
        self._file.write(written)


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
